"""The contract itself: each fault is found by the check that is meant for it."""

import functools
import itertools
import threading

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam
from captum_unioncam.testing import LAYER_CHECKS, PretendedDevices, Traits, check_layer_method
from captum_unioncam.testing.device_checks import MIXES
from tests.networks import TinyNet, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def broken(fault, of=LayerDenoisedGradCam):
    """The method with ``fault(call, method, *args, **kwargs)`` in place of ``attribute``, which is ``call``."""

    class Broken(LayerAttribution):
        def __init__(self, forward_func, layer, device_ids=None):
            self.method = of(forward_func, layer, device_ids)
            super().__init__(forward_func, layer, device_ids)

        @functools.wraps(of.attribute)
        def attribute(self, inputs, target=None, *args, **kwargs):
            return fault(self.method.attribute, self, inputs, target, *args, **kwargs)

    Broken.__name__ = fault.__name__
    return Broken


def each(function, maps):
    """``function`` of the tensor, or of each in a list or tuple."""
    return type(maps)(each(function, one) for one in maps) if isinstance(maps, (list, tuple)) else function(maps)


def of_batch(call, method, inputs, *args, **kwargs):
    return each(lambda maps: maps - maps.mean(0, keepdim=True), call(inputs, *args, **kwargs))


def of_position_in_batch(call, method, inputs, *args, **kwargs):
    return each(
        lambda maps: maps * torch.arange(1, len(maps) + 1).reshape(-1, *[1] * (maps.dim() - 1)),
        call(inputs, *args, **kwargs),
    )


def wrong_values(call, method, *args, **kwargs):
    return each(lambda maps: maps * 1.000001, call(*args, **kwargs))


def wrong_shape(call, method, *args, **kwargs):
    return each(lambda maps: maps.transpose(2, -1), call(*args, **kwargs))


def keeps_the_graph(call, method, *args, **kwargs):
    return each(lambda maps: maps.clone().requires_grad_(), call(*args, **kwargs))


def first_channel_counts_twice(call, method, *args, **kwargs):
    terms = call(*args, **{**kwargs, "attr_dim_summation": False})
    if kwargs.get("attr_dim_summation", True):
        return each(lambda maps: maps.sum(1, keepdim=True) + maps[:, :1], terms)
    return terms


def first_row_counts_twice(call, method, *args, **kwargs):
    return each(
        lambda maps: maps * (1 + (torch.arange(maps.shape[-1]) == 0)).to(maps.dtype),
        call(*args, **kwargs),
    )


