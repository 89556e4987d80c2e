"""What a type checker knows of calls: .ci/run has mypy read this file; run, it says that the types are true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, UnionCamDetails
from tests.networks import TinyNet, tiny_inputs

if TYPE_CHECKING:
    from typing import assert_type
else:

    def assert_type(value, kind):
        name = kind if isinstance(kind, str) else kind.__name__
        assert type(value).__name__ == name.partition("[")[0], name


def test_one_layer_gives_a_tensor_and_several_a_list() -> None:
    net, inputs = TinyNet(), tiny_inputs()
    assert_type(LayerUnionCam(net, net.features).attribute(inputs, 1), Tensor)
    assert_type(LayerScoreCam(net, "features").attribute(inputs, 1, None, False), Tensor)
    assert_type(LayerDenoisedGradCam(net, [net.features, "features.0"]).attribute(inputs, target=1), "list[Tensor]")
    assert_type(LayerUnionCam(net, ["features"], confidence_fn=torch.sigmoid).attribute(inputs, 1), "list[Tensor]")


def test_several_targets_are_stacked() -> None:
    net, inputs, targets = TinyNet(), tiny_inputs(), [[0, 1]] * 3
    assert_type(LayerScoreCam(net, net.features).attribute_targets(inputs, targets), Tensor)
    assert_type(LayerScoreCam(net, (net.features, "features.0")).attribute_targets(inputs, targets), "list[Tensor]")


def test_details_are_known() -> None:
    net, inputs = TinyNet(), tiny_inputs()
    attr, details = LayerUnionCam(net, net.features).attribute(inputs, 1, return_details=True)
    assert_type(attr, Tensor)
    assert_type(details, UnionCamDetails)
    maps, each = LayerUnionCam(net, [net.features]).attribute(inputs, 1, theta=20.0, return_details=True)
    assert_type(maps, "list[Tensor]")
    assert_type(each, "list[UnionCamDetails]")
