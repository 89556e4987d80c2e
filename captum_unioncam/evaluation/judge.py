"""A method judged on one class of one picture: its attribution, what the metrics say of it, and the time it took."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from captum_unioncam import metrics
from captum_unioncam.methods.registry import create
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure, one_line


@dataclass(frozen=True)
class Judgement:
    """What one method did.

    Args:
        attribution (Tensor): (1, 1, H, W), at the size that the model sees.
        seconds (float): It took.
        confidence (float): The model's, in the class, for the whole picture.
        drop, increase (float): ``confidence_drop`` and ``confidence_increase``.
        insertion, deletion (Curve): The areas and their curves.
        pointing, energy (float or None): The pointing games, where the object is known and in the model's sight.
    """

    attribution: Tensor
    seconds: float
    confidence: float
    drop: float
    increase: float
    insertion: metrics.Curve
    deletion: metrics.Curve
    pointing: float | None
    energy: float | None


class Judge:
    """Judges methods on a model.

    Args:
        subject (ExplainedModel): The model and the layer to explain.
        method_names (Iterable[str]): As ``captum_unioncam.methods`` knows them.
        settings (MethodSettings): Of the methods; the metrics take its ``internal_batch_size`` too.
        steps (int): Of the insertion and deletion curves.
        seed (int): Of the methods that draw random numbers. Default: 0

    Raises:
        WrongArgument: There is no such method.
        Failure: A method's package is not installed, or it does not go together with the model.
    """

    def __init__(
        self, subject: ExplainedModel, method_names: Iterable[str], settings: MethodSettings, steps: int, seed: int = 0
    ) -> None:
        self.subject = subject
        self.steps = steps
        self.seed = seed
        self._confidence = {"confidence_fn": subject.confidence_fn, "internal_batch_size": settings.internal_batch_size}
        settings = replace(settings, confidence_fn=subject.confidence_fn)
        self._attribute = {name: create(name, subject.model, subject.layer, settings) for name in method_names}
        self._is_warm = False

    @property
    def method_names(self) -> list[str]:
        """In the order given."""
        return list(self._attribute)

    def judge(self, method: str, shown: Tensor, target: int, objects: Tensor | None, name: str) -> Judgement:
        """Lets a method explain a class of a picture, and judges its attribution.

        Args:
            method (str): One of ``method_names``.
            shown (Tensor): What the model sees of the picture, (3, H, W), in [0, 1].
            target (int): The class.
            objects (Tensor or None): Where its objects are, bool, (H, W).
            name (str): The picture's: random numbers depend on it, the target and the method, and not on what was
                judged before.
        """
        inputs, black = self.subject.input_and_baseline(shown)
        devices = [self.subject.device] if self.subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._warm_up(inputs)
            torch.manual_seed(_seed(self.seed, name, target, method))
            self._wait()
            start = time.perf_counter()
            attribution = self._attribute[method](inputs, torch.tensor([target], device=inputs.device), black)
            self._wait()
            seconds = time.perf_counter() - start
        arguments = self.subject.model, inputs, attribution, target
        confidence: dict[str, Any] = self._confidence
        curve: dict[str, Any] = {"steps": self.steps, "return_curve": True, **confidence}
        drop = metrics.confidence_drop(*arguments, black, **confidence)
        increase = metrics.confidence_increase(*arguments, black, **confidence)
        insertion = cast(metrics.Curve, metrics.insertion(*arguments, **curve))
        deletion = cast(metrics.Curve, metrics.deletion(*arguments, black, **curve))
        pointing = energy = None
        if objects is not None and objects.any():
            pointing = metrics.pointing_game(attribution, objects[None, None]).item()
            energy = metrics.energy_pointing_game(attribution, objects[None, None]).item()
        return Judgement(
            attribution=attribution,
            seconds=seconds,
            confidence=insertion.confidences[0, -1].item(),
            drop=drop.item(),
            increase=increase.item(),
            insertion=insertion,
            deletion=deletion,
            pointing=pointing,
            energy=energy,
        )

    def _warm_up(self, inputs: Tensor) -> None:
        """The first passes prepare much that the first method's seconds are not to hold."""
        if not self._is_warm:
            with torch.enable_grad():
                inputs = inputs.clone().requires_grad_()
                output = self.subject.model(inputs)
                if output.requires_grad:
                    torch.autograd.grad(output.sum(), inputs)
            self._is_warm = True

    def _wait(self) -> None:
        if self.subject.device.type == "cuda":
            torch.cuda.synchronize(self.subject.device)


def problem(method: str, error: Exception) -> str:
    """What went wrong with a method, in a line that does not begin with its name."""
    message = one_line(error).removeprefix(f"{method}: ")
    return message if isinstance(error, Failure) else f"{type(error).__name__}: {message}"


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
