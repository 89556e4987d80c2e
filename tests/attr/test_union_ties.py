"""Where the union's confidence is that of the region map to the last bit, the region map is the result: Eq. 8's ">"."""

import pytest
import torch

from captum_unioncam import LayerUnionCam
from tests.networks import TinyNet, tiny_inputs


@pytest.mark.parametrize("examples", [1, 3])
def test_a_tie_is_the_region_maps(examples):
    net, inputs = TinyNet(), tiny_inputs(examples=examples)
    # One confidence for whatever is seen, as a saturated softmax has.
    method = LayerUnionCam(net, net.features, confidence_fn=lambda output: torch.full_like(output, 0.75))
    attr, details = method.attribute(inputs, 1, return_details=True)
    assert torch.equal(details.union_confidence, details.region_confidence)
    assert details.union_selected.tolist() == [False] * examples
    assert torch.equal(attr, details.region_map)
    assert not torch.equal(details.region_map, details.union_map)
    best, details = method.attribute(inputs, 1, selection="best", return_details=True)
    assert torch.equal(best, attr)
    assert details.denoised_selected.tolist() == [False] * examples
