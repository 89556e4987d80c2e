"""A classifier on its device with the layer to explain, for images and classes by name."""

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.find_layer import find_spatial_layer, layer_transforms, spatial_layers
from captum_unioncam.engine.accelerators import default_device
from captum_unioncam.engine.confidence import (
    CONFIDENCES,
    ConfidenceFunction,
    OutputFunction,
    default_confidence,
    one_tensor,
    output_tensor,
)
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.layouts.with_maps import WithMaps
from captum_unioncam.models.zoo import DEMO_MODEL, load_classifier
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.imports import imported_function, suggestion

AUTO = "auto"
"""The confidence that is settled by images."""


class ExplainedModel:
    """A classifier on its device, and the layer to explain.

    Runs the model on a black image first, to find the layer and to check model, preprocessing and device.

    Args:
        name, weights, preprocess, show_progress: As ``load_classifier`` takes them.
        layer (str or None): Dotted name of the layer to explain. Default: None, the classifier's own, or else the last
            with a spatial output
        device (str or None): Where to compute. Default: None, the accelerator (CUDA, XPU, MPS) if there
            is one, else "cpu"
        confidence (str): Converts the model's outputs to confidences: "softmax" for logits of classes that exclude each
            other, "sigmoid" for other logits, "none" for outputs that are confidences. Default: "softmax", which leaves
            probabilities that sum to 1 unchanged, as the library's default does; "auto" until ``settle_confidence``
            chooses one of them
        output_fn (Callable, str or None): What the model returns to the tensor (N, classes) that is explained: a
            function, or "package.module:function". Default: None, the tensor itself; of a tuple, dict or dataclass the
            one named "logits" or "out", or else the only one with a row for each example
        reshape_transform (Callable or None): Converts the output of the layer to maps, (1, K, H, W), a view of it, as
            that of ``LayerUnionCam`` does. Default: None, what is found for tokens and channels-last outputs

    Attributes:
        classifier (Classifier): As loaded.
        model (torch.nn.Module): The classifier's, on the device. Where it returns more than a tensor, a hook has it
            return the one that is explained, which is all that other packages' methods take.
        device (torch.device): Where it is.
        weights (str or None), preprocess (str), output_fn (Callable, str or None): As given.
        confidence (str): As given, or "none" if "softmax" was given and the outputs are probabilities.
        confidence_fn (Callable): The function for ``confidence``.
        layer_name (str), layer (torch.nn.Module): The layer to explain. For tokens and channels-last outputs, as in
            torchvision's transformers, a module that was added behind it and outputs maps.
        layer_found (bool): Whether the layer was neither given nor the classifier's own.
        classes (int): The number of classes.

    Raises:
        WrongArgument: There is no such model, layer, device or confidence, or the layer has no spatial output.
        Failure: The model cannot be loaded, does not run on images, or does not return (N, classes).

    Examples::

        >>> from captum_unioncam.models import ExplainedModel
        >>> subject = ExplainedModel("demo", layer="features.7", device="cpu")
        >>> inputs, black = subject.input_and_baseline(subject.shown(demo.load_picture()))
        >>> confidence = subject.confidences(inputs)[0, subject.class_index("star")]
        >>> union_cam = LayerUnionCam(subject.model, subject.layer)
        >>> target = subject.class_index("star")
        >>> attr = union_cam.attribute(inputs, target=target, baselines=black)
    """

    def __init__(
        self,
        name: str = DEMO_MODEL,
        weights: str | None = None,
        layer: str | None = None,
        preprocess: str = "auto",
        device: str | None = None,
        show_progress: bool = False,
        confidence: str = "softmax",
        output_fn: OutputFunction | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        if confidence not in (*CONFIDENCES, AUTO):
            raise WrongArgument(f"confidence: got {confidence!r}; give one of {', '.join((*CONFIDENCES, AUTO))}.")
        self.device = _device(device)
        self.classifier = load_classifier(name, None if weights is None else Path(weights), preprocess, show_progress)
        self.model = self.classifier.model
        self.weights, self.preprocess = weights, preprocess
        self.confidence, self.output_fn, self._reshape_transform = confidence, output_fn, reshape_transform
        self._black, self.classes = self._try_out()
        self._with_maps: WithMaps | None = None
        self.set_layer(layer)

    def set_layer(self, name: str | None = None) -> None:
        """Chooses another layer of the same model to explain.

        Args:
            name (str or None): Dotted name. Default: None, the classifier's own, or else the last whose output has
                space

        Raises:
            WrongArgument: There is no such layer, or it has no spatial output. The previous layer is kept.
        """
        with_maps = self._with_maps
        if with_maps is not None:
            # Within it, layers have other names.
            self._put(with_maps, with_maps.layer)
        try:
            wanted = name or self.classifier.explained_layer
            found = wanted or self._find_layer(self._black)
            self.layer, self._with_maps = self._layer_with_maps(found, self._black)
        except BaseException:
            if with_maps is not None:
                self._put(with_maps.layer, with_maps)
            raise
        self.layer_found = wanted is None
        self.layer_name = found

    def _put(self, before: Module, after: Module) -> None:
        """Puts a module in another's place, under all of its names."""
        names = [name for name, module in self.model.named_modules(remove_duplicate=False) if module is before]
        for name in names:
            self.model.set_submodule(name, after)

    @property
    def confidence_fn(self) -> ConfidenceFunction:
        """The model's outputs to confidences."""
        return CONFIDENCES[self.confidence]

    @property
    def pixels(self) -> int:
        """The number of pixels of the model's input."""
        return self._black.shape[-2] * self._black.shape[-1]

    def spatial_layers(self) -> list[str]:
        """Names of the layers that can be explained, the last to run first."""
        return list(spatial_layers(self.model, self._black))[::-1]

    def class_index(self, target: str) -> int:
        """The class with that index or name.

        Raises:
            WrongArgument: There is none, or several have the name.
        """
        if target.lstrip("-").isdecimal():
            # Python does not parse thousands of digits, nor two dashes.
            if target.isdecimal() and len(target) < 10 and int(target) < self.classes:
                return int(target)
            raise WrongArgument(f"target={target!r}: there are the classes 0 to {self.classes - 1}.")
        names = [name.casefold() for name in self.classifier.class_names or ()]
        indices = [index for index, name in enumerate(names) if name == target.casefold()]
        if len(indices) == 1:
            return indices[0]
        if indices:
            raise WrongArgument(f"target={target!r}: is the name of the classes {indices}; give the index.")
        if not names:
            raise WrongArgument(
                f"target={target!r}: the names of this model's classes are not known; give an index from 0 to "
                f"{self.classes - 1}."
            )
        raise WrongArgument(f"target: there is no class {target!r}{suggestion(target.casefold(), names)}")

    def shown(self, picture: Image.Image) -> Tensor:
        """An image in mode RGB as the model sees it, (3, H, W), in [0, 1]."""
        return self.classifier.preprocessing.fit(picture)

    def input_and_baseline(self, shown: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The normalised input for an image as the model sees it, and its black image, each (1, 3, H, W).

        On ``device``, or where the model is.
        """
        dtype = next((parameter.dtype for parameter in self.model.parameters()), torch.float32)
        normalized = self.classifier.preprocessing.normalized
        device = device or self.device
        inputs, black = (normalized(x).unsqueeze(0).to(device, dtype) for x in (shown, torch.zeros_like(shown)))
        return inputs, black

    def _try_out(self) -> tuple[Tensor, int]:
        """A black input, and the number of the model's classes."""
        shown = self.shown(Image.new("RGB", (256, 256)))
        try:
            self.model.to(self.device)
            black, _ = self.input_and_baseline(shown)
            self._return_one_tensor(black)
            if self.confidence == AUTO:
                return black, self._output(black).shape[1]
            if self.confidence == "softmax":
                self._choose_confidence(black)
            return black, self.confidences(black).shape[1]
        except (Failure, WrongArgument):
            raise
        except Exception as error:
            # A user's model may raise anything.
            raise Failure(
                f"name={self.classifier.name!r}: cannot run on images of shape {tuple(shown.shape)}: "
                f"{one_line(error)}; try another preprocessing or device."
            ) from error

    def _return_one_tensor(self, black: Tensor) -> None:
        """Has the model return the tensor that is explained, and no more."""
        given = self.output_fn
        output_fn = imported_function(given, f"output_fn={given!r}") if isinstance(given, str) else given
        returned = self.model(black.clone())
        if output_fn is not None:
            try:
                returned = output_fn(returned)
            except Exception as error:
                # A user's function may raise anything.
                raise WrongArgument(
                    f"output_fn={given!r}: raised {type(error).__name__} for what the model returns, "
                    f"{type(returned).__name__}: {one_line(error)}"
                ) from error
        try:
            output_tensor(returned, len(black), f"name={self.classifier.name!r}")
        except ValueError as error:
            raise Failure(
                f"{one_line(error).partition('; ')[0]}; give output_fn='package.module:function', a function of that "
                "to the tensor of shape (1, classes)."
            ) from error
        if output_fn is not None or not isinstance(returned, Tensor):
            self.model.register_forward_hook(partial(one_tensor, output_fn), with_kwargs=True)

    @torch.no_grad()
    def settle_confidence(self, shown: Iterable[Tensor], exclusive: bool) -> None:
        """Chooses the confidence by the model's outputs for some images.

        Outputs that sum to 1 or stay in [0, 1] whatever the image are taken as they are. Logits get a softmax if they
        go below 0 and their classes exclude each other.

        Args:
            shown (Iterable[Tensor]): The images as the model sees them, each (3, H, W), in [0, 1].
            exclusive (bool): Whether no image of the data set shows several classes.

        Raises:
            WrongArgument: The outputs do not tell.
        """
        inputs = [self._black, *(self.input_and_baseline(picture)[0] for picture in shown)]
        outputs = torch.cat([self._output(each) for each in inputs])
        bounded = bool(((outputs >= 0) & (outputs <= 1)).all())
        if bounded and self._stays_as_confidence(outputs, inputs[-1]):
            self.confidence = "none"
        elif self.classes > 1 and exclusive and (outputs.min() < 0 or bounded):
            self.confidence = "softmax"
        else:
            why = "some images have several classes" if self.classes > 1 and not exclusive else "none tells which"
            raise WrongArgument(
                f"confidence='auto': for {len(inputs)} images the {self.classes} outputs go from {outputs.min():.3g} "
                f"to {outputs.max():.3g}, and {why}; give confidence='softmax' for logits of classes that exclude each "
                "other, 'sigmoid' for other logits, or 'none' for confidences."
            )

    def _stays_as_confidence(self, outputs: Tensor, inputs: Tensor) -> bool:
        """Whether outputs that lie in [0, 1] are no logits, which lie there by chance."""
        if self.classes == 1:
            found = torch.cat([self._output(each) for each in _extremes(inputs)])
            return bool(((found >= 0) & (found <= 1)).all())
        try:
            return default_confidence(outputs, (inputs,), self._output) is CONFIDENCES["none"]
        except ValueError:
            return True

    @torch.no_grad()
    def confidences(self, inputs: Tensor) -> Tensor:
        """The model's confidence in each class, (1, classes), for an input (1, 3, H, W).

        Raises:
            Failure: The model returned something else.
            WrongArgument: Its one output is negative.
        """
        output = self._output(inputs)
        try:
            return self.confidence_fn(output)
        except ValueError as error:
            raise WrongArgument(
                f"name={self.classifier.name!r}: its one output may be negative, and so is no confidence; give "
                "confidence='sigmoid' where it is a logit, or confidence='none' to take it as it is."
            ) from error

    def _output(self, inputs: Tensor) -> Tensor:
        """The model's output, (1, classes)."""
        # A copy, since the model may write into its input.
        output = output_tensor(self.model(inputs.clone()), len(inputs))
        if output.dim() != 2 or output.shape[0] != 1:
            raise Failure(
                f"name={self.classifier.name!r}: returned {tuple(output.shape)} for one image; give a model that "
                "returns a tensor of shape (1, classes)."
            )
        if output.shape[1] == 0:
            raise Failure(f"name={self.classifier.name!r}: tells no classes apart; give another model or weights.")
        return output.float()

    @torch.no_grad()
    def _choose_confidence(self, black: Tensor) -> None:
        """Decides as the library does where no ``confidence_fn`` is given."""
        output = self._output(black)
        try:
            decided = default_confidence(output, (black,), self._output)
        except ValueError as error:
            raise WrongArgument(
                f"name={self.classifier.name!r}: its outputs lie in [0, 1], as those of a sigmoid do, and so are "
                "confidences already; give confidence='none'."
            ) from error
        if decided is CONFIDENCES["none"]:
            self.confidence = "none"
        if output.shape[1] == 1:
            # Images come later: a logit that is positive for black may be negative for others.
            for inputs in _extremes(black):
                self.confidences(inputs)

    def _find_layer(self, inputs: Tensor) -> str:
        try:
            return find_spatial_layer(self.model, inputs)[0]
        except ValueError as error:
            raise WrongArgument(f"{one_line(error)} Give layer=NAME, or models.load these two in Python.") from error

    def _such_as(self, inputs: Tensor) -> str:
        try:
            return f", such as {find_spatial_layer(self.model, inputs)[0]!r}"
        except ValueError:
            return ""

    def _layer_with_maps(self, name: str, inputs: Tensor) -> tuple[Module, WithMaps | None]:
        """The layer, or the module that replaces it."""
        # A module may have two names.
        layers = dict(self.model.named_modules(remove_duplicate=False))
        if name not in layers:
            raise WrongArgument(f"layer: the model has no layer {name!r}{suggestion(name, layers)}")
        layer: Module = layers[name]
        outputs = self._outputs_of(layer, inputs)
        if len(outputs) > 1:
            raise WrongArgument(
                f"layer={name!r}: is called {len(outputs)} times in a pass, each time with other maps; give another."
            )
        transform = self._reshape_transform or layer_transforms(self.model, inputs).get(layer)
        output = outputs[0] if outputs else None
        if transform is None or not isinstance(output, Tensor):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            what = f"has {shape} as output" if outputs else "does not run"
            raise WrongArgument(
                f"layer={name!r}: {what}; give a layer that maps images, (1, channels, height, width), or tokens "
                f"that follow the image place by place{self._such_as(inputs)}. In Python, models.load also takes a "
                "reshape_transform."
            )
        maps = transform(output)
        if maps is output:
            return layer, None
        if maps.dim() != 4 or maps.untyped_storage().data_ptr() != output.untyped_storage().data_ptr():
            raise WrongArgument(
                f"reshape_transform: made shape {tuple(maps.shape)} of {tuple(output.shape)}; return a view of shape "
                "(1, channels, height, width)."
            )
        with_maps = WithMaps(layer, transform)
        self._put(layer, with_maps)
        return with_maps.maps, with_maps

    def _outputs_of(self, layer: Module, inputs: Tensor) -> list[object]:
        """What each call of the layer returns in one pass."""
        outputs: list[object] = []
        with layer.register_forward_hook(lambda _module, _args, output: outputs.append(output)):
            self._output(inputs)
        return outputs


def _extremes(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs for which a logit is far from 0, of one sign and of the other."""
    return 1e3 * (inputs + 1), -1e3 * (inputs + 1)


def _device(name: str | None) -> torch.device:
    if name is None:
        return default_device()
    try:
        # Warnings about deprecated devices.
        with warnings.catch_warnings(action="ignore"):
            device = torch.device(name)
            # torch also parses devices that are not available.
            torch.zeros(1, device=device).item()
    except Exception as error:
        # Kinds of devices fail with different errors.
        raise WrongArgument(f"device={name!r}: is not there; give cpu, or leave it out.") from error
    return device
