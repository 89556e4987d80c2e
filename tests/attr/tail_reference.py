"""Building blocks of the references of methods that replace a layer's output: a hook, one row at a time."""

import torch


def layer_output(forward_func, layer, example):
    """What the layer makes of a batch of one, (1, K, *spatial)."""
    seen = []
    handle = layer.register_forward_hook(lambda _module, _args, output: seen.append(output.detach().clone()))
    try:
        with torch.no_grad():
            forward_func(example)
    finally:
        handle.remove()
    (output,) = seen
    return output


def output_with(forward_func, layer, example, replaced):
    """The model's output for a batch of one, with ``replaced`` (1, K, *spatial) for what the layer makes."""
    handle = layer.register_forward_hook(lambda _module, _args, _output: replaced.clone())
    try:
        with torch.no_grad():
            return forward_func(example)
    finally:
        handle.remove()
