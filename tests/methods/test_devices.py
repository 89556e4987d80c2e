"""Every registered method on accelerators, which are pretended, and how often each blocks the host there."""

import pytest
import torch

from captum_unioncam import methods
from captum_unioncam.attr import augmented_grad_cam
from captum_unioncam.testing import PretendedDevices
from tests.attr import OWN
from tests.methods.test_methods import data, net_for

BLOCKING = {
    "ablation_cam": 20,
    "ablation_cam_plus_plus": 36,
    "augmented_grad_cam": 414,
    "cam": 14,
    "denoised_grad_cam": 15,
    "eigen_cam": 13,
    "fd_cam": 22,
    "feature_cam": 15,
    "fimf_score_cam": 20,
    "grad_cam_plus_plus": 15,
    "grad_plus_plus_score_cam": 21,
    "group_cam": 25,
    "hires_cam": 15,
    "integrated_grad_cam": 164,
    "is_cam": 46,
    "layer_cam": 15,
    "recipro_cam": 21,
    "rise": 393,
    "score_cam": 19,
    "smooth_grad_cam_plus_plus": 113,
    "ss_cam": 156,
    "union_cam": 27,
    "union_cam_best": 27,
    "union_cam_softmax": 27,
    "vit_recipro_cam": 21,
    "x_grad_cam": 15,
}
"""How often each of this package's methods blocks the host, for three examples: as many times at most."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting backward hooks"),
]


def explained(name, devices=None, place="cpu"):
    net, tensors = net_for(name), data()
    torch.manual_seed(0)
    if devices is None:
        return methods.create(name, net, net.features)(*tensors)
    devices.place(net, place)
    with devices.active():
        maps = methods.create(name, net, net.features)(*(devices.put(x, place) for x in tensors))
        assert str(maps.device) == place
    return maps


@pytest.mark.parametrize("name", methods.names())
def test_maps_on_an_accelerator_are_those_of_the_cpu(name, monkeypatch):
    monkeypatch.setattr(augmented_grad_cam, "ITERATIONS", 10)
    # Where there is no float64, which Captum's own methods take no care of.
    devices, place = PretendedDevices(), "mps:0" if name in BLOCKING else "cuda:0"
    maps = explained(name, devices, place)
    torch.testing.assert_close(maps, explained(name), rtol=1e-4, atol=1e-5)
    assert devices.synchronisations <= BLOCKING.get(name, 20), dict(devices.waits)


def test_every_method_of_this_package_has_its_bound():
    assert sorted(BLOCKING) == sorted([*OWN, "rise"])
