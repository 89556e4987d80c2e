"""The metrics against plain loops and torchcam's, over models, attributions and targets of many kinds."""

from functools import partial

import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import nn

from captum_unioncam import LayerUnionCam, metrics
from captum_unioncam.metrics.attributions import _tuners
from tests.metrics import reference
from tests.networks import CLASSES, PooledNet, TinyNet, same, tiny_inputs

TARGETS = torch.tensor([3, 0, 2])
FAITHFULNESS = [metrics.confidence_drop, metrics.confidence_increase, metrics.insertion, metrics.deletion]


@pytest.fixture(params=["flat head", "pooled head"])
def model(request):
    return TinyNet(seed=3) if request.param == "flat head" else PooledNet(seed=3)


@pytest.fixture
def images():
    return tiny_inputs(seed=5)


@pytest.fixture(params=["layer", "input", "noise of 3x3"])
def attributions(request, model, images):
    if request.param == "layer":
        return LayerGradCam(model, model.features).attribute(images, TARGETS).detach()
    if request.param == "input":
        return IntegratedGradients(model).attribute(images, target=TARGETS)
    return torch.randn(3, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def maps(seed=0):
    return torch.rand(3, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


softmax = partial(torch.softmax, dim=1)


def confidence_of(model, target, confidence_fn=softmax):
    @torch.no_grad()
    def confidence(image):
        return confidence_fn(model(image))[0, target].item()

    return confidence


def each(function, model, images, attributions, *args, confidence_fn=softmax):
    """A reference's values for the three examples."""
    return torch.tensor(
        [
            function(
                confidence_of(model, int(TARGETS[i]), confidence_fn),
                images[i : i + 1],
                *(arg[i : i + 1] for arg in args),
                attributions[i : i + 1],
            )
            for i in range(3)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("baseline", [0.0, -0.5, "tensor"])
@pytest.mark.parametrize("name", ["confidence_drop", "confidence_increase"])
def test_drop_and_increase_agree_with_plain_loops(model, images, attributions, baseline, name):
    if baseline == "tensor":
        baseline = torch.tensor([0.7, -0.4], dtype=torch.float64).reshape(1, 2, 1, 1).expand(1, *images.shape[1:])
    black = torch.zeros_like(images) + baseline
    expected = each(getattr(reference, name), model, images, attributions, black)
    assert same(getattr(metrics, name)(model, images, attributions, TARGETS, baselines=baseline), expected)


@pytest.mark.parametrize("steps", [1, 7, 12, 48, 100])
def test_deletion_agrees_with_plain_loops(model, images, attributions, steps):
    area, fractions, confidences = metrics.deletion(
        model, images, attributions, TARGETS, steps=steps, return_curve=True
    )
    for i in range(3):
        expected = reference.curve(
            confidence_of(model, TARGETS[i]),
            images[i : i + 1],
            torch.zeros_like(images[:1]),
            attributions[i : i + 1],
            steps,
        )
        for found, wanted in zip((area[i], fractions, confidences[i]), expected, strict=True):
            assert same(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("baseline", [None, 0.25])
def test_insertion_agrees_with_plain_loops(model, images, attributions, baseline):
    found = metrics.insertion(model, images, attributions, TARGETS, baseline, steps=9, return_curve=True)
    for i in range(3):
        image = images[i : i + 1]
        substrate = reference.blurred(image) if baseline is None else torch.full_like(image, baseline)
        expected = reference.curve(confidence_of(model, TARGETS[i]), substrate, image, attributions[i : i + 1], steps=9)
        assert same(found.area[i], torch.tensor(expected[0], dtype=torch.float64))
        assert same(found.confidences[i], torch.tensor(expected[2], dtype=torch.float64))
    assert same(metrics.insertion(model, images, attributions, TARGETS, baseline, steps=9), found.area)


def test_the_values_are_torchcams_where_the_definitions_coincide(images):
    pytest.importorskip("torchcam")
    from torchcam.methods import LayerCAM
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    model, targets = TinyNet(seed=3), TARGETS.tolist()
    # At a layer of the input's resolution, since torchcam scales maps before it upsamples them and not after.
    with LayerCAM(model, "features.1", input_shape=tuple(images.shape[1:])) as extractor:
        classification = ClassificationMetric(extractor, softmax)
        classification.update(images, targets)
        # 48 pixels in 16 steps of 3, and black behind both curves.
        curves = DeletionInsertionMetric(extractor, softmax, steps=16)
        curves.update(images, targets)
        # Whose gradients are those of the softmax there.
        (cam,) = extractor(targets, softmax(model(images)))
    arguments = model, images, cam.detach().unsqueeze(1), TARGETS
    theirs = classification.summary() | curves.summary()
    # It adds 1e-7 to the confidence that it divides by.
    assert theirs["avg_drop"] == pytest.approx(metrics.confidence_drop(*arguments).mean().item(), rel=1e-5)
    assert theirs["conf_increase"] == pytest.approx(metrics.confidence_increase(*arguments).mean().item())
    assert theirs["deletion_auc"] == pytest.approx(metrics.deletion(*arguments, steps=16).mean().item(), rel=1e-6)
    inserted = metrics.insertion(*arguments, baselines=0, steps=16).mean().item()
    assert theirs["insertion_auc"] == pytest.approx(inserted, rel=1e-6)


def test_drop_and_increase_are_grad_cams_whose_drop_is_not_a_share(images):
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    model, drawn = TinyNet(seed=3), torch.rand(3, *images.shape[2:], generator=torch.Generator().manual_seed(0))
    above = drawn - drawn.amin((1, 2), keepdim=True)
    scaled = above / above.amax((1, 2), keepdim=True)
    targets = [lambda output, t=t: output.softmax(0)[t] for t in TARGETS.tolist()]
    given = images, scaled.numpy()[:, None], targets, model
    ours = model, images, scaled.double().unsqueeze(1), TARGETS
    whole = model(images).softmax(1)[torch.arange(3), TARGETS].detach()
    increased = torch.from_numpy(theirs.IncreaseInConfidence()(*given))
    assert set(increased.tolist()) <= {0, 1}
    assert torch.equal(metrics.confidence_increase(*ours), increased.double())
    dropped = torch.as_tensor(theirs.DropInConfidence()(*given)).double()
    torch.testing.assert_close(metrics.confidence_drop(*ours) * whole, dropped, rtol=0, atol=1e-6)
    assert dropped.any()


@pytest.mark.parametrize("function", FAITHFULNESS)
def test_an_examples_value_does_not_depend_on_its_batch_or_the_batch_size(model, images, attributions, function):
    together = function(model, images, attributions, TARGETS)
    assert together.shape == (3,)
    for size in (1, 2, 1000):
        assert same(function(model, images, attributions, TARGETS, internal_batch_size=size), together)
    alone = [function(model, images[i : i + 1], attributions[i : i + 1], int(TARGETS[i])) for i in range(3)]
    assert same(torch.cat(alone), together)


@pytest.mark.parametrize("function", FAITHFULNESS)
def test_a_scaled_attribution_is_judged_alike(model, images, attributions, function):
    judged = function(model, images, attributions, TARGETS)
    assert same(function(model, images, attributions * 1e-9, TARGETS), judged)


def test_the_true_order_of_pixels_has_the_best_curves(images):
    """For the sum of the pixels, their values are the best attribution, and the worst is its opposite."""
    positive = images.abs()

    def pixels_sum(x):
        return x.sum((1, 2, 3)) / 100

    def both(attribution):
        insertion = metrics.insertion(pixels_sum, positive, attribution, baselines=0)
        return insertion - metrics.deletion(pixels_sum, positive, attribution)

    best, worst = both(positive), both(-positive)
    other = both(tiny_inputs(seed=6))
    assert (best > other).all()
    assert (other > worst).all()


def test_equal_attributions_go_in_row_major_order():
    images = torch.arange(1.0, 13, dtype=torch.float64).reshape(1, 1, 3, 4)

    def pixels_sum(x):
        return x.sum((1, 2, 3))

    curve = metrics.insertion(pixels_sum, images, torch.zeros_like(images), baselines=0, steps=12, return_curve=True)
    assert curve.confidences[0].tolist() == [sum(range(count + 1)) for count in range(13)]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("function", FAITHFULNESS)
def test_an_attribution_that_is_the_same_everywhere_says_nothing(images, function):
    """At a resolution from which interpolation rounds it differently from place to place."""
    attributions = torch.full((3, 2, 5, 5), 0.1 / 3, dtype=torch.float64)
    size = tuple(images.shape[2:])
    assert nn.functional.interpolate(attributions, size, mode="bilinear").unique().numel() > 1
    assert (metrics.pointing_game(attributions, torch.ones(3, *size) > 0) == 0).all()
    at_full_size = torch.ones(3, 1, *size, dtype=torch.float64)
    # In passes as given, and not as was fastest so far, which rounds differently.
    values = [
        function(TinyNet(), images, maps, TARGETS, internal_batch_size=8) for maps in (attributions, at_full_size)
    ]
    assert torch.equal(*values)


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("function", FAITHFULNESS)
def test_signals_and_volumes(ndim, function):
    model, inputs = TinyNet(ndim, seed=1), tiny_inputs(ndim)
    attributions = LayerUnionCam(model, model.features).attribute(inputs, TARGETS)
    values = function(model, inputs, attributions, TARGETS)
    assert values.shape == (3,)
    assert (values >= 0).all()
    assert (values <= 1).all()


class TwoInputs(nn.Module):
    """An image's class scores times a number, plus a second image's."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet(seed=2)

    def forward(self, one, number, other, bias=0.0):
        return self.net(one) * number + self.net(other) + bias


def test_several_inputs_each_masked_by_its_own_attribution(images):
    model, other, number = TwoInputs(), tiny_inputs(seed=9), torch.tensor([[1.0], [0.5], [2.0]]).double()
    one_attr, other_attr = maps(), maps(seed=1)
    bias = torch.linspace(-2, 2, 3 * CLASSES, dtype=torch.float64).reshape(3, CLASSES)
    found = metrics.confidence_drop(
        model,
        (images, number, other),
        (one_attr, torch.zeros_like(number), other_attr),
        TARGETS,
        additional_forward_args=(bias,),
    )
    masks = [reference.reference.mask_of(attr[i : i + 1], (8, 6)) for attr in (one_attr, other_attr) for i in range(3)]
    one_mask, other_mask = torch.cat(masks[:3]), torch.cat(masks[3:])
    with torch.no_grad():
        rows = torch.arange(3)
        whole = model(images, number, other, bias).softmax(1)[rows, TARGETS]
        seen = model(images * one_mask, number, other * other_mask, bias).softmax(1)[rows, TARGETS]
    assert same(found, (whole - seen).clamp(min=0) / whole)
    # One attribution masks all.
    shared = metrics.confidence_drop(model, (images, number, other), one_attr, TARGETS, None, (bias,))
    twice = (one_attr, torch.zeros_like(number), one_attr)
    assert same(shared, metrics.confidence_drop(model, (images, number, other), twice, TARGETS, None, (bias,)))


def test_a_confidence_function_is_obeyed(images):
    model = TinyNet(seed=3)
    attributions = maps()
    found = metrics.confidence_drop(model, images, attributions, TARGETS, confidence_fn=torch.sigmoid)
    expected = each(
        reference.confidence_drop,
        model,
        images,
        attributions,
        torch.zeros_like(images),
        confidence_fn=torch.sigmoid,
    )
    assert same(found, expected)


def test_no_confidence_cannot_drop(images):
    def nothing(x):
        return 0 * x.sum((1, 2, 3))

    attributions = maps()
    assert metrics.confidence_drop(nothing, images, attributions).tolist() == [0, 0, 0]
    assert metrics.confidence_increase(nothing, images, attributions).tolist() == [0, 0, 0]


def test_negative_confidences_have_no_share_to_lose(images):
    def logit(x):
        return x.mean((1, 2, 3)) - 1

    attributions = maps()
    for function in FAITHFULNESS:
        with pytest.raises(ValueError, match=r"^confidence_fn: got none.* torch\.sigmoid"):
            function(logit, images, attributions)
    with pytest.raises(ValueError, match=r"^confidence_fn: gave negative confidences for the examples \["):
        metrics.confidence_drop(logit, images, attributions, confidence_fn=lambda output: output)
    # A curve may be below 0.
    area = metrics.insertion(logit, images, attributions, baselines=0, confidence_fn=lambda output: output)
    assert (area < 0).all()
    assert (metrics.confidence_drop(logit, images, attributions, confidence_fn=torch.sigmoid) >= 0).all()


def test_inputs_of_half_precision():
    model, images = TinyNet(seed=3).bfloat16(), tiny_inputs(seed=5).bfloat16()
    attributions = maps().float()
    for function in FAITHFULNESS:
        values = function(model, images, attributions, TARGETS)
        assert values.dtype == torch.float32
        assert (values.isfinite() & (values >= 0)).all()


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3])
def test_pointing_games_agree_with_plain_loops(tolerance):
    generator = torch.Generator().manual_seed(1)
    attributions = torch.randn(40, 2, 3, 4, dtype=torch.float64, generator=generator)
    attributions[0] = 0
    masks = torch.rand(40, 1, 7, 9, generator=generator) < 0.1
    masks[1] = False
    hits, shares = (
        metrics.pointing_game(attributions, masks, tolerance),
        metrics.energy_pointing_game(attributions, masks),
    )
    each_one = [(attributions[i : i + 1], masks[i, 0]) for i in range(40)]
    assert hits.tolist() == [reference.pointing_game(*one, tolerance) for one in each_one]
    expected = [reference.energy_pointing_game(*one) for one in each_one]
    assert same(shares, torch.tensor(expected, dtype=torch.float64))
    assert hits[0] == shares[0] == hits[1] == shares[1] == 0
    assert same(metrics.energy_pointing_game(attributions, masks[:, 0]), shares)


def test_box_masks_hold_the_pixels_whose_centre_is_inside():
    masks = metrics.box_masks([[(1, 0, 3, 2)], [(0, 0, 1, 1), (3.6, 1.4, 9, 9)], []], (3, 5))
    assert masks.shape == (3, 1, 3, 5)
    assert masks[0, 0].int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert masks[1, 0].int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert not masks[2].any()


@pytest.mark.parametrize(
    ("attributions", "said"),
    [
        (torch.ones(3, 5), "attributions"),
        (torch.ones(2, 1, 4, 3), "3 examples"),
        (torch.full((3, 1, 4, 3), torch.nan), "attributions: not finite for the examples"),
        (torch.ones(3, 1, 4), "with as many dimensions as an input"),
        ((maps().float(),) * 2, "give one for all or each"),
    ],
)
def test_wrong_attributions_are_named(images, attributions, said):
    with pytest.raises(ValueError, match=said):
        metrics.confidence_drop(TinyNet(), images, attributions, TARGETS)


def test_wrong_arguments_are_named(images):
    attributions = maps().float()
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps"):
            metrics.insertion(TinyNet(), images, attributions, TARGETS, steps=steps)
    with pytest.raises(ValueError, match="internal_batch_size"):
        metrics.deletion(TinyNet(), images, attributions, TARGETS, internal_batch_size=0)
    with pytest.raises(ValueError, match="no example"):
        metrics.deletion(TinyNet(), images[:0], attributions[:0], TARGETS[:0])
    with pytest.raises(AssertionError, match=r"[Tt]arget"):
        metrics.deletion(TinyNet(), images, attributions)
    with pytest.raises(ValueError, match="tolerance"):
        metrics.pointing_game(attributions, torch.ones(3, 1, 8, 6) > 0, tolerance=-1)
    with pytest.raises(ValueError, match="objects"):
        metrics.pointing_game(attributions, torch.ones(2, 1, 8, 6) > 0)
    with pytest.raises(ValueError, match="boxes"):
        metrics.box_masks([[(1, 2, 3)]], (4, 4))


def test_what_is_learnt_of_passes_is_remembered_for_the_model_and_no_longer(images):
    model = TinyNet()
    metrics.deletion(model, images, maps().float(), TARGETS, internal_batch_size="auto")
    (tuner,) = _tuners[model].values()
    started = tuner.started.total()
    metrics.deletion(model, images, maps().float(), TARGETS, internal_batch_size="auto")
    assert _tuners[model].popitem()[1].started.total() > started
    del model
    import gc

    gc.collect()
    assert all(not isinstance(known, TinyNet) for known in _tuners)


@pytest.mark.parametrize("curve", [metrics.insertion, metrics.deletion])
def test_curves_of_integer_pictures(model, images, curve):
    pictures = (images.sigmoid() * 255).to(torch.uint8)
    attributions = torch.randn(3, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def of_integers(x):
        assert x.dtype == torch.uint8
        return model(x.double() / 255)

    area = curve(of_integers, pictures, attributions, TARGETS, baselines=0, steps=6)
    assert same(area, curve(model, pictures.double() / 255, attributions, TARGETS, baselines=0, steps=6))


def test_the_attribution_that_masks_may_come_behind_one_that_does_not(images):
    model, number = TwoInputs(), torch.tensor([[1.0], [0.5], [2.0]]).double()

    def number_first(number, one, other):
        return model(one, number, other)

    attr = maps()
    found = metrics.confidence_drop(number_first, (number, images, images), (number, attr, attr), TARGETS)
    assert same(found, metrics.confidence_drop(model, (images, number, images), (attr, number, attr), TARGETS))


def test_integer_pictures_are_inserted_into_a_blur_of_whole_numbers(model, images):
    pictures = (images.sigmoid() * 255).to(torch.uint8)
    curve = metrics.insertion(lambda x: model(x.double() / 255), pictures, maps(), TARGETS, steps=1, return_curve=True)
    for i in range(3):
        # Nothing is inserted yet.
        substrate = reference.blurred(pictures[i : i + 1].double()).round() / 255
        expected = confidence_of(model, TARGETS[i])(substrate)
        assert same(curve.confidences[i, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("game", [metrics.pointing_game, metrics.energy_pointing_game])
@pytest.mark.parametrize("dims", [1, 2, 6])
def test_pointing_games_take_one_to_three_spatial_dimensions(game, dims):
    for allowed in (3, 4, 5):
        assert game(torch.ones((3, 1, 2, 2, 2)[:allowed]), torch.ones((3, 1, 2, 2, 2)[:allowed]) > 0).shape == (3,)
    shape = (3, 1, 2, 2, 2, 2)[:dims]
    with pytest.raises(ValueError, match=r"^attributions: got the shape"):
        game(torch.ones(shape), torch.ones(shape) > 0)
