"""Traces the part of a model behind a layer, which the layer's output goes through."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import Module
from torch.nn.modules import module as global_hooks
from torch.utils._pytree import tree_leaves

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class UntraceableError(Exception):
    """No graph of the model could be made, or none whose rows are independent."""


class TracedTail:
    """What comes behind a layer, as a function of the layer's output and of the values that reach around the layer.

    The model's own code runs once, with ``torch.fx`` proxies in place of tensors. Only modules that the layer is within
    are looked into: any other is a node of the graph, whatever its code, and runs as it is. ``torch.fx.Tracer`` would
    patch ``torch.nn.Module`` meanwhile, for all threads.

    Args:
        model (Module): In evaluation mode.
        layer (Module): Called once in a pass.
        of_input (bool): Replace what the layer is given, and not what it makes.
        part (int): Which of the layer's input tensors.
        inputs (tuple): The arguments of a pass.
        has_rows (list[bool]): Which of them have one row an example.

    Raises:
        UntraceableError: The code asks for a tensor's values, calls the layer otherwise than once, or has hooks around
            it; its output does not depend on the layer; what reaches around the layer has no rows.
    """

    def __init__(
        self, model: Module, layer: Module, of_input: bool, part: int, inputs: tuple[Any, ...], has_rows: list[bool]
    ) -> None:
        self.modules = dict(model.named_modules())
        self.graph, self.inputs, self.tensors = _recorded(model, layer, inputs, has_rows)
        replaced = self._replaced(layer, of_input, part)
        self._of_rows = _reached(self.graph, self.inputs)
        self.nodes = _reached(self.graph, [replaced])
        (self.output,) = (node for node in self.graph.nodes if node.op == "output")
        if self.output not in self.nodes:
            raise UntraceableError("the output does not depend on the layer")
        self.arguments = [replaced]

    @property
    def convolves(self) -> bool:
        """Whether it holds a convolution of images."""
        called = [self.modules[node.target] for node in self.nodes if node.op == "call_module"]
        return any(isinstance(module, torch.nn.Conv2d) for one in called for module in one.modules())

    def values_around(self, inputs: Sequence[Any], examples: int) -> list[tuple[Any, bool]]:
        """The values that reach around the layer, and whether each has one row an example; further arguments.

        Sizes are taken again of each pass's rows, since they may count them.

        Args:
            inputs (Sequence): Those arguments of the model that have rows.
            examples (int): N.

        Raises:
            UntraceableError: A value of the examples has other dimensions in front.
        """
        while True:
            around = self._around()
            values = dict(zip(self.inputs, inputs, strict=True))
            self._run(_needed(self.graph, around), values, keep=around)
            sizes = [node for node in around if node in self._of_rows and not _tensors(values[node])]
            if not sizes:
                break
            self.nodes |= dict.fromkeys(sizes)
        self.arguments += around
        made = [(values[node], node in self._of_rows) for node in around]
        if any(x.shape[:1] != (examples,) for value, has_rows in made if has_rows for x in _tensors(value)):
            raise UntraceableError("what reaches around the layer has no rows")
        return made

    def __call__(self, *arguments: Any) -> Any:
        """The model's output, given the layer's in place of its own, and the values around."""
        values = dict(zip(self.arguments, arguments, strict=True))
        self._run([node for node in self.graph.nodes if node in self.nodes and node.op != "placeholder"], values)
        return values[self.output]

    def _replaced(self, layer: Module, of_input: bool, part: int) -> Node:
        """A new node in place of what the layer makes or is given."""
        calls = [n for n in self.graph.nodes if n.op == "call_module" and self.modules[n.target] is layer]
        if len(calls) != 1:
            raise UntraceableError(f"the layer is called {len(calls)} times")
        with self.graph.inserting_before(calls[0]):
            replaced = self.graph.placeholder("replaced")
        if of_input:
            given = [i for i, argument in enumerate(calls[0].args) if isinstance(argument, Node)]
            if part >= len(given):
                raise UntraceableError("the layer is given no such tensor")
            calls[0].update_arg(given[part], replaced)
        else:
            calls[0].replace_all_uses_with(replaced)
        return replaced

    def _around(self) -> list[Node]:
        given = dict.fromkeys(argument for node in self.nodes for argument in node.all_input_nodes)
        return [node for node in given if node not in self.nodes]

    def _run(self, nodes: list[Node], values: dict[Node, Any], keep: Iterable[Node] = ()) -> None:
        """Computes the nodes' values, and forgets each after its last use, unless it is to be kept."""
        last_use = {argument: node for node in nodes for argument in node.all_input_nodes}
        kept = set(keep)
        for node in nodes:
            if node not in values:
                values[node] = self._value(node, values)
            for argument in node.all_input_nodes:
                if last_use[argument] is node and argument not in kept:
                    del values[argument]

    def _value(self, node: Node, values: dict[Node, Any]) -> Any:
        target: Any = node.target
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        if node.op == "get_attr":
            return self.tensors[target]
        if node.op == "call_module":
            return self.modules[target](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return args[0] if node.op == "output" else target(*args, **kwargs)


def _recorded(
    model: Module, layer: Module, inputs: tuple[Any, ...], has_rows: list[bool]
) -> tuple[Graph, list[Node], dict[str, Tensor]]:
    """The model's graph, the nodes of its arguments that have rows, and the tensors of the modules looked into."""
    opened = [module for module in model.modules() if module is not layer and layer in set(module.modules())]
    if not opened:
        raise UntraceableError("the layer is not within the model")
    everywhere = global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks
    if any(everywhere) or any(getattr(module, hooks) for module in opened for hooks in _HOOKS):
        # They may be there to see tensors.
        raise UntraceableError("hooks would see proxies")
    graph = Graph()
    tracer = GraphAppendingTracer(graph)
    given = [
        tracer.create_proxy("placeholder", f"input_{i}", (), {}) if rows else value
        for i, (value, rows) in enumerate(zip(inputs, has_rows, strict=True))
    ]

    def call(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: tracer.create_proxy("call_module", name, args, kwargs)

    closed = {module: call(name) for name, module in model.named_modules() if module not in opened}
    try:
        with _attributes_kept(opened), _standing_in(closed):
            tensors = _as_proxies(opened, tracer)
            output = tracer.create_arg(model(*given))
    except Exception as error:
        # Code that cannot run with proxies fails in any way.
        raise UntraceableError(str(error)) from error
    graph.output(output)
    return graph, [node for node in graph.nodes if node.op == "placeholder"], tensors


def _as_proxies(modules: list[Module], tracer: GraphAppendingTracer) -> dict[str, Tensor]:
    """Puts proxies in the place of parameters and buffers, since methods of tensors take none: which are what."""
    found: dict[str, Tensor] = {}
    for registry in (registry for module in modules for registry in (module._parameters, module._buffers)):
        for name, tensor in registry.items():
            if tensor is not None:
                target = f"tensor_{len(found)}"
                found[target] = tensor
                registry[name] = tracer.create_proxy("get_attr", target, (), {})  # type: ignore[assignment]
    return found


@contextmanager
def _standing_in(calls: dict[Module, Callable[..., Any]]) -> Iterator[None]:
    """Has each module's forward replaced meanwhile, and its hooks off."""
    found = {
        module: {name: vars(module)[name] for name in ("forward", *_HOOKS) if name in vars(module)} for module in calls
    }

    def give_back() -> None:
        for module, attributes in found.items():
            vars(module).pop("forward", None)
            vars(module).update(attributes)

    try:
        try:
            for module, call in calls.items():
                vars(module).update(forward=call, **{name: type(vars(module)[name])() for name in _HOOKS})
            yield
        finally:
            give_back()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        give_back()


@contextmanager
def _attributes_kept(modules: list[Module]) -> Iterator[None]:
    """Gives the modules back what they keep, lists and dicts as they were: their code ran without tensors."""
    found = [(vars(module), dict(vars(module))) for module in modules]
    contents = [
        (kept, kept.copy()) for _, before in found for kept in before.values() if isinstance(kept, (list, dict))
    ]

    def give_back() -> None:
        for kept, before in contents:
            if _identities(kept) != _identities(before):
                kept.clear()
                kept.extend(before) if isinstance(kept, list) else kept.update(before)
        for attributes, before in found:
            for name in attributes.keys() - before.keys():
                del attributes[name]
            attributes.update(before)

    try:
        try:
            yield
        finally:
            give_back()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        give_back()


def _identities(kept: list[Any] | dict[Any, Any]) -> list[int]:
    # Tensors cannot be compared for being equal.
    return [id(value) for value in (kept.values() if isinstance(kept, dict) else kept)]


def _reached(graph: Graph, start: Iterable[Node]) -> dict[Node, None]:
    """The nodes of the start, and those that depend on them."""
    reached = dict.fromkeys(start)
    for node in graph.nodes:
        if any(argument in reached for argument in node.all_input_nodes):
            reached[node] = None
    return reached


def _needed(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """The nodes, and all that they depend on, in the order of the graph."""
    needed = set(nodes)
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
