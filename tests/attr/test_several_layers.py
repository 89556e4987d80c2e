"""A list of layers explained in one call, and one map made of theirs."""

from dataclasses import fields

import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerUnionCam, UpsampledAttribution, fuse
from tests.attr import reference
from tests.networks import SIZES, TinyNet, counting, same, tiny_inputs


def several(net):
    return [net.features[1], net.features, net.features[0]]


def test_details_and_targets_come_in_lists_as_well():
    net, inputs, targets = TinyNet(), tiny_inputs(), [[0, 3], [2, 2], [1, 0]]
    maps, details = LayerUnionCam(net, several(net)).attribute(inputs, 1, return_details=True)
    each, each_details = LayerUnionCam(net, several(net)).attribute_targets(inputs, targets, return_details=True)
    assert all(isinstance(result, list) for result in (maps, details, each, each_details))
    for n, layer in enumerate(several(net)):
        alone = LayerUnionCam(net, layer)
        for ours, expected in (
            ((maps[n], details[n]), alone.attribute(inputs, 1, return_details=True)),
            ((each[n], each_details[n]), alone.attribute_targets(inputs, targets, return_details=True)),
        ):
            assert same(ours[0], expected[0])
            for field in fields(expected[1]):
                one, other = (getattr(d, field.name).double() for d in (ours[1], expected[1]))
                assert same(one, other), field.name


@pytest.mark.usefixtures("rows_tried")
def test_one_gradient_pass_serves_all_layers():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    forward, rows = counting(net)
    LayerDenoisedGradCam(forward, several(net)).attribute(inputs, 1)
    assert rows == [3]
    rows.clear()
    _, details = LayerUnionCam(forward, several(net)).attribute(
        inputs, 1, internal_batch_size=1000, return_details=True
    )
    assert rows[0] == 3
    assert sum(rows) == 3 + sum(int(of_layer.forward_passes.sum()) for of_layer in details)


def test_captums_own_methods_give_lists_too():
    net, inputs = TinyNet(), tiny_inputs()
    captums = LayerGradientXActivation(net, several(net)).attribute(inputs, 1)
    maps = LayerUnionCam(net, several(net)).attribute(inputs, 1)
    assert type(captums) is type(maps)
    assert [a.shape[2:] for a in captums] == [a.shape[2:] for a in maps]


def test_an_upsampled_attribution_is_of_one_layer():
    net = TinyNet()
    with pytest.raises(ValueError, match="returned 3 values, not one attribution; wrap one layer"):
        UpsampledAttribution(LayerUnionCam(net, several(net))).attribute(tiny_inputs(), 1)


@pytest.mark.parametrize("ndim", SIZES)
def test_fuse_takes_the_largest_at_each_position(ndim):
    net, inputs = TinyNet(ndim), tiny_inputs(ndim)
    size = inputs.shape[2:]
    maps = LayerDenoisedGradCam(net, several(net)).attribute(inputs, 1)
    fused = fuse(maps, size)
    for i in range(3):
        scaled = [reference.mask_of(m[i : i + 1], tuple(size)) for m in maps]
        largest = torch.tensor([max(values) for values in zip(*(s.flatten().tolist() for s in scaled), strict=True)])
        assert torch.allclose(fused[i].flatten(), reference.minmax(largest.double()), rtol=0, atol=1e-7)
    assert fused.shape == (3, 1, *size)
    assert fused.amin() == 0
    assert fused.amax() == 1


def test_fuse_scales_every_layer_alike_and_ignores_constant_maps():
    small, large = torch.rand(2, 1, 4, 3, dtype=torch.float64), torch.rand(2, 1, 8, 6, dtype=torch.float64)
    assert same(fuse([small, large], (8, 6)), fuse([1000 * small - 7, 0.001 * large], (8, 6)))
    assert same(fuse([large, small], (8, 6)), fuse([small, large], (8, 6)))
    # 0.1 is one of the constants that interpolation rounds differently from place to place.
    assert same(fuse([large, torch.full_like(small, 0.1)], (8, 6)), fuse([large], (8, 6)))
    assert same(fuse([torch.full((1, 1, 3, 3), 0.1)], (7, 7)), torch.zeros(1, 1, 7, 7))


@pytest.mark.parametrize(
    ("maps", "size"),
    [
        ([], (8, 6)),
        ([torch.rand(2, 1, 4, 3), torch.rand(1, 1, 4, 3)], (8, 6)),
        ([torch.rand(2, 1, 4, 3), torch.rand(2, 5, 4, 3)], (8, 6)),
        ([torch.rand(2, 1, 4, 3), torch.rand(2, 1, 4)], (8, 6)),
        ([torch.rand(2, 1, 4, 3)], (8,)),
    ],
)
def test_fuse_refuses_what_does_not_go_together(maps, size):
    with pytest.raises(ValueError, match=r"^maps: got .* for the size"):
        fuse(maps, size)


def test_a_list_of_one_layer_is_upsampled_as_the_layer_is():
    net, inputs = TinyNet(), tiny_inputs()
    attr = UpsampledAttribution(LayerUnionCam(net, [net.features])).attribute(inputs, 1)
    assert torch.equal(attr, UpsampledAttribution(LayerUnionCam(net, net.features)).attribute(inputs, 1))
