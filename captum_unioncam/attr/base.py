"""What the attribution methods share: one template of ``attribute``, for methods with gradients and with masked passes.

A method is a subclass of ``GradientCam`` or ``PerturbationCam``, or of both. It says its equations in ``terms``,
``weights`` or ``cam``, whose keyword-only parameters become arguments of ``attribute``, and gets its ``name`` listed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from inspect import Parameter, signature
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, overload

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.find_layer import Layer, named_layers, other_layer_named
from captum_unioncam.engine._captum import (
    BaselineType,
    GradientAttribution,
    LayerAttribution,
    PerturbationAttribution,
    TargetType,
    format_additional_forward_args,
    format_output,
    format_tensor_into_tuples,
    log_usage,
)
from captum_unioncam.engine.capture import LayerCall, OfLayers
from captum_unioncam.engine.checks import check_flag, check_function, check_grad_kwargs, check_inputs, check_layer
from captum_unioncam.engine.confidence import ConfidenceFunction, OutputFunction
from captum_unioncam.engine.copies import CopyPasses, GradientCopies
from captum_unioncam.engine.independence import ROWS, check_independent_rows
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.map_check import check_maps
from captum_unioncam.engine.maps import clipped, weighted
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.rows import DependentRows, check_model_rows, rows_of
from captum_unioncam.engine.scoring import MaskedScorer, TargetPasses
from captum_unioncam.engine.tail import TailPasses, TailScorer
from captum_unioncam.engine.tuning import PassTuner, out_of_memory
from captum_unioncam.system.documents import class_document, specialised

LayerT = TypeVar("LayerT", bound=Layer | Sequence[Any], covariant=True)
Inputs = Tensor | tuple[Tensor, ...]
Targets = Tensor | list[list[int]] | list[list[tuple[int, ...]]]
CamResult = tuple[Tensor, Any]
"""The attributions of one layer output and one target, and how they came about."""

Captured = tuple[OfLayers, Callable[[int, int, int], dict[str, Any]]]
"""The activations of each output of each layer; and the numbers of layer, output and target to what else equations get.
"""

CAMS: dict[str, type[CamAttribution[Any]]] = {}
"""The methods by name, in the order in which they were defined."""


@dataclass(frozen=True)
class CamDetails:
    """How maps came about, of one target or, stacked along dimension 1, of several. Fields are tensors (N, ...)."""

    @classmethod
    def stacked(cls, of_targets: Sequence[Self]) -> Self:
        """The details of T targets as one, each tensor (N, T, ...)."""
        return cls(**{f.name: torch.stack([getattr(one, f.name) for one in of_targets], 1) for f in fields(cls)})

    def of_example(self, n: int) -> Self:
        """The details of example ``n``, as of a batch of one."""
        return replace(self, **{f.name: getattr(self, f.name)[n : n + 1] for f in fields(self)})

    def of_target(self, t: int) -> Self:
        """The details of target ``t``, where they are of several."""
        return replace(self, **{f.name: getattr(self, f.name)[:, t] for f in fields(self)})


def _attribute(given: dict[str, Any]) -> Any:
    """A method's ``attribute``, of all its arguments by name."""
    method, target = given.pop("self"), given.pop("target")
    return method._explain([target], lambda of_targets: of_targets[0], **given)


