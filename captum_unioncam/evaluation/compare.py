"""Methods side by side on one class of a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from PIL import Image
from torch import Tensor

from captum_unioncam.engine._captum import progress
from captum_unioncam.evaluation.judge import Judge, Judgement
from captum_unioncam.metrics.table import SECONDS, Metric


@dataclass(frozen=True)
class Comparison:
    """What several methods say of one class of a picture.

    Args:
        picture (str): Its name.
        photo (Tensor): As the model saw it, before normalisation: (3, H, W), in [0, 1].
        class_index (int): The explained output of the model.
        class_name (str): Its name.
        confidence (float): The model's, in the class.
        layer (str): The explained layer.
        metrics (list[Metric]): The table's columns.
        judgements (dict[str, Judgement]): Of the methods, by name.
        failures (dict[str, str]): What went wrong, of the methods that failed. Default: none
    """

    picture: str
    photo: Tensor
    class_index: int
    class_name: str
    confidence: float
    layer: str
    metrics: list[Metric]
    judgements: dict[str, Judgement]
    failures: dict[str, str] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row for each method: its value of each metric, or its error."""
        rows: list[dict[str, object]] = [
            {"method": method, **judgement.values} for method, judgement in self.judgements.items()
        ]
        rows += [{"method": method, "error": error} for method, error in self.failures.items()]
        names = [metric.name for metric in self.metrics]
        table: pd.DataFrame = pd.DataFrame(rows, columns=["method", *names, "error"])
        for metric in self.metrics:
            # Whole numbers, also beside those that are missing.
            table[metric.name] = table[metric.name].astype("Int64" if metric.is_yes_or_no else float)
        return table

    def csv(self) -> bytes:
        """The table as a file."""
        return self.table().to_csv(index=False).encode(errors="replace")


def compare(
    judge: Judge, name: str, picture: Image.Image, target: int | None = None, show_progress: bool = False
) -> Comparison:
    """Lets each of the judge's methods explain a class of a picture.

    Args:
        judge (Judge): The model, the methods and the metrics; of these, what needs to know where objects are is left
            out.
        name (str): The picture's.
        picture (PIL.Image.Image): In mode RGB, of any size.
        target (int or None): The class. Default: None, the most probable
        show_progress (bool): Show a progress bar on the standard error stream. Default: False

    Returns:
        *Comparison*: A method that fails does not keep the others from it.
    """
    subject = judge.subject
    shown = subject.shown(picture)
    confidences = subject.confidences(subject.input_and_baseline(shown)[0])[0]
    target = int(confidences.argmax()) if target is None else target
    methods = judge.method_names
    pairs = ((method, (target,)) for method in (progress(methods, desc="methods") if show_progress else methods))
    judgements, failures = {}, {}
    for outcome in judge.run(pairs, shown, name=name, confidences=confidences):
        if outcome.problem is None:
            (judgements[outcome.method],) = outcome.judgements
        else:
            failures[outcome.method] = outcome.problem
    return Comparison(
        name,
        shown,
        target,
        subject.classifier.class_name(target),
        confidences[target].item(),
        subject.layer_name,
        [*(metric for metric in judge.metrics if not metric.needs_objects), SECONDS],
        judgements,
        failures,
    )
