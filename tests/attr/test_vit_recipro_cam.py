from itertools import product

import pytest
import torch
from torchvision.models import VisionTransformer

from captum_unioncam import LayerVitReciproCam, tokens_to_maps
from captum_unioncam.testing import Traits
from tests.attr.reference import default_confidence, select
from tests.attr.tail_reference import layer_output, output_with
from tests.networks import same

POSITIONS = 12  # of the layer of the 2-D network

TRAITS = Traits(uses_gradients=False, masked_passes=lambda _live: POSITIONS)


def reference(forward_func, layer, example, target, gaussian=True):
    activations = layer_output(forward_func, layer, example)
    made = torch.zeros_like(activations[:, :1])
    places = list(product(*map(range, activations.shape[2:])))
    for center in places:
        around = torch.zeros_like(activations)
        for place in places:
            around[(0, slice(None), *place)] = weight(center, place, gaussian) * activations[(0, slice(None), *place)]
        confidence = default_confidence(output_with(forward_func, layer, example, around))
        made[(0, 0, *center)] = select(confidence, target)
    return made


def weight(center, place, gaussian):
    distances = [abs(one - other) for one, other in zip(center, place, strict=True)]
    if not gaussian:
        return 1.0 if max(distances) == 0 else 0.0
    return 0.5 ** distances.count(0) * 0.25 ** distances.count(1) if max(distances) <= 1 else 0.0


def tiny_vit():
    torch.manual_seed(0)
    net = VisionTransformer(8, 2, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4)
    torch.nn.init.normal_(net.heads.head.weight)
    return net.double().eval()


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("as_a_function", [True, False])
def test_the_class_token_is_kept_and_the_skip_is_not_masked(gaussian, as_a_function):
    net, inputs = tiny_vit(), torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = net.encoder.layers[-2].ln_1
    forward_func = (lambda x: net(x)) if as_a_function else net
    attr, details = LayerVitReciproCam(forward_func, layer).attribute(inputs, 2, gaussian=gaussian, return_details=True)
    assert details.tail_alone.tolist() == [not as_a_function] * 2
    for i, example in enumerate(inputs.split(1)):
        tokens = layer_output(net, layer, example)
        for center in product(range(4), range(4)):
            masked = tokens.clone()
            for place in product(range(4), range(4)):
                masked[0, 1 + 4 * place[0] + place[1]] *= weight(center, place, gaussian)
            expected = net_confidence(net, layer, example, masked)
            assert same(attr[i, 0, center[0], center[1]], expected)
    with_grid = LayerVitReciproCam(net, layer, reshape_transform=tokens_to_maps(4, 4))
    assert same(with_grid.attribute(inputs, 2, gaussian=gaussian), attr)


def net_confidence(net, layer, example, tokens):
    return default_confidence(output_with(net, layer, example, tokens))[0, 2]


def test_a_transform_that_copies_is_refused():
    net = tiny_vit()
    copying = LayerVitReciproCam(
        net,
        net.encoder.layers[1].ln_1,
        reshape_transform=lambda x: x[:, 1:].transpose(1, 2).reshape(-1, 8, 4, 4).clone(),
    )
    with pytest.raises(ValueError, match=r"^reshape_transform: makes a copy"):
        copying.attribute(torch.randn(1, 3, 8, 8).double(), 0)