class CamAttribution(LayerAttribution, Generic[LayerT]):
    r"""
    A class activation map: the sum of terms, one for each channel of a layer.

    Results do not depend on batch composition. The model runs in evaluation mode. Its modes, hooks, gradients, buffers
    and tensors, and the random state, are restored afterwards, and every pass starts from the same state. Passes run in
    the model's own precision; an autocast or inference mode around the call has no effect on them. If several threads
    use one module, their calls run one after the other; a ``forward_func`` that is not a module runs alone.

    Args:
        forward_func (Callable): The model, or a function of it.
        layer (torch.nn.Module, str or list): The layer to explain, with an output of shape (N, K, \*spatial) of one to
            three spatial dimensions; usually the last convolution, with its activation function. A dotted name is
            looked up in the model. For a list, each layer is explained; ``fuse`` combines the maps.
        device_ids (list[int] or None): The devices of a ``DataParallel`` model that ``forward_func`` wraps.
            Default: None
        reshape_transform (Callable or None): Converts each tensor of the layer's output to (N, K, \*spatial). It is
            applied to gradients too, so it may only move or omit values: ``tokens_to_maps(14, 14)``,
            ``channels_last_to_maps``, or your own function. Default: None, found for tokens and channels-last outputs;
            other outputs are used as they are. If the output's size is not the input's divided by one stride, a few
            more passes check whether it consists of maps
        output_fn (Callable or None): Converts what ``forward_func`` returns to the tensor that ``target`` indexes, such
            as ``lambda output: output[0]``. Default: None, the tensor itself; of a tuple, dict or dataclass the tensor
            named "logits" or "out", or else the only one with one row per example
    """

    name: ClassVar[str]
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """More names under which the method is listed, each with the arguments of ``attribute`` that it stands for."""
    relu: ClassVar[bool] = False
    """Whether the map is the ReLU of the sum."""
    has_terms: ClassVar[bool] = True
    """Whether the map is a sum over the channels, so that there is something to return without the sum."""
    made_of: ClassVar[tuple[type[CamAttribution[Any]], ...]] = ()
    """Methods whose arguments this one has, and which document them."""
    gives_details: ClassVar[bool] = False
    """Whether ``cam`` returns :class:`CamDetails`."""
    has_own_baselines: ClassVar[bool] = False
    """Whether masked-out places show the method's own baseline, and not black, where the method is run by its name."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: LayerT,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        output_fn: OutputFunction | None = None,
    ) -> None:
        check_function("forward_func", forward_func, optional=False)
        check_function("reshape_transform", reshape_transform)
        check_function("output_fn", output_fn)
        check_layer(layer)
        LayerAttribution.__init__(self, forward_func, named_layers(layer, forward_func), device_ids)
        for kind in (GradientAttribution, PerturbationAttribution):
            if isinstance(self, kind):
                kind.__init__(self, forward_func)
        self.reshape_transform = reshape_transform
        self.output_fn = output_fn

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls._register()
        if "attribute" not in cls.__dict__:
            template: Any = CamAttribution.attribute
            equations = cls._equations()
            parts: list[Callable[..., Any]] = [cls._captured, equations, cls._passes]
            shared = [template, *(method._equations() for method in cls.made_of), cls._captured, cls._passes]
            hidden = () if cls.gives_details else ("return_details",)
            own = specialised(template, _attribute, parts, [*shared, equations], hidden)
            own.__module__, own.__qualname__ = cls.__module__, f"{cls.__qualname__}.attribute"
            own.__name__ = "attribute"
            # NoiseTunnel needs what Captum's decorator leaves.
            cls.attribute = log_usage(part_of_slo=True)(own)  # type: ignore[method-assign]
        cls.__doc__ = class_document(cls)

    @classmethod
    def _register(cls) -> None:
        for name in (cls.name, *cls.__dict__.get("variants", ())):
            known = CAMS.get(name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"name: {name!r} is that of {known.__module__}.{known.__qualname__}; give another.")
            CAMS[name] = cls

    @classmethod
    def _equations(cls) -> Callable[..., Any]:
        """The function that the method defines, and whose keyword-only parameters are its own arguments."""
        defined = (n for n in ("cam", "terms", "weights") if getattr(cls, n) is not getattr(CamAttribution, n))
        equations: Callable[..., Any] = getattr(cls, next(defined, "weights"))
        return equations

    @overload
    def attribute(
        self: CamAttribution[Layer],
        inputs: Inputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *args: Any,
        **options: Any,
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *args: Any,
        **options: Any,
    ) -> list[Tensor]: ...

    def attribute(
        self,
        inputs: Inputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *args: Any,
        return_details: bool = False,
        **options: Any,
    ) -> Any:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor. At least one has as
                many spatial dimensions as the layer's output.
            target (int, tuple, Tensor, list or None): The output to explain, as in ``LayerGradCam``. Default: None
            additional_forward_args (Any): Further arguments of ``forward_func``. A tensor of N rows is split into one
                row per example. If a value for all examples happens to have N rows, put it into a closure. Default:
                None
            attribute_to_layer_input (bool): Explain the layer's input instead of its output. Default: False
            relu_attributions (bool): Set negative attributions to 0. Default: False
            attr_dim_summation (bool): Return the map, the sum over the channels. If False, return the terms of the sum,
                one per channel. Default: True
            return_details (bool): Return a pair, the attributions and the intermediate results. Default: False

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: The maps (N, 1, \*spatial), float32 for half-precision models;
            (N, K, \*spatial) with ``attr_dim_summation=False``; a tuple if the layer has several output tensors; a list
            with one entry per layer for a list of layers. Details have the same form.

        Raises:
            ValueError: A layer without a spatial output, no input with as many spatial dimensions, an empty batch or
                list of layers, or activations that are not finite.
            AssertionError: A target that does not fit the output, as in Captum.
        """
        raise NotImplementedError("Each method has its own, of these arguments and further ones.")

    @overload
    def attribute_targets(
        self: CamAttribution[Layer],
        inputs: Inputs,
        targets: Targets,
        additional_forward_args: Any = None,
        **kwargs: Any,
    ) -> Tensor: ...

    @overload
    def attribute_targets(
        self, inputs: Inputs, targets: Targets, additional_forward_args: Any = None, **kwargs: Any
    ) -> list[Tensor]: ...

    def attribute_targets(
        self, inputs: Inputs, targets: Targets, additional_forward_args: Any = None, **kwargs: Any
    ) -> Any:
        r"""
        Explains several targets of each example.

        Masks do not depend on the target: the channels' masked passes are run once for all targets, so several targets
        take little more time than one.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As in ``attribute``.
            targets (Tensor or list): T targets of each of the N examples: an int64 tensor (N, T), or N lists of T
                integers, or of T tuples for outputs of more dimensions.
            additional_forward_args (Any): As in ``attribute``. Default: None
            **kwargs: Any other argument of ``attribute``.

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: What T calls of ``attribute`` would return, stacked along
            dimension 1: (N, T, 1, \*spatial). Details are stacked too; see ``UnionCamDetails``.

        Raises:
            ValueError: ``targets`` that are not T for each of the N examples; and as ``attribute``.
            AssertionError: As ``attribute``.

        Examples::

            >>> top = model(images).topk(5).indices  # (N, 5)
            >>> cam = LayerUnionCam(model, model.features[28])
            >>> attr = cam.attribute_targets(images, top)  # (N, 5, 1, 14, 14)
        """
        kwargs["additional_forward_args"] = additional_forward_args
        return explain_targets(self, _stacked, inputs, targets, kwargs)

    def check(self, *args: Any, **kwargs: Any) -> None:
        """Raises ``ValueError`` for arguments of the method's own that it cannot take, before any forward pass."""

    def check_for(self, *args: Any, **kwargs: Any) -> None:
        """Raises ``ValueError`` for arguments of the method's own that do not fit ``inputs``, before any pass."""

    def weights(self, *args: Any, **kwargs: Any) -> Tensor:
        """The channels' weights (N, K), of a method whose terms are these times the activations."""
        raise NotImplementedError(f"{type(self).__name__}: define weights, terms or cam.")

    def terms(self, *args: Any, **kwargs: Any) -> Tensor:
        """The terms (N, K, *spatial) of the sum that is the map."""
        return weighted(self.weights(**kwargs), kwargs["activations"])

    def cam(self, *args: Any, **kwargs: Any) -> CamResult:
        """The map (N, 1, *spatial), or if not ``summed`` its terms (N, K, *spatial), and how it came about."""
        summed = kwargs.pop("summed")
        terms = self.terms(**kwargs)
        terms = clipped(terms) if self.relu else terms
        return (terms.sum(1, keepdim=True) if summed else terms), self.details(**kwargs)

    def details(self, *args: Any, **kwargs: Any) -> CamDetails | None:
        """How the map of ``terms`` came about, given what these get; None where the method does not say."""
        return None

    def _explain(
        self,
        targets: Sequence[TargetType],
        join: Callable[[list[CamResult]], CamResult],
        *,
        inputs: Inputs,
        additional_forward_args: Any,
        argument: str = "target",
        **given: Any,
    ) -> Any:
        """The template: each layer output explained for each target, in the form in which Captum returns it."""
        for name, parameter in _parameters(type(self).attribute).items():
            if isinstance(parameter.default, bool):
                check_flag(name, given[name])
        check_grad_kwargs(given.get("grad_kwargs"))
        own, of_passes, of_capture = (
            _taken(f, given) for f in (self._equations(), type(self)._passes, type(self)._captured)
        )
        self.check(**own)
        if not given["attr_dim_summation"] and not self.has_terms:
            raise ValueError(f"attr_dim_summation: {self.get_name()} has no terms by channel; leave it True.")
        tensors = check_inputs(format_tensor_into_tuples(inputs))
        self.check_for(inputs=tensors, **own)
        own["summed"] = given["attr_dim_summation"]
        asked = tensors, format_additional_forward_args(additional_forward_args)
        parts: dict[str, Any] = {"of_passes": of_passes, "of_capture": of_capture, "own": own, "join": join}
        parts["of_input"] = given["attribute_to_layer_input"]
        outputs = Outputs(targets, tensors[0].shape[0], argument)
        try:
            explained = self._explained(*asked, outputs, **parts)
        except Exception as error:
            # A model may refuse a single row by any error, in its first pass.
            if tensors[0].shape[0] > 1 or outputs.form is not None or outputs.misses_target or out_of_memory(error):
                raise
            explained = self._explained_of_two(error, *asked, outputs, **parts)
        attributions = self._formed(explained, lambda one: one[0].relu() if given["relu_attributions"] else one[0])
        with_details = given.get("return_details", False)
        return (attributions, self._formed(explained, lambda one: one[1])) if with_details else attributions

    def _explained(
        self,
        tensors: tuple[Tensor, ...],
        additional_forward_args: tuple[Any, ...] | None,
        outputs: Outputs,
        *,
        join: Callable[[list[CamResult]], CamResult],
        of_input: bool,
        of_passes: dict[str, Any],
        of_capture: dict[str, Any],
        own: dict[str, Any],
    ) -> list[list[CamResult]]:
        """Each output of each layer explained, in evaluation mode."""
        if "inputs" in _parameters(self._equations()):
            own = {**own, "inputs": tensors}
        functions = evaluation_mode(self.forward_func, getattr(self, "score_func", None), output_fn=self.output_fn)
        named = other_layer_named(self.forward_func, tensors)
        targets, examples = outputs.targets, outputs.examples
        with named, functions as (forward_func, score_func), torch.no_grad():
            if examples > 1:
                check_model_rows(forward_func)
            call = LayerCall(
                forward_func,
                [self.layer] if isinstance(self.layer, Module) else self.layer,
                tensors,
                additional_forward_args,
                self.device_ids,
                of_input,
                self.reshape_transform,
                outputs,
            )
            passes = self._passes(call, targets, score_func, **of_passes)
            activations, others = self._captured(call, targets, **of_capture)
            if examples > 1 or isinstance(self, PerturbationAttribution):
                check_independent_rows(forward_func, tensors, additional_forward_args or (), (ROWS, examples))
            check_maps(call)

            def explained(layer: int, output: int, a: Tensor) -> CamResult:
                seen = ({"activations": a, **others(layer, output, t), **passes[t]} for t in range(len(targets)))
                return join([self.cam(**each, **own) for each in seen])

            return [
                [explained(layer, output, a) for output, a in enumerate(of_layer)]
                for layer, of_layer in enumerate(activations)
            ]

    def _explained_of_two(
        self,
        error: Exception,
        tensors: tuple[Tensor, ...],
        additional_forward_args: tuple[Any, ...] | None,
        outputs: Outputs,
        **parts: Any,
    ) -> list[list[CamResult]]:
        """As ``_explained``, with the example twice: the model raised ``error``, and may need two rows."""
        two = tuple(torch.cat([x, x]) for x in tensors)
        targets = [target * 2 if isinstance(target, list) else target for target in outputs.targets]
        args = additional_forward_args and rows_of(additional_forward_args, [0, 0], 1)
        of_two = Outputs(targets, 2, outputs.argument)
        try:
            explained = self._explained(two, args, of_two, **parts)
        except Exception as other:
            raise (other if of_two.form is not None or isinstance(other, DependentRows) else error) from None
        return [
            [(maps[:1], None if details is None else details.of_example(0)) for maps, details in of_layer]
            for of_layer in explained
        ]

    def _passes(
        self, call: LayerCall, targets: Sequence[TargetType], score_func: Callable[..., Any] | None
    ) -> list[dict[str, Any]]:
        """What the equations get to run passes with, for each target."""
        return [{} for _ in targets]

    def _captured(self, call: LayerCall, targets: Sequence[TargetType]) -> Captured:
        """The activations of each output of each layer, and what else the equations get."""
        return call.activations(), lambda _layer, _output, _target: {}

    def _formed(self, explained: list[list[CamResult]], part: Callable[[CamResult], Any]) -> Any:
        """Captum's form: the only output of a layer or a tuple of them, a list of those for a list of layers."""
        of_layers = [format_output(len(outputs) > 1, tuple(map(part, outputs))) for outputs in explained]
        return of_layers[0] if isinstance(self.layer, Module) else of_layers


