"""The engine: what it runs, in which chunks, and what it survives."""

import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam
from captum_unioncam.engine import scoring
from captum_unioncam.engine.confidence import class_confidence
from captum_unioncam.engine.scoring import MaskedScorer
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs


class Counting(nn.Module):
    """Counts the rows of each pass, and runs out of memory where told to."""

    def __init__(self, net, most_rows=10**9, fail_passes=()):
        super().__init__()
        self.net, self.most_rows, self.fail_passes = net, most_rows, list(fail_passes)
        self.rows, self.asked = [], 0

    def forward(self, x):
        self.asked += 1
        if x.shape[0] > self.most_rows or self.asked - 1 in self.fail_passes:
            raise torch.OutOfMemoryError("simulated")
        self.rows.append(x.shape[0])
        return self.net(x)


def scores(net, inputs, **kwargs):
    scorer = MaskedScorer(net, (inputs,), None, [1], None, **kwargs)
    activations = TinyNet(activation=nn.SiLU()).features(inputs).detach()
    return scorer.sweep(activations, torch.ones(activations.shape[:2], dtype=torch.bool))[0]


def test_all_examples_share_one_queue_of_chunks_of_constant_size():
    net = Counting(TinyNet())
    scores(net, tiny_inputs(), internal_batch_size=4)
    assert net.rows == [4, 4, 4, 3]  # 3 examples of 5 channels


def test_a_score_function_always_gets_full_chunks():
    net, scoring = Counting(TinyNet()), Counting(TinyNet())
    result = scores(net, tiny_inputs(), internal_batch_size=4, score_func=scoring)
    assert net.rows == []
    assert scoring.rows == [4, 4, 4, 4]
    assert same(result, scores(TinyNet(), tiny_inputs(), internal_batch_size=4))


