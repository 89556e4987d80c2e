"""Beside torchcam's and grad-cam's methods of the same name: the same maps where the definitions are, and why not.

At a layer of the input's size, since grad-cam resizes its maps with OpenCV.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import (
    LayerEigenCam,
    LayerGradCamPlusPlus,
    LayerHiResCam,
    LayerISCam,
    LayerLayerCam,
    LayerLinearCam,
    LayerScoreCam,
    LayerSmoothGradCamPlusPlus,
    LayerSSCam,
    LayerXGradCam,
)
from tests.networks import CLASSES, tiny_inputs

TARGETS = [0, 2, 3]


class Net(nn.Module):
    """Activations that are not negative, at the input's size, and gradients that vary over space unless pooled."""

    def __init__(self, pooled=False, scale=1.0):
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
        self.fc = nn.Linear(5 if pooled else 5 * 48, CLASSES)
        with torch.no_grad():
            self.fc.weight *= 8 * scale
        self.eval()

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


def inputs():
    return tiny_inputs().float()


def torchcams(name, net, change=None, **arguments):
    """The raw maps (3, 1, 8, 6) of the class in torchcam."""
    cam_class = getattr(pytest.importorskip("torchcam.methods"), name)
    maps = []
    for example, target in zip(inputs().split(1), TARGETS, strict=True):
        with cam_class(net, net.features, **arguments) as cam:
            if change is not None:
                change(cam)
            maps += cam(target, net(example.requires_grad_()), normalized=False)
    return torch.stack(maps).detach()


def grad_cams(name, net):
    """The maps (3, 1, 8, 6) of the class in grad-cam, which come scaled to [0, 1]."""
    cam_class = getattr(pytest.importorskip("pytorch_grad_cam"), name)
    with cam_class(net, [net.features]) as cam:
        targets = [lambda output, t=target: output[t] for target in TARGETS]
        return torch.from_numpy(np.array(cam(inputs(), targets))).unsqueeze(1)


def scaled(maps):
    """Each map in [0, 1]."""
    each = maps.flatten(2)
    lowest, highest = each.amin(2)[..., None, None], each.amax(2)[..., None, None]
    return (maps - lowest) / (highest - lowest)


def explained(cls, net, **arguments):
    attr = cls(net, net.features).attribute(inputs(), TARGETS, **arguments)
    assert (attr.flatten(1).amax(1) > attr.flatten(1).amin(1)).all()
    return attr


def positive_cubes(net):
    """The map whose channel weights are the sums of ReLU(g) cubed."""
    activations = net.features(inputs()).detach()
    gradients = net.fc.weight[TARGETS].detach().reshape(activations.shape)
    weights = (gradients.relu() ** 3).sum((2, 3), keepdim=True)
    return (weights * activations).sum(1, keepdim=True)


def test_captums_grad_cam_is_theirs():
    net = Net()
    ours = LayerGradCam(net, net.features).attribute(inputs(), TARGETS, relu_attributions=True)
    torch.testing.assert_close(torchcams("GradCAM", net), ours, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_cams("GradCAM", net), scaled(ours), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cls", "name"), [(LayerXGradCam, "XGradCAM"), (LayerLayerCam, "LayerCAM")])
def test_torchcams_maps_are_the_same(cls, name):
    net = Net()
    torch.testing.assert_close(torchcams(name, net), explained(cls, net), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "name"), [(LayerXGradCam, "XGradCAM"), (LayerLayerCam, "LayerCAM"), (LayerHiResCam, "HiResCAM")]
)
def test_grad_cams_maps_are_the_same_scaled(cls, name):
    net = Net()
    torch.testing.assert_close(grad_cams(name, net), scaled(explained(cls, net)), rtol=1e-4, atol=1e-5)


def test_torchcams_cam_is_the_same_with_its_negative_places():
    net = Net(pooled=True)
    made = explained(LayerLinearCam, net)
    assert (made < 0).any()
    torch.testing.assert_close(torchcams("CAM", net, fc_layer="fc"), made, rtol=1e-4, atol=1e-5)


def test_eigen_cam_is_the_same_but_for_the_sign_that_grad_cams_solver_gives():
    net = Net()
    theirs = grad_cams("EigenCAM", net)
    projected = LayerEigenCam(net, net.features).terms(net.features(inputs()).detach()).sum(1, keepdim=True)
    for one, ours in zip(theirs, projected, strict=True):
        signs = [sign for sign in (1, -1) if torch.allclose(one, scaled((sign * ours).relu()[None])[0], atol=1e-4)]
        assert len(signs) == 1


def test_torchcams_grad_cam_plus_plus_loses_its_denominator():
    """A division in place, of what a mask as an index has copied: if this fails, torchcam has mended it."""
    net = Net()
    theirs = torchcams("GradCAMpp", net)
    torch.testing.assert_close(theirs, positive_cubes(net), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scaled(theirs), scaled(explained(LayerGradCamPlusPlus, net)), atol=0.02)