class GradientCam(CamAttribution[LayerT], GradientAttribution):
    """A method whose equations get ``activations`` and ``gradients``, both (N, K, *spatial)."""

    at_copies: ClassVar[bool] = False
    """Whether the equations get ``copies`` in place of ``gradients``, to run passes with altered inputs."""

    def _captured(
        self, call: LayerCall, targets: Sequence[TargetType], grad_kwargs: dict[str, Any] | None = None
    ) -> Captured:
        """
        Args:
            grad_kwargs (dict or None): Further arguments of ``torch.autograd.grad``. Default: None

        Raises:
            ValueError: Gradients that are not finite.
        """
        if self.at_copies:
            copies = GradientCopies(call, targets, grad_kwargs)
            return call.activations(), lambda *numbers: {"copies": CopyPasses(copies, *numbers)}
        gradients, activations = call.gradients_and_activations(targets, grad_kwargs)
        return activations, lambda layer, output, target: {"gradients": gradients[target][layer][output]}


class RemembersPasses:
    """A method that remembers in ``_tuners`` what it learnt of its passes; copies and pickles do not have it."""

    @cached_property
    def _tuners(self) -> dict[Hashable, PassTuner]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # What was learnt belongs to this process and device.
        return {name: value for name, value in self.__dict__.items() if name != "_tuners"}


