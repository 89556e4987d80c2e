import numpy as np
import pytest
import torch
from torch import nn

from captum_unioncam import LayerEigenCam
from captum_unioncam.testing import Traits
from tests.networks import TinyNet, same, tiny_inputs

TRAITS = Traits(masked_passes=lambda live: 0, uses_gradients=False)


def reference(forward_func, layer, example, target):
    """The first eigenvector of the channels' covariance, by NumPy."""
    kept = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output.detach()))
    with torch.no_grad():
        forward_func(example)
    handle.remove()
    rows = kept[0][0].flatten(1).T.double().numpy()
    rows = rows - rows.mean(0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    projected = rows @ vectors[:, -1]
    if (projected * rows.sum(1)).sum() < 0:
        projected = -projected
    return torch.from_numpy(projected).clamp(min=0).reshape(kept[0][:, :1].shape)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_map_rises_where_activations_do(sign):
    # One channel varies much and the other little, in the other direction.
    ramp = torch.arange(6.0).reshape(1, 1, 2, 3)
    activations = torch.cat([sign * 2 * ramp, -sign * ramp], 1)
    total = LayerEigenCam(TinyNet(), nn.Identity()).terms(activations).sum(1)
    assert torch.allclose(total, 5**0.5 * sign * (ramp[0] - 2.5), atol=1e-5)


def test_a_layer_of_one_position_has_nothing_to_compare():
    net = TinyNet()
    net.features.append(nn.AdaptiveMaxPool2d(1))
    net.head[-1] = nn.Linear(5, 4).double()
    assert (LayerEigenCam(net, net.features).attribute(tiny_inputs(), 1) == 0).all()


def test_the_class_changes_nothing():
    net, inputs = TinyNet(), tiny_inputs()
    cam = LayerEigenCam(net, net.features)
    assert same(cam.attribute(inputs, 0), cam.attribute(inputs, [1, 2, 3]))
