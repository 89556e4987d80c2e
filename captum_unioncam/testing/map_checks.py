"""Checks of the maps: their shapes and values, and what must not change them."""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from captum_unioncam.testing.contract import Subject, given, layer_check, raised_by, require, require_same
from captum_unioncam.testing.networks import CHANNELS, Alarm, Dead, FlippableNet, WithChannels, tiny_inputs

TARGETS = [0, 2, 3]


@layer_check
def shapes(subject: Subject) -> None:
    """(N, 1, *spatial) or (N, K, *spatial), of the layer's output or input, finite, and in the inputs' precision."""
    for ndim in subject.traits.spatial_dims:
        net, inputs = subject.net(ndim), tiny_inputs(ndim)
        output, layer_input = net.features(inputs), net.features[:-1](inputs)
        for of_input, channels in ((False, output), (True, layer_input)):
            for summed in subject.summations:
                with given(f"{ndim}-D, attribute_to_layer_input={of_input}, attr_dim_summation={summed}"):
                    layer = net.features[-1] if of_input else net.features
                    attr = subject.explain(net, layer, inputs, TARGETS, None, of_input, attr_dim_summation=summed)
                    size = (inputs if subject.traits.at_input_size else channels).shape[2:]
                    expected = (len(inputs), 1 if summed else channels.shape[1], *size)
                    require(attr.shape == expected, f"the result has shape {tuple(attr.shape)}, not {expected}")
                    require(attr.dtype == inputs.dtype, f"the result is of {attr.dtype}, the inputs of {inputs.dtype}")
                    require(bool(attr.isfinite().all()), "the result is not finite")
                    require(bool((attr != 0).any()), "the result is all zeros")
                    require(not attr.requires_grad, "the result requires gradients")


@layer_check
def layer_inputs(subject: Subject) -> None:
    """What a layer is given, with ``attribute_to_layer_input``, is what the layer in front of it made."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, inputs, TARGETS)
    with given("attribute_to_layer_input=True"):
        made = subject.explain(net, net.head, inputs, TARGETS, attribute_to_layer_input=True)
        require_same(made, expected, "of the output of the layer in front")
    with given("attribute_to_layer_input=True and the model's first layer"):
        made = subject.explain(net, net.features, inputs, TARGETS, attribute_to_layer_input=True)
        require(made.shape == (3, 1, *inputs.shape[2:]), f"the result has shape {tuple(made.shape)}")


@layer_check
def relu(subject: Subject) -> None:
    """``relu_attributions`` sets what is negative to 0, and changes nothing else."""
    net, inputs = subject.net(subject.ndim, nn.Tanh()), tiny_inputs(subject.ndim)
    for summed in subject.summations:
        with given(f"relu_attributions, attr_dim_summation={summed}"):
            plain, clipped = (
                subject.explain(net, net.features, inputs, TARGETS, relu_attributions=clip, attr_dim_summation=summed)
                for clip in (False, True)
            )
            require_same(clipped, plain.relu(), "without relu_attributions, clipped at 0")


@layer_check
def reference(subject: Subject) -> None:
    """Equals the reference, one example at a time, on drawn networks."""
    if subject.reference is None:
        return
    for ndim in subject.traits.spatial_dims:
        for seed, activation in product(range(2), (nn.ReLU(), nn.SiLU(), nn.Tanh())):
            with given(f"{subject.traits.network.__name__}({ndim}, {activation}, seed={seed})"):
                net, inputs = subject.net(ndim, activation, seed=seed), tiny_inputs(ndim, seed=seed)
                made = subject.explain(net, net.features, inputs, TARGETS)
                subject.require_reference(made, net, net.features, inputs, TARGETS)


@layer_check
def batches(subject: Subject) -> None:
    """An example has the same map alone, in another order, and in a larger batch."""
    net, inputs = subject.net(subject.ndim, nn.SiLU(), batch_norm=True), tiny_inputs(subject.ndim, examples=5)
    gains = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).reshape(-1, *[1] * (inputs.dim() - 1))
    baselines, targets = 0.3 * inputs.flip(0), torch.tensor([0, 3, 1, 1, 2])

    def forward(x: Tensor, gain: Tensor, scale: float) -> Any:
        return net(x * gain) * scale

    def explained(rows: list[int]) -> Tensor:
        own = {"baselines": baselines[rows]} if subject.takes("baselines") else {}
        made: Tensor = subject.explain(forward, net.features, inputs[rows], targets[rows], (gains[rows], 2.0), **own)
        return made

    whole = explained([0, 1, 2, 3, 4])
    for rows in ([0], [3], [4, 3, 2, 1, 0], [1, 4], [2, 0, 1, 2, 4, 3, 2]):
        with given(f"the examples {rows} of a batch of 5"):
            require_same(explained(rows), whole[rows], "in the whole batch")


@layer_check
def permuted_channels(subject: Subject) -> None:
    """With the layer's channels in another order the map is the same, and its terms are in that order."""
    net, inputs, order = subject.net(subject.ndim), tiny_inputs(subject.ndim), [3, 0, 4, 2, 1]
    permuted = WithChannels(net, order)
    for summed in subject.summations:
        with given(f"channels in the order {order}, attr_dim_summation={summed}"):
            plain, made = (
                subject.explain(of, of.features, inputs, TARGETS, attr_dim_summation=summed) for of in (net, permuted)
            )
            require_same(made, plain if summed else plain[:, order], "of the channels in their own order")