class PerturbationCam(RemembersPasses, CamAttribution[LayerT], PerturbationAttribution):
    """A method whose equations get ``activations`` (N, K, *spatial), and ``passes`` to score masked inputs with.

    Args:
        confidence_fn (Callable or None): Converts the output of ``forward_func`` to confidences of the same shape. Give
            ``torch.sigmoid`` for several labels, ``lambda output: output`` for a model that ends in a sigmoid. Default:
            softmax over dimension 1 for several classes (probabilities that sum to 1 are used as they are), the output
            itself otherwise
        score_func (Callable or None): Used instead of ``forward_func`` in the channels' masked passes, always with
            ``internal_batch_size`` rows: a compiled copy of the model, or one exported in evaluation mode. Must return
            what ``forward_func`` returns. Default: None
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: LayerT,
        device_ids: list[int] | None = None,
        *,
        confidence_fn: ConfidenceFunction | None = None,
        score_func: Callable[..., Any] | None = None,
        reshape_transform: ReshapeTransform | None = None,
        output_fn: OutputFunction | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, reshape_transform=reshape_transform, output_fn=output_fn)
        check_function("confidence_fn", confidence_fn)
        check_function("score_func", score_func)
        self.confidence_fn = confidence_fn
        self.score_func = score_func

    def default_baselines(self, inputs: tuple[Tensor, ...]) -> BaselineType:
        """What masked-out places show where ``baselines`` is None: 0, unless the method says otherwise."""
        return None

    def _passes(
        self,
        call: LayerCall,
        targets: Sequence[TargetType],
        score_func: Callable[..., Any] | None,
        *,
        baselines: BaselineType = None,
        internal_batch_size: int | Literal["auto"] | None = None,
        score_dtype: torch.dtype | None = None,
        show_progress: bool = False,
    ) -> list[dict[str, TargetPasses]]:
        """
        Args:
            baselines (number, Tensor, tuple or None): Values of masked pixels, in the space of ``inputs``: a number, a
                tensor of one or N examples, or a tuple of those for a tuple of inputs. The paper uses a black image:
                for normalised inputs, that is the normalised black. Default: None, which is 0
            internal_batch_size (int, "auto" or None): Batch size of the masked forward passes. Halved automatically
                when memory runs out. "auto" measures the fastest during the passes and keeps it for inputs of this
                shape; numbers may then differ in the last digits between calls. Default: None, a fixed rule based on
                the inputs' size and the device
            score_dtype (torch.dtype or None): ``torch.bfloat16`` or ``torch.float16``: autocast for the channels'
                masked passes. Other confidences keep the model's precision. Frozen weights are cast again in each pass.
                Default: None, the model's own
            show_progress (bool): Show Captum's progress bar over the masked passes. Default: False

        Raises:
            ValueError: An unknown ``score_dtype``, a batch size below 1, confidences that are not finite.
            AssertionError: A baseline that does not fit the inputs.
        """
        scorer = MaskedScorer(
            call.forward_func,
            call.inputs,
            self.default_baselines(call.inputs) if baselines is None else baselines,
            targets,
            call.additional_forward_args,
            confidence_fn=self.confidence_fn,
            score_func=score_func,
            internal_batch_size=internal_batch_size,
            score_dtype=score_dtype,
            progress_name=f"{self.get_name()} masked passes" if show_progress else None,
            tuners=self._tuners,
            outputs=call.outputs,
        )
        return [{"passes": TargetPasses(scorer, t)} for t in range(len(targets))]


@dataclass(frozen=True)
class TailDetails(CamDetails):
    """Intermediate results of methods that replace a layer's output.

    Args:
        tail_alone (Tensor): Whether only the part behind the layer was run, instead of the whole model with a hook; the
            same for all examples; (N,), bool.
        forward_passes (Tensor): Number of rows with a replaced layer output that were run for the example; rows that
            serve several targets count for each; (N,), int64.
    """

    tail_alone: Tensor
    forward_passes: Tensor


class TailCam(RemembersPasses, CamAttribution[LayerT], PerturbationAttribution):
    """A method whose equations get ``activations`` (N, K, *spatial), and ``tail`` to run others in their place.

    What comes behind the layer is run alone where the model can be traced, else the whole model with a hook: the
    details say which.
    """

    gives_details = True
    confidence_fn: ConfidenceFunction | None = None

    def details(self, activations: Tensor, tail: TailPasses, **_: Any) -> TailDetails:
        return TailDetails(*tail.details(activations))

    def _passes(
        self,
        call: LayerCall,
        targets: Sequence[TargetType],
        score_func: Callable[..., Any] | None,
        *,
        internal_batch_size: int | Literal["auto"] | None = None,
        show_progress: bool = False,
    ) -> list[dict[str, Any]]:
        """
        Args:
            return_details (bool): Return ``(attributions, TailDetails)``. Default: False
            internal_batch_size (int, "auto" or None): Rows in a pass with replaced layer outputs. Halved automatically
                when memory runs out. "auto" measures the fastest during the passes; numbers may then differ in the last
                digits between calls. Default: None, a fixed rule based on the layer's size and the device
            show_progress (bool): Show Captum's progress bar over the rows. Default: False

        Raises:
            ValueError: A batch size below 1, scores that are not finite, a ``reshape_transform`` that copies values.
        """
        scorer = TailScorer(
            call,
            targets,
            confidence_fn=self.confidence_fn,
            internal_batch_size=internal_batch_size,
            progress_name=f"{self.get_name()} passes" if show_progress else None,
            tuners=self._tuners,
        )
        shared: dict[Hashable, Tensor] = {}
        return [{"tail": TailPasses(scorer, t, shared)} for t in range(len(targets))]


class ConfidenceTailCam(TailCam[LayerT]):
    """A method whose equations take class confidences of ``tail``.

    Args:
        confidence_fn (Callable or None): As for ``LayerScoreCam``: converts the output of ``forward_func`` to
            confidences of the same shape. Default: softmax over dimension 1 for several classes (probabilities that sum
            to 1 are used as they are), the output itself otherwise
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: LayerT,
        device_ids: list[int] | None = None,
        *,
        confidence_fn: ConfidenceFunction | None = None,
        reshape_transform: ReshapeTransform | None = None,
        output_fn: OutputFunction | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, reshape_transform=reshape_transform, output_fn=output_fn)
        check_function("confidence_fn", confidence_fn)
        self.confidence_fn = confidence_fn