def sums_without_the_last_term(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return made if kwargs.get("attr_dim_summation", True) else each(lambda terms: terms[:, :-1], made)


def terms_of_twice_the_map(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return made if kwargs.get("attr_dim_summation", True) else each(lambda terms: 2 * terms, made)


def divides_by_the_channels(call, method, *args, **kwargs):
    terms = call(*args, **{**kwargs, "attr_dim_summation": False})
    return each(lambda maps: maps.mean(1, keepdim=True) if kwargs.get("attr_dim_summation", True) else maps, terms)


def not_a_number_where_constant(call, method, *args, **kwargs):
    return each(lambda maps: maps / maps.abs().amax((1, 2), keepdim=True), call(*args, **kwargs))


def in_half_precision(call, method, inputs, *args, **kwargs):
    return each(lambda maps: maps.to(inputs.dtype), call(inputs, *args, **kwargs))


def as_it_lies_in_memory(call, method, inputs, *args, **kwargs):
    with torch.no_grad():
        contiguous = inputs.is_contiguous() if isinstance(inputs, Tensor) else True
    return each(lambda maps: maps if contiguous else 2 * maps, call(inputs, *args, **kwargs))


def ignores_lists_of_targets(call, method, inputs, target=None, *args, **kwargs):
    return call(inputs, target[0] if isinstance(target, list) else target, *args, **kwargs)


def ignores_all_but_the_first_index(call, method, inputs, target=None, *args, **kwargs):
    if isinstance(target, list) and isinstance(target[0], tuple):
        target = [(one[0], 0) for one in target]
    return call(inputs, target, *args, **kwargs)


def wants_a_target(call, method, inputs, target=None, *args, **kwargs):
    if target is None:
        raise ValueError("give a target")
    return call(inputs, target, *args, **kwargs)


def takes_any_target(call, method, inputs, target=None, *args, **kwargs):
    target = target % 4 if isinstance(target, int) else target
    return call(inputs, target, *args, **kwargs)


def first_layer_alone(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return [made[0]] * len(made) if isinstance(made, list) else made


def layers_as_tuple(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return tuple(made) if isinstance(made, list) else made


def first_output_alone(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return made[0] if isinstance(made, tuple) else made


def tuple_for_a_tuple(call, method, inputs, *args, **kwargs):
    made = call(inputs, *args, **kwargs)
    return (made,) if isinstance(inputs, tuple) else made


def ignores_additional_arguments(call, method, inputs, target=None, additional_forward_args=None, *args, **kwargs):
    return call(inputs, target, *args, **kwargs)


def ignores_layer_input(call, method, *args, **kwargs):
    kwargs.pop("attribute_to_layer_input", None)
    return call(*args, **kwargs)


def ignores_relu(call, method, *args, **kwargs):
    kwargs.pop("relu_attributions", None)
    return call(*args, **kwargs)


def knows_modules_alone(call, method, *args, **kwargs):
    next(method.forward_func.parameters())
    return call(*args, **kwargs)


def wants_gradients_enabled(call, method, *args, **kwargs):
    assert torch.is_grad_enabled()
    return call(*args, **kwargs)


def left_in_evaluation_mode(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    if isinstance(method.forward_func, nn.Module):
        method.forward_func.eval()
    return made


def runs_in_training_mode(call, method, inputs, *args, **kwargs):
    with torch.no_grad():
        method.forward_func(inputs)
    return call(inputs, *args, **kwargs)


def leaves_a_hook(call, method, *args, **kwargs):
    method.layer.register_forward_hook(lambda *_: None)
    return call(*args, **kwargs)


def leaves_a_hook_after_an_error(call, method, *args, **kwargs):
    layer = method.layer[0] if isinstance(method.layer, list) else method.layer
    handle = layer.register_forward_hook(lambda *_: None)
    made = call(*args, **kwargs)
    handle.remove()
    return made


def draws_random_numbers(call, method, *args, **kwargs):
    torch.rand(1)
    return call(*args, **kwargs)


def depends_on_random_numbers(call, method, *args, **kwargs):
    with torch.random.fork_rng(devices=[]):
        return each(lambda maps: maps * torch.rand(1), call(*args, **kwargs))


def follows_autocast(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return each(lambda maps: maps.bfloat16().to(maps.dtype), made) if torch.is_autocast_enabled("cpu") else made


def knows_one_thread(call, method, *args, **kwargs):
    alone = threading.current_thread() is threading.main_thread()
    return each(lambda maps: maps if alone else 2 * maps, call(*args, **kwargs))


def writes_into_the_inputs(call, method, inputs, *args, **kwargs):
    made = call(inputs, *args, **kwargs)
    with torch.no_grad():
        inputs.mul_(2)
    return made


def thaws_parameters(call, method, *args, **kwargs):
    if isinstance(method.forward_func, nn.Module):
        method.forward_func.requires_grad_(True)
    return call(*args, **kwargs)


def wants_parameters_with_gradients(call, method, *args, **kwargs):
    assert all(p.requires_grad for p in method.layer.parameters())
    return call(*args, **kwargs)


def cannot_be_pickled(call, method, *args, **kwargs):
    method.used = lambda: None
    return call(*args, **kwargs)


def remembers_the_last_call(call, method, inputs, *args, **kwargs):
    method.calls = getattr(method, "calls", 0) + 1
    return each(lambda maps: maps * method.calls, call(inputs, *args, **kwargs))


def one_more_pass(call, method, inputs, *args, **kwargs):
    with torch.no_grad():
        method.forward_func(inputs)
    return call(inputs, *args, **kwargs)


def takes_empty_batches(call, method, inputs, *args, **kwargs):
    return torch.zeros(0) if len(inputs) == 0 else call(inputs, *args, **kwargs)


def puts_maps_on_the_cpu(call, method, *args, **kwargs):
    return each(lambda maps: maps.cpu(), call(*args, **kwargs))


def mixes_devices(call, method, *args, **kwargs):
    return each(lambda maps: maps + torch.zeros(maps.shape, dtype=maps.dtype), call(*args, **kwargs))


def forgets_the_place_of_a_target(call, method, inputs, target=None, *args, **kwargs):
    if isinstance(target, Tensor) and target.numel() == 1:
        inputs[target.reshape(-1) * 0 + torch.zeros(1, device=inputs.device).long()]
    return call(inputs, target, *args, **kwargs)


def uses_the_batch_size(call, method, *args, **kwargs):
    return each(lambda maps: maps * (1 + 1e-6 * (kwargs.get("internal_batch_size") or 0)), call(*args, **kwargs))


def asks_the_device_for_each_chunk(call, method, inputs, *args, **kwargs):
    for _ in range(64 // (kwargs.get("internal_batch_size") or 64)):
        float(inputs.sum())
    return call(inputs, *args, **kwargs)


def ignores_baselines(call, method, *args, **kwargs):
    kwargs.pop("baselines", None)
    return call(*args, **kwargs)


def leaves_baselines_where_they_are(call, method, inputs, *args, **kwargs):
    baselines = kwargs.get("baselines")
    if isinstance(baselines, tuple):
        inputs[0] - baselines[0]
    return call(inputs, *args, **kwargs)


def needs_a_differentiable_model(call, method, inputs, *args, **kwargs):
    with torch.enable_grad():
        assert method.forward_func(inputs).requires_grad
    return call(inputs, *args, **kwargs)


def blind_to_its_inputs(call, method, inputs, *args, **kwargs):
    return each(torch.ones_like, call(inputs, *args, **kwargs))


def changed_by_details(call, method, *args, **kwargs):
    made = call(*args, **kwargs)
    return (each(lambda maps: 2 * maps, made[0]), made[1]) if kwargs.get("return_details") else made


def loops(forward_func, layer, example, target, **arguments):
    return LayerDenoisedGradCam(forward_func, layer).attribute(example, target, **arguments)


FAULTS = [
    (of_batch, "batches"),
    (of_position_in_batch, "batches"),
    (wrong_values, "reference"),
    (wrong_shape, "shapes"),
    (keeps_the_graph, "shapes"),
    (first_channel_counts_twice, "permuted_channels"),
    (first_row_counts_twice, "flips"),
    (sums_without_the_last_term, "shapes"),
    (terms_of_twice_the_map, "terms"),
    (divides_by_the_channels, "constant_channels"),
    (not_a_number_where_constant, "constant_channels"),
    (in_half_precision, "half_precision"),
    (as_it_lies_in_memory, "memory_formats"),
    (ignores_lists_of_targets, "targets"),
    (ignores_all_but_the_first_index, "targets_of_more_dimensions"),
    (wants_a_target, "no_target"),
    (takes_any_target, "bad_targets"),
    (first_layer_alone, "lists_of_layers"),
    (layers_as_tuple, "lists_of_layers"),
    (first_output_alone, "layers_of_several_outputs"),
    (tuple_for_a_tuple, "tuples_of_inputs"),
    (ignores_additional_arguments, "tuples_of_inputs"),
    (ignores_layer_input, "layer_inputs"),
    (ignores_relu, "relu"),
    (knows_modules_alone, "functions"),
    (wants_gradients_enabled, "no_gradients"),
    (left_in_evaluation_mode, "training_mode"),
    (runs_in_training_mode, "training_mode"),
    (leaves_a_hook, "training_mode"),
    (leaves_a_hook_after_an_error, "state_after_errors"),
    (draws_random_numbers, "random_numbers"),
    (depends_on_random_numbers, "random_numbers"),
    (one_more_pass, "kept_tensors"),
    (follows_autocast, "surroundings"),
    (knows_one_thread, "threads"),
    (writes_into_the_inputs, "untouched_inputs"),
    (thaws_parameters, "training_mode"),
    (wants_parameters_with_gradients, "in_place_and_frozen"),
    (one_more_pass, "pass_counts"),
    (takes_empty_batches, "bad_inputs"),
    (puts_maps_on_the_cpu, "devices"),
    (mixes_devices, "devices"),
    (forgets_the_place_of_a_target, "devices"),
    (blind_to_its_inputs, "sensitivity"),
]
FAULTS_OF_PASSES = [
    (uses_the_batch_size, "batch_sizes"),
    (asks_the_device_for_each_chunk, "synchronisations"),
    (ignores_baselines, "baselines"),
    (leaves_baselines_where_they_are, "devices"),
    (needs_a_differentiable_model, "no_gradients"),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS)
def test_a_fault_is_found_by_the_check_meant_for_it(fault, check):
    traits = Traits(masked_passes=lambda live: 0)
    check_layer_method(LayerDenoisedGradCam, loops, traits, [check])
    with pytest.raises(AssertionError, match=f"^{fault.__name__}, {check}: "):
        check_layer_method(broken(fault), loops, traits, [check])


@pytest.mark.parametrize(("fault", "check"), FAULTS_OF_PASSES)
def test_a_fault_of_a_method_with_masked_passes_is_found(fault, check):
    traits = Traits(uses_gradients=False)
    check_layer_method(LayerScoreCam, None, traits, [check])
    with pytest.raises(AssertionError, match=f"^{fault.__name__}, {check}: "):
        check_layer_method(broken(fault, LayerScoreCam), None, traits, [check])


class Picklable(LayerAttribution):
    """Can be found by its name, as pickling wants, and does what its ``fault`` says."""

    fault = staticmethod(lambda call, method, *args, **kwargs: call(*args, **kwargs))

    def __init__(self, forward_func, layer, device_ids=None):
        super().__init__(forward_func, layer, device_ids)

    def attribute(self, *args, **kwargs):
        return self.fault(LayerDenoisedGradCam(self.forward_func, self.layer).attribute, self, *args, **kwargs)


@pytest.mark.parametrize("fault", [cannot_be_pickled, remembers_the_last_call])
def test_what_using_a_method_leaves_in_it_is_found(fault, monkeypatch):
    check_layer_method(Picklable, checks=["pickling"])
    monkeypatch.setattr(Picklable, "fault", staticmethod(fault))
    with pytest.raises(AssertionError, match=r"^Picklable, pickling: "):
        check_layer_method(Picklable, checks=["pickling"])


def test_a_signature_that_captums_calls_do_not_fit_is_found():
    class Other(LayerAttribution):
        def attribute(self, inputs, label=None):
            return inputs

    with pytest.raises(AssertionError, match="signature: attribute's positional arguments are"):
        check_layer_method(Other, checks=["signature"])
    with pytest.raises(AssertionError, match="lacks Captum's log_usage"):
        check_layer_method(without_log_usage(), checks=["signature"])


def without_log_usage():
    class Plain(LayerAttribution):
        def attribute(
            self,
            inputs,
            target=None,
            additional_forward_args=None,
            attribute_to_layer_input=False,
            relu_attributions=False,
            attr_dim_summation=True,
        ):
            return inputs

    return Plain


def test_details_that_change_the_map_are_found():
    with pytest.raises(AssertionError, match=r"^changed_by_details, details: "):
        check_layer_method(broken(changed_by_details, LayerUnionCam), checks=["details"])


def test_targets_in_the_wrong_order_are_found():
    class Reversed(broken(one_more_pass)):
        def attribute_targets(self, inputs, targets):
            return self.method.attribute_targets(inputs, targets).flip(1)

    with pytest.raises(AssertionError, match=r"^Reversed, targets_in_one_call: targets \[\[0, 3\]"):
        check_layer_method(Reversed, checks=["targets_in_one_call"])


def test_what_captums_noise_tunnel_cannot_call_is_found():
    with pytest.raises(AssertionError, match=r"noise_tunnel: NoiseTunnel, nt_type='smoothgrad'"):
        check_layer_method(without_log_usage(), checks=["noise_tunnel"])


def test_every_check_is_tried():
    tried = {check for _, check in (*FAULTS, *FAULTS_OF_PASSES)}
    others = {"pickling", "signature", "details", "targets_in_one_call", "noise_tunnel", "layers_by_name"}
    assert tried | others == set(LAYER_CHECKS)


def test_a_check_that_does_not_apply_is_left_out():
    method = broken(first_row_counts_twice)
    check_layer_method(method, traits=Traits(without=("flips",)), checks=["flips"])
    with pytest.raises(AssertionError, match="flips"):
        check_layer_method(method, checks=["flips"])


def test_captums_own_method_keeps_much_of_it():
    passed = []
    for name in LAYER_CHECKS:
        try:
            check_layer_method(LayerGradCam, checks=[name])
        except AssertionError:
            continue
        passed.append(name)
    assert {"batches", "terms", "flips", "targets", "bad_targets", "functions", "devices"} <= set(passed)
    assert not {"training_mode", "lists_of_layers", "layers_by_name", "half_precision"} & set(passed)


def test_the_random_state_of_the_caller_is_kept():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_layer_method(LayerDenoisedGradCam, checks=["shapes", "noise_tunnel"])
    assert torch.equal(torch.get_rng_state(), before)


PLACES = ("cpu", "cuda:0", "cuda:1")


@pytest.mark.parametrize("operation", [torch.add, torch.matmul, lambda a, b: torch.cat([a, b]), torch.Tensor.add_])
@pytest.mark.parametrize(("one", "other"), list(itertools.product(PLACES, PLACES)))
def test_devices_agree_or_the_operation_is_refused(one, other, operation):
    devices = PretendedDevices()
    a, b = devices.put(torch.rand(2, 2), one), devices.put(torch.rand(2, 2), other)
    with devices.active():
        if one == other:
            made = operation(a, b)
            assert str(made.device) == one
            assert made.is_cuda is (one != "cpu")
        else:
            with pytest.raises(RuntimeError, match="device"):
                operation(a, b)
            assert str(operation(a, b.to(one)).device) == str(operation(a, b.to(a)).device) == one


MASK = torch.tensor([True, False, True, True])
TAKEN_BY_CUDA = [
    lambda x, put: x * put(torch.tensor(2.0)),
    lambda x, put: put(torch.tensor(2.0)) - x,
    lambda x, put: torch.where(x > 0.5, x, put(torch.tensor(2.0))),
    lambda x, put: x.masked_fill(x > 0.5, put(torch.tensor(2.0))),
    lambda x, put: x.clone().fill_(put(torch.tensor(2.0))),
    lambda x, put: x[put(torch.tensor([0, 2]))],
    lambda x, put: x[put(MASK)],
    lambda x, put: x.clone().index_put_((put(MASK),), x[:3]),
    lambda x, put: x.clone().copy_(put(torch.rand(4, 3))),
]
REFUSED_BY_CUDA = [
    lambda x, put: x + put(torch.rand(4, 3)),
    lambda x, put: x.gather(0, put(torch.tensor([[0, 1, 2]]))),
    lambda x, put: x.index_select(0, put(torch.tensor([0, 2]))),
    lambda x, put: x.index_select(0, put(torch.tensor(1))),
    lambda x, put: torch.stack([x.sum(), put(torch.tensor(2.0))]),
    lambda x, put: x.clone().index_put_((put(MASK),), put(torch.rand(3, 3))),
    lambda x, put: x.masked_select(put(MASK).reshape(4, 1)),
    lambda x, put: torch.equal(x, put(torch.rand(4, 3))),
    lambda x, put: put(torch.tensor(2.0)).add_(x.sum()),
    lambda x, put: put(torch.rand(4, 3))[x.new_zeros(2).long()],
    lambda x, put: torch.nn.functional.linear(x, put(torch.rand(2, 3))),
    lambda x, put: torch.nn.functional.conv1d(x[None], put(torch.rand(1, 4, 1))),
]


@pytest.mark.parametrize("operation", TAKEN_BY_CUDA)
def test_what_cuda_takes_from_the_cpu_is_taken(operation):
    devices = PretendedDevices()
    values = devices.put(torch.rand(4, 3), "cuda:1")
    with devices.active():
        assert str(operation(values, lambda x: devices.put(x, "cpu")).device) == "cuda:1"


@pytest.mark.parametrize("operation", REFUSED_BY_CUDA)
@pytest.mark.parametrize("other", ["cpu", "cuda:0"])
def test_what_cuda_refuses_is_refused(operation, other):
    devices = PretendedDevices()
    values = devices.put(torch.rand(4, 3), "cuda:1")
    with devices.active():
        operation(values, lambda x: devices.put(x, "cuda:1"))
        with pytest.raises(RuntimeError):
            operation(values, lambda x: devices.put(x, other))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks CUDA itself")
def test_cuda_takes_and_refuses_what_is_said_of_it():
    values = torch.rand(4, 3, device="cuda")
    for operation in TAKEN_BY_CUDA:
        assert operation(values, lambda x: x).is_cuda
    for operation in REFUSED_BY_CUDA:
        with pytest.raises(RuntimeError):
            operation(values, lambda x: x)


@pytest.mark.parametrize("operation", [*TAKEN_BY_CUDA[:3], *TAKEN_BY_CUDA[5:7]])
def test_numbers_and_indices_of_another_gpu_are_refused(operation):
    devices = PretendedDevices()
    values = devices.put(torch.rand(4, 3), "cuda:1")
    with devices.active(), pytest.raises(RuntimeError):
        operation(values, lambda x: devices.put(x, "cuda:0"))


def test_what_is_on_a_gpu_is_no_array():
    devices = PretendedDevices()
    with devices.active(), pytest.raises(TypeError, match="can't convert cuda:1"):
        devices.put(torch.rand(2), "cuda:1").numpy()


@pytest.mark.parametrize(
    ("move", "place"),
    [
        (lambda x: x.to("cuda"), "cuda:0"),
        (lambda x: x.to("cuda:1", torch.float32), "cuda:1"),
        (lambda x: x.to(device=torch.device("cuda", 1)), "cuda:1"),
        (lambda x: x.to(torch.float32), "cuda:2"),
        (lambda x: x.cuda(), "cuda:0"),
        (lambda x: x.cuda(1), "cuda:1"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.type_as(x.to("cuda:1")), "cuda:1"),
        (lambda x: torch.as_tensor(x, device="cuda:1"), "cuda:1"),
    ],
)
def test_moves_arrive_and_gradients_come_back(move, place):
    devices = PretendedDevices()
    values, expected = devices.put(torch.rand(3, dtype=torch.float64), "cuda:2").requires_grad_(), torch.rand(3)
    with devices.active():
        moved = move(values)
        assert str(moved.device) == place
        (gradient,) = torch.autograd.grad((moved * devices.put(expected, place)).sum(), values)
        assert str(gradient.device) == "cuda:2"
        assert torch.equal(gradient, devices.put(expected.double(), "cuda:2"))


def test_what_is_made_is_where_it_was_asked_for():
    devices = PretendedDevices()
    values = devices.put(torch.rand(3), "cuda:1")
    with devices.active():
        for made in (
            torch.zeros(2, device="cuda:0"),
            torch.tensor([1], device="cuda"),
            values.new_zeros(2, device="cuda:0"),
        ):
            assert str(made.device) == "cuda:0"
        for made in (torch.zeros_like(values), values.new_ones(2), torch.empty_like(values).fill_(1)):
            assert str(made.device) == "cuda:1"
        for made in (torch.arange(3), torch.zeros_like(values, device="cpu")):
            assert str(made.device) == "cpu"


def test_any_two_parts_of_a_call_are_on_each_pair_of_devices():
    for columns in itertools.combinations(zip(*MIXES, strict=True), 2):
        assert len(set(zip(*columns, strict=True))) == 9


def test_gradients_are_where_their_tensors_are():
    devices = PretendedDevices()
    net, inputs = TinyNet(), devices.put(tiny_inputs(), "cuda:1").requires_grad_()
    devices.place(net, "cuda:1")
    with devices.active():
        (gradient,) = torch.autograd.grad(net(inputs).sum(), inputs)
        assert str(gradient.device) == "cuda:1"
    assert not devices.synchronisations


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(x.shape).copy_(x),
        lambda x: torch.as_tensor(x, device="cpu"),
        lambda x: torch.equal(x, x),
        # Copies from pageable memory.
        lambda x: torch.zeros(2).to(x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.as_tensor(2.0, device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.copy_(torch.zeros(3, 2)),
        lambda x: x[torch.tensor([0, 2])],
    ],
)
def test_what_blocks_the_host_is_counted(question):
    devices = PretendedDevices()
    on_cuda, on_cpu = (devices.put(torch.rand(3, 2), device) for device in ("cuda:0", "cpu"))
    with devices.active():
        question(on_cuda)
        assert devices.synchronisations == 1
        question(on_cpu)
        on_cuda.sum(1).relu().to("cuda:1")
        torch.full((), 2.0, device="cuda:0")
        on_cuda.to("cpu", non_blocking=True)
        on_cpu.to("cuda:0", non_blocking=True)
        on_cuda[0] = 2.0
        assert devices.synchronisations == 1


def test_there_is_no_float64_on_mps():
    devices = PretendedDevices()
    values = devices.put(torch.rand(3), "mps")
    with devices.active():
        assert str((2 * values).device) == "mps:0"
        for question in (Tensor.double, lambda x: x.to(torch.float64), lambda x: x.new_zeros(2, dtype=torch.float64)):
            with pytest.raises(TypeError, match="float64"):
                question(values)


def test_autocast_has_its_effect_on_an_accelerator():
    devices, net = PretendedDevices(), TinyNet().float()
    devices.place(net, "cuda:0")
    here = devices.put(tiny_inputs().float(), "cuda:0")
    with devices.active():
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cuda", dtype=dtype):
                assert net(here).dtype == dtype
                assert TinyNet().float()(tiny_inputs().float()).dtype == torch.float32
        assert net(here).dtype == torch.float32