@pytest.mark.usefixtures("rows_tried")
def test_a_score_function_runs_the_channels_and_the_model_the_confidences():
    net, scoring, inputs = Counting(TinyNet()), Counting(TinyNet()), tiny_inputs()
    method = LayerUnionCam(net, net.net.features, score_func=scoring)
    attr = method.attribute(inputs, 1, internal_batch_size=15)
    assert scoring.rows == [15]
    assert net.rows == [3, 9, 3]  # the gradients; baseline, denoised and region; union
    plain = TinyNet()
    assert torch.allclose(attr, LayerUnionCam(plain, plain.features).attribute(inputs, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("failing", range(4))
def test_out_of_memory_at_any_chunk_halves_and_loses_nothing(failing):
    inputs = tiny_inputs()
    expected = scores(TinyNet(), inputs)
    net = Counting(TinyNet(), fail_passes=[failing])
    assert torch.allclose(scores(net, inputs, internal_batch_size=4), expected, rtol=0, atol=1e-12)
    assert sum(net.rows) in (15, 16)  # a last row alone has a copy beside it
    assert net.rows[:failing] == [4, 4, 4, 3][:failing]
    assert set(net.rows[failing:-1]) <= {2}


@pytest.mark.parametrize("failing", range(4))
def test_out_of_memory_in_a_score_function_halves_its_full_chunks(failing):
    inputs, scoring = tiny_inputs(), Counting(TinyNet(), fail_passes=[failing])
    result = scores(TinyNet(), inputs, internal_batch_size=4, score_func=scoring)
    assert same(result, scores(TinyNet(), inputs))
    assert scoring.rows == [4] * failing + [2] * (8 - 2 * failing)


def test_halving_goes_on_until_a_chunk_fits():
    net = Counting(TinyNet(), most_rows=3)
    scores(net, tiny_inputs(), internal_batch_size=15)
    assert net.rows == [3] * 5


def test_a_single_row_too_large_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        scores(Counting(TinyNet(), most_rows=0), tiny_inputs())


def test_maps_that_no_input_has_the_dimensions_for_are_refused():
    scorer = MaskedScorer(TinyNet(), (tiny_inputs(),), None, [1], None)
    with pytest.raises(ValueError, match=r"none of the shapes \(3, 2, 8, 6\) has the 1 .*, for tokens, a reshape_tran"):
        scorer.confidences(torch.rand(3, 1, 5))


def test_other_errors_are_not_taken_for_memory():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        scores(Broken(), tiny_inputs())


def test_masks_are_made_chunk_by_chunk():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    net, inputs = TinyNet(), tiny_inputs(examples=16)
    activations = net.features(inputs).detach()
    with Watch():
        MaskedScorer(net, (inputs,), None, [1], None, internal_batch_size=2).sweep(
            activations, torch.ones(16, CHANNELS, dtype=torch.bool)
        )
    every_mask = 16 * CHANNELS * inputs[0, :1].nbytes
    assert inputs[:2].nbytes <= largest <= inputs.nbytes < every_mask


@pytest.mark.usefixtures("rows_tried")
def test_score_dtype_is_for_the_channels_alone():
    net, inputs = TinyNet(activation=nn.SiLU()).float(), tiny_inputs().float()
    dtypes = []
    net.head[-1].register_forward_hook(lambda _m, _args, out: dtypes.append((out.shape[0], out.dtype)))
    method = LayerUnionCam(net, net.features)
    attr = method.attribute(inputs, 1, score_dtype=torch.bfloat16, internal_batch_size=15)
    assert dtypes == [(3, torch.float32), (15, torch.bfloat16), (9, torch.float32), (3, torch.float32)]
    assert attr.dtype == torch.float32
    whole = method.attribute(inputs, 1)
    assert torch.corrcoef(torch.stack([attr.flatten(), whole.flatten()]))[0, 1] > 0.99


def test_class_confidence():
    logits = torch.randn(4, 3, 2)
    assert same(class_confidence(logits), logits.softmax(1))
    for one_output in (torch.rand(4), torch.rand(4, 1), torch.rand(4, 1, 5)):
        assert class_confidence(one_output) is one_output
        with pytest.raises(ValueError, match=r"^confidence_fn: .*sigmoid"):
            class_confidence(one_output - 1)


@pytest.mark.usefixtures("rows_tried")
def test_additional_arguments_go_with_their_example_and_others_pass():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    seen = []

    def forward(x, per_example, shared, number, nothing):
        seen.append((per_example.shape[0], shared.shape, number, nothing))
        return net(x) + per_example + shared[0, 0]

    per_example = torch.arange(3.0, dtype=torch.float64).reshape(3, 1) * 10
    shared = torch.zeros(2, 7, dtype=torch.float64)
    method = LayerScoreCam(forward, net.features, confidence_fn=lambda output: output)
    terms = method.attribute(inputs, 0, (per_example, shared, 4, None), attr_dim_summation=False, internal_batch_size=4)
    # The whole batch and copies of two examples, to see that the argument goes by row.
    assert seen[1:] == [(rows, shared.shape, 4, None) for rows in (3, 3, 3, 4, 4, 4, 3)]
    for i in range(3):
        alone = method.attribute(
            inputs[i : i + 1], 0, (per_example[i : i + 1], shared, 4, None), attr_dim_summation=False
        )
        assert torch.allclose(terms[i : i + 1], alone, rtol=0, atol=1e-9)


def test_progress_bar_counts_the_masked_passes(capsys):
    net = TinyNet(activation=nn.SiLU())
    LayerUnionCam(net, net.features).attribute(tiny_inputs(), 1, show_progress=True)
    shown = capsys.readouterr().err
    assert "Layer Union Cam masked passes" in shown
    assert "15/15" in shown
    LayerUnionCam(net, net.features).attribute(tiny_inputs(), 1)
    assert capsys.readouterr().err == ""


def test_integer_pictures_stay_integers():
    net = TinyNet()

    def forward(x):
        assert x.dtype == torch.uint8
        return net(x.double() / 255)

    pictures = (tiny_inputs().sigmoid() * 255).to(torch.uint8)
    attr = LayerUnionCam(forward, net.features).attribute(pictures, 1)
    expected = LayerUnionCam(net, net.features).attribute(pictures.double() / 255, 1)
    assert torch.corrcoef(torch.stack([attr.flatten(), expected.flatten()]))[0, 1] > 0.99


def compiled(function):
    """Compiled as far as Dynamo goes, which counts what it compiles; and that count."""
    graphs = []

    def backend(graph, _example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=False), graphs


@pytest.mark.parametrize("forward_is_function", [False, True])
@pytest.mark.parametrize("of_function", [False, True])
def test_a_compiled_score_function_is_compiled_once(of_function, forward_is_function):
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    score_func, graphs = compiled((lambda x: net(x)) if of_function else net)
    forward = (lambda x: net(x)) if forward_is_function else net
    method = LayerUnionCam(forward, net.features, score_func=score_func)
    attr = method.attribute(inputs, 1, internal_batch_size=4)  # 15 rows
    assert len(graphs) == 1
    method.attribute(inputs[:2], 1, internal_batch_size=4)  # 10 rows
    assert len(graphs) == 1
    assert same(attr, LayerUnionCam(net, net.features).attribute(inputs, 1))


def test_a_compiled_model_within_a_function_is_compiled_and_not_for_every_call():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    inner, graphs = compiled(net)
    method = LayerUnionCam(net, net.features, score_func=lambda x: inner(x))
    method.attribute(inputs, 1, internal_batch_size=4)
    first = len(graphs)
    assert 1 <= first <= 2
    method.attribute(inputs, 1, internal_batch_size=4)
    method.attribute(inputs, 1, internal_batch_size=4)
    assert len(graphs) == first


def test_a_single_row_does_not_ask_the_device_for_its_target():
    items = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal items
            items += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for batch_size in (1, 15):
        scorer = MaskedScorer(TinyNet(), (tiny_inputs(),), None, [[0, 1, 2]], None, internal_batch_size=batch_size)
        items = 0
        with Watch():
            scorer.sweep(torch.randn(3, 5, 4, 3).double(), torch.ones(3, 5, dtype=torch.bool))
        counts.append(items)
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("rows_tried")
def test_a_compiled_score_function_without_a_batch_size_keeps_one(monkeypatch):
    monkeypatch.setitem(scoring.COMPILED_ROWS, "cpu", 4)
    net, counting = TinyNet(activation=nn.SiLU()), Counting(TinyNet(activation=nn.SiLU()))
    LayerUnionCam(net, net.features, score_func=counting).attribute(tiny_inputs(), 1)
    assert counting.rows == [4] * 4


def test_an_exported_score_function_of_fixed_size():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    exported = torch.export.export(net, (inputs.repeat(2, 1, 1, 1)[:4],)).module()
    method = LayerUnionCam(net, net.features, score_func=exported)
    attr = method.attribute(inputs, 1, internal_batch_size=4)
    assert same(attr, LayerUnionCam(net, net.features).attribute(inputs, 1))


def test_autocast_casts_the_weights_once_a_call_and_not_once_a_chunk():
    net, inputs = TinyNet(activation=nn.SiLU()).float(), tiny_inputs().float()
    casts = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal casts
            if func is torch.ops.aten._to_copy.default and args[0] is net.head[-1].weight:
                casts += 1
            return func(*args, **(kwargs or {}))

    with Watch():
        LayerUnionCam(net, net.features).attribute(inputs, 1, score_dtype=torch.bfloat16, internal_batch_size=3)
    assert casts == 1