def test_grad_cams_grad_cam_plus_plus_is_drowned_by_its_epsilon_where_gradients_are_small():
    net, small = Net(), Net(scale=1e-5)
    drowned = grad_cams("GradCAMPlusPlus", small)
    # 1e-6 is what is left of the denominator: all but the cubes are gone.
    torch.testing.assert_close(drowned, scaled(positive_cubes(net)), rtol=0.01, atol=0.01)
    assert not torch.allclose(drowned, scaled(explained(LayerGradCamPlusPlus, small)), atol=0.02)


def test_grad_cams_grad_cam_plus_plus_is_the_same_where_gradients_are_large():
    net = Net(scale=10)
    ours = scaled(explained(LayerGradCamPlusPlus, net))
    torch.testing.assert_close(grad_cams("GradCAMPlusPlus", net), ours, rtol=0.01, atol=2e-3)


def test_torchcams_smooth_grad_cam_plus_plus_multiplies_with_the_last_noisy_activations():
    """So the map has the noise of one sample, however many there are."""
    net = Net()
    noise = torch.randn(inputs()[:1].shape, generator=torch.Generator().manual_seed(0))

    def known_noise(cam):
        drawn = iter([torch.zeros_like(noise), noise])
        cam._distrib.sample = lambda size: next(drawn)

    theirs = torchcams("SmoothGradCAMpp", net, known_noise, num_samples=2)
    ours = explained(LayerSmoothGradCamPlusPlus, net, n_samples=2)
    assert not torch.allclose(scaled(theirs), scaled(ours), atol=0.1)
    for one, example in zip(theirs.flatten(1), inputs().split(1), strict=True):
        # Where the map is not cut, it is a sum of the noisy input's channels, and none of the input's own.
        off = [
            distance_from_sums(one[one > 0], net.features(x)[0].flatten(1)[:, one > 0])
            for x in (example + noise, example)
        ]
        assert off[0] < 1e-4 * one.max()
        assert off[1] > 0.1 * one.max()


def distance_from_sums(values, channels):
    """The largest difference between the values and the closest weighted sum of the channels."""
    weights = torch.linalg.lstsq(channels.detach().T, values[:, None]).solution
    return (channels.detach().T @ weights - values[:, None]).abs().max()


def of_logits(net):
    """Score-CAM whose weights are the softmax over the channels of masked inputs' logits."""
    method = LayerScoreCam(net, net.features, confidence_fn=lambda logits: logits)
    return method.attribute(inputs(), TARGETS, channel_weights="softmax")


def silent(cam):
    """No noise."""
    cam._distrib = SimpleNamespace(sample=torch.zeros)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda net: torchcams("ScoreCAM", net), lambda net: explained(LayerScoreCam, net)),
        (lambda net: grad_cams("ScoreCAM", net), lambda net: explained(LayerScoreCam, net)),
        (
            lambda net: torchcams("SSCAM", net, silent, num_samples=1),
            lambda net: explained(LayerSSCam, net, n_samples=1, stdevs=0),
        ),
        (
            lambda net: torchcams("ISCAM", net, num_samples=1),
            lambda net: explained(LayerISCam, net, n_steps=1),
        ),
    ],
    ids=["torchcam ScoreCAM", "grad-cam ScoreCAM", "torchcam SSCAM", "torchcam ISCAM"],
)
def test_their_score_cams_weigh_channels_by_a_softmax_of_logits(theirs, ours):
    """Ours by confidences, as in the papers, unless they are asked for that."""
    net = Net()
    made = scaled(theirs(net))
    torch.testing.assert_close(made, scaled(of_logits(net)), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(made, scaled(ours(net)), atol=0.02)


def test_grad_cams_score_cam_upsamples_masks_with_aligned_corners():
    """Its weights, since OpenCV resizes its maps; a layer of half the input's size."""
    net = Net()
    net.features.append(nn.AvgPool2d(2))
    net.fc = nn.Linear(5 * 12, CLASSES)
    activations = net.features(inputs()).detach()

    def weights(**how):
        masks = F.interpolate(activations, inputs().shape[2:], mode="bilinear", **how)
        lowest, highest = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        seen = inputs()[:, None] * ((masks - lowest) / (highest - lowest))[:, :, None]
        logits = [net(x)[:, target] for x, target in zip(seen, TARGETS, strict=True)]
        return torch.stack(logits).softmax(1).detach()

    cam_class = pytest.importorskip("pytorch_grad_cam").ScoreCAM
    with cam_class(net, [net.features]) as cam:
        targets = [lambda output, t=target: output[t] for target in TARGETS]
        theirs = torch.from_numpy(cam.get_cam_weights(inputs(), net.features, targets, activations.numpy(), None))
    torch.testing.assert_close(theirs, weights(align_corners=True), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(theirs, weights(align_corners=False), rtol=0.01)