@layer_check
def flips(subject: Subject) -> None:
    """The mirror image of an input has the mirrored map, if the network makes no difference."""
    for ndim in subject.traits.spatial_dims:
        net, inputs = FlippableNet(ndim), tiny_inputs(ndim)
        attr = subject.explain(net, net.features, inputs, TARGETS)
        for dim in range(2, 2 + ndim):
            with given(f"{ndim}-D inputs flipped in dimension {dim}"):
                flipped = subject.explain(net, net.features, inputs.flip(dim), TARGETS)
                require_same(flipped, attr.flip(dim), "of the inputs, flipped")


@layer_check
def terms(subject: Subject) -> None:
    """The terms sum to the map, or to the map and a constant for each example, or are refused."""
    if subject.traits.terms == "none":
        alarm = Alarm(armed=True)
        error = raised_by(lambda: subject.explain(alarm, alarm, tiny_inputs(subject.ndim), 1, attr_dim_summation=False))
        named = isinstance(error, ValueError) and str(error).startswith("attr_dim_summation")
        require(named, f"given attr_dim_summation=False, {error!r} was raised, not a ValueError that names it")
        return
    for activation in (nn.ReLU(), nn.SiLU(), nn.Tanh()):
        with given(f"{type(activation).__name__} features and attr_dim_summation=False"):
            net, inputs = subject.net(subject.ndim, activation), tiny_inputs(subject.ndim, examples=6)
            attr, each = (
                subject.explain(net, net.features, inputs, 1, attr_dim_summation=summed)
                for summed in subject.summations
            )
            total = each.sum(1, keepdim=True)
            if subject.traits.terms == "map plus a constant":
                total = total + (attr - total).flatten(1).mean(1).reshape(-1, *[1] * (attr.dim() - 1))
            require_same(total, attr, f"that the terms sum to ({subject.traits.terms})")


@layer_check
def constant_channels(subject: Subject) -> None:
    """Channels that are dead or constant, and that the model ignores, change nothing; a layer of them is no error."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    attr = subject.explain(net, net.features, inputs, TARGETS)
    widened = WithChannels(net, list(range(CHANNELS)), (0.0, 3.7))
    with given("further channels of 0 and 3.7 everywhere"):
        require_same(subject.explain(widened, widened.features, inputs, TARGETS), attr, "without these channels")
    for value in (0.0, 3.7):
        dead = subject.net(subject.ndim, Dead(value))
        for summed in subject.summations:
            with given(f"a layer that is {value} everywhere, attr_dim_summation={summed}"):
                made = subject.explain(dead, dead.features, inputs, TARGETS, attr_dim_summation=summed)
                require(bool(made.isfinite().all()), "the map is not finite")


@layer_check
def half_precision(subject: Subject) -> None:
    """A model in bfloat16 or float16 has float32 maps, close to those in float64."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, inputs, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with given(f"a model and inputs of {dtype}"):
            made = subject.explain(net.to(dtype), net.features, inputs.to(dtype), 1)
            require(made.dtype == torch.float32, f"the map is of {made.dtype}, not torch.float32")
            if dtype is torch.float32:
                require_same(made, expected, "in float64", 1e-4)
            correlation = torch.corrcoef(torch.stack([made.flatten().double(), expected.flatten()]))[0, 1].item()
            least = subject.traits.half_precision
            require(correlation > least, f"the map is correlated {correlation:.4f} with float64's, not {least}")
            size = made.double().norm() / expected.norm()
            require(0.8 < size < 1.25, f"the map is {size:.2f} times as large as float64's")
        net = subject.net(subject.ndim)


@layer_check
def memory_formats(subject: Subject) -> None:
    """The map depends on what the inputs are, not on how they lie in memory."""
    for ndim in subject.traits.spatial_dims:
        net, inputs = subject.net(ndim), tiny_inputs(ndim)
        attr = subject.explain(net, net.features, inputs, TARGETS)
        others = {
            "transposed": inputs.transpose(1, -1).contiguous().transpose(1, -1),
            "every second value of a larger tensor": inputs.repeat_interleave(2, -1)[..., ::2],
        }
        if ndim > 1:
            last = torch.channels_last if ndim == 2 else torch.channels_last_3d
            others["channels-last"] = inputs.to(memory_format=last)
        for how, laid_out in others.items():
            with given(f"{ndim}-D inputs that are {how}"):
                require_same(subject.explain(net, net.features, laid_out, TARGETS), attr, "of contiguous inputs")
        with given("one example expanded to three"):
            expanded = subject.explain(net, net.features, inputs[:1].expand(inputs.shape), 2)
            alone = subject.explain(net, net.features, inputs[:1], 2)
            require_same(expanded, alone.expand(expanded.shape), "of the example alone")
