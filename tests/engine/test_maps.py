import pytest
import torch

from captum_unioncam.engine.maps import blend, divide_or_zero, full_precision, minmax, spatial_range, up

SHAPES = [(2, 3, 7), (2, 3, 5, 4), (2, 3, 4, 3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_scales_each_example_and_channel_alone(shape):
    maps = torch.randn(shape, dtype=torch.float64) * 10 + 3
    scaled = minmax(maps)
    assert torch.equal(scaled.flatten(2).amin(2), torch.zeros(shape[:2], dtype=torch.float64))
    assert torch.equal(scaled.flatten(2).amax(2), torch.ones(shape[:2], dtype=torch.float64))
    one = maps[1, 2]
    assert torch.allclose(scaled[1, 2], (one - one.min()) / (one.max() - one.min()), atol=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e30])
def test_minmax_of_a_constant_map_is_zero(value):
    assert torch.equal(minmax(torch.full((1, 2, 3, 3), value)), torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_minmax_does_not_depend_on_scale(scale):
    maps = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(minmax(maps * scale), minmax(maps), atol=1e-6)


def test_divide_or_zero_has_no_epsilon_and_no_nan():
    numerator = torch.tensor([1e-40, 2.0, 3.0, 0.0])
    denominator = torch.tensor([1e-40, 0.0, -1.0, 0.0])
    assert torch.equal(divide_or_zero(numerator, denominator), torch.tensor([1.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_up_keeps_a_linear_ramp_away_from_the_border(shape):
    ramp = torch.arange(shape[-1], dtype=torch.float64).expand(shape)
    size = tuple(2 * s for s in shape[2:])
    positions = (torch.arange(size[-1], dtype=torch.float64) + 0.5) / 2 - 0.5  # align_corners=False
    assert torch.allclose(up(ramp, size)[..., 1:-1], positions[1:-1].expand(*shape[:2], *size[:-1], -1))


@pytest.mark.parametrize(("size", "dtype"), [(32, torch.float32), (225, torch.float64), (50, torch.float16)])
@pytest.mark.parametrize("value", [0.1, -7.3, 1 / 3])
def test_up_keeps_a_constant_map_constant(value, size, dtype):
    maps = torch.full((2, 1, 5, 7), value, dtype=dtype)
    assert torch.equal(up(maps, (size, size)), torch.full((2, 1, size, size), value, dtype=dtype))


def test_blend_shows_the_input_through_ones_and_the_baseline_through_zeros():
    inputs, baseline = torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 1, 1), -1.0)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.25]]]])
    expected = torch.tensor([[[[5.0, -1.0], [2.0, 0.5]]]]).expand(1, 3, 2, 2)
    assert torch.equal(blend(mask, inputs, baseline), expected)
    assert torch.equal(blend(mask, inputs, -1.0), expected)
    assert torch.equal(blend(mask, inputs, 0), (mask * 5).expand(1, 3, 2, 2))


def test_blend_is_exact_at_both_ends_whatever_the_values():
    inputs, baseline = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1000
    assert torch.equal(blend(torch.ones(2, 1, 64, 64), inputs, baseline), inputs)
    assert torch.equal(blend(torch.zeros(2, 1, 64, 64), inputs, baseline), baseline)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_blend_takes_inputs_and_masks_of_any_dtype(dtype, mask_dtype):
    inputs, mask = torch.full((1, 3, 2, 2), 7).to(dtype), torch.tensor([[[[1, 0], [0, 1]]]]).to(mask_dtype)
    blended = blend(mask, inputs, torch.tensor(2).to(dtype))
    assert blended.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert blended[0].tolist() == [[[7, 2], [2, 7]]] * 3


def test_spatial_range_keeps_dimensions():
    assert torch.equal(spatial_range(torch.arange(12.0).reshape(1, 2, 3, 2)), torch.full((1, 2, 1, 1), 5.0))


def test_full_precision_touches_half_precision_alone():
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    assert [full_precision(torch.zeros(1, dtype=d)).dtype for d in dtypes] == [torch.float32] * 3 + [torch.float64]