def explain_targets(
    method: Any, join: Callable[[Any], Any], inputs: Inputs, targets: Targets, arguments: Mapping[str, Any]
) -> Any:
    """A method's ``attribute_targets``, by its ``_explain``, with what else ``attribute`` takes."""
    examples = check_inputs(format_tensor_into_tuples(inputs))[0].shape[0]
    given = signature(method.attribute).bind(inputs, None, **arguments)
    given.apply_defaults()
    del given.arguments["target"]
    return method._explain(by_target(targets, examples), join, argument="targets", **given.arguments)


@lru_cache(maxsize=512)
def _parameters(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    return signature(function).parameters


def _taken(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    names = _parameters(function)
    return {name: value for name, value in options.items() if name in names}


def _stacked(each: list[CamResult]) -> CamResult:
    attributions, details = zip(*each, strict=True)
    return torch.stack(attributions, 1), None if details[0] is None else type(details[0]).stacked(details)


def by_target(targets: Any, examples: int) -> list[TargetType]:
    """N lists of T targets as T lists of N."""
    rows = targets.tolist() if isinstance(targets, Tensor) else targets
    if not isinstance(rows, list) or len(rows) != examples or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(
            f"targets: got {targets!r}; give targets for each of the {examples} examples, as a tensor (N, T) or a list "
            "of lists."
        )
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"targets: {[len(row) for row in rows]} targets for the examples; give each the same number.")
    return [list(of_examples) for of_examples in zip(*rows, strict=True)]
