"""A list of layers explained in one call, and one map made of theirs."""

from dataclasses import fields

import pytest
import torch
from captum.attr import LayerActivation, LayerGradientXActivation
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, UpsampledAttribution, fuse
from tests.attr import reference
from tests.networks import SIZES, TinyNet, same, tiny_inputs

METHODS = (LayerUnionCam, LayerScoreCam, LayerDenoisedGradCam)


def several(net):
    return [net.features[1], net.features, net.features[0]]


@pytest.mark.parametrize("attr_dim_summation", [True, False])
@pytest.mark.parametrize("attribute_to_layer_input", [True, False])
@pytest.mark.parametrize("ndim", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_call_for_each_layer(method, ndim, attribute_to_layer_input, attr_dim_summation):
    net, inputs = TinyNet(ndim), tiny_inputs(ndim)
    settings = {"attribute_to_layer_input": attribute_to_layer_input, "attr_dim_summation": attr_dim_summation}
    maps = method(net, several(net)).attribute(inputs, [0, 2, 3], **settings)
    assert isinstance(maps, list)
    for of_layer, layer in zip(maps, several(net), strict=True):
        assert same(of_layer, method(net, layer).attribute(inputs, [0, 2, 3], **settings))
        assert of_layer.abs().max() > 0


def test_agrees_with_the_reference():
    net, inputs = TinyNet(), tiny_inputs()
    maps = LayerUnionCam(net, several(net)).attribute(inputs, 1)
    for of_layer, layer in zip(maps, several(net), strict=True):
        for i, example in enumerate(inputs.split(1)):
            expected = reference.union_cam(net, layer, example, 1).attribution
            assert torch.allclose(of_layer[i : i + 1], expected, rtol=0, atol=1e-9)


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


def test_one_gradient_pass_serves_all_layers():
    net, rows = TinyNet(activation=nn.SiLU()), []

    def forward(x):
        rows.append(x.shape[0])
        return net(x)

    inputs = tiny_inputs()
    LayerDenoisedGradCam(forward, several(net)).attribute(inputs, 1)
    assert rows == [3]
    rows.clear()
    _, details = LayerUnionCam(forward, several(net)).attribute(
        inputs, 1, internal_batch_size=1000, return_details=True
    )
    assert rows[0] == 3
    assert sum(rows) == 3 + sum(int(of_layer.forward_passes.sum()) for of_layer in details)


@pytest.mark.parametrize("method", METHODS)
def test_one_layer_in_a_list_and_one_layer_twice(method):
    net, inputs = TinyNet(), tiny_inputs()
    expected = method(net, net.features).attribute(inputs, 1)
    (one,) = method(net, [net.features]).attribute(inputs, 1)
    assert same(one, expected)
    twice = method(net, [net.features, net.features]).attribute(inputs, 1)
    assert len(twice) == 2
    assert all(same(one, expected) for one in twice)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_several_outputs_in_a_list_has_captums_form(method):
    net, inputs = TinyNet(), tiny_inputs()

    class Doubled(nn.Module):
        def forward(self, x):
            return x, x * 2

    doubled = Doubled()

    def forward(x):
        first, second = doubled(net.features(x))
        return net.head(first) + net.head(second).sin()

    layers = [net.features, doubled]
    maps = method(forward, layers).attribute(inputs, 1)
    captums = LayerActivation(forward, layers).attribute(inputs)
    assert [type(of_layer) for of_layer in maps] == [type(of_layer) for of_layer in captums] == [torch.Tensor, tuple]
    of_two = method(forward, doubled).attribute(inputs, 1)
    assert all(same(one, expected) for one, expected in zip(maps[1], of_two, strict=True))
    _, details = LayerUnionCam(forward, layers).attribute(inputs, 1, return_details=True)
    assert isinstance(details[1], tuple)


def test_captums_own_methods_give_lists_too():
    net, inputs = TinyNet(), tiny_inputs()
    captums = LayerGradientXActivation(net, several(net)).attribute(inputs, 1)
    maps = LayerUnionCam(net, several(net)).attribute(inputs, 1)
    assert type(captums) is type(maps)
    assert [a.shape[2:] for a in captums] == [a.shape[2:] for a in maps]


@pytest.mark.parametrize("method", METHODS)
def test_no_hook_is_left_and_no_layers_are_refused(method):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^layer: got a list of none"):
        method(net, []).attribute(tiny_inputs(), 1)
    with pytest.raises((AssertionError, IndexError)):
        method(net, several(net)).attribute(tiny_inputs(), 99)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_in_place_layers_do_not_spoil_each_other():
    net, in_place, inputs = TinyNet(), TinyNet(activation=nn.ReLU(inplace=True)), tiny_inputs()
    for ours, expected in zip(
        LayerUnionCam(in_place, [in_place.features[3], in_place.features]).attribute(inputs, 1),
        LayerUnionCam(net, [net.features[3], net.features]).attribute(inputs, 1),
        strict=True,
    ):
        assert same(ours, expected)


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
