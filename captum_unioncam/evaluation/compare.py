"""Methods side by side on one class of an image."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pandas as pd
from PIL import Image
from torch import Tensor

from captum_unioncam.engine._captum import progress
from captum_unioncam.evaluation.judge import Judge, Judgement
from captum_unioncam.metrics.table import SECONDS, Metric


@dataclass(frozen=True)
class Comparison:
    """Several methods' results for one class of an image.

    Args:
        picture (str): Its name.
        photo (Tensor): As the model saw it, before normalisation: (3, H, W), in [0, 1].
        class_index (int): The explained output of the model.
        class_name (str): Its name.
        confidence (float): The model's confidence in the class.
        layer (str): The explained layer.
        metrics (list[Metric]): The columns of the table.
        judgements (dict[str, Judgement]): By method.
        failures (dict[str, str]): The error of each method that failed. Default: none
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
        judged = [{"method": method, **judgement.values} for method, judgement in self.judgements.items()]
        failed = [{"method": method, "error": error} for method, error in self.failures.items()]
        # Int64 keeps whole numbers whole where others are missing.
        types = {metric.name: "Int64" if metric.is_yes_or_no else "float64" for metric in self.metrics}
        return pd.DataFrame([*judged, *failed], columns=["method", *types, "error"]).astype(types)

    def csv(self) -> bytes:
        """The table as a CSV file."""
        return self.table().to_csv(index=False).encode(errors="replace")


def compare(
    judge: Judge, name: str, picture: Image.Image, target: int | None = None, show_progress: bool = False
) -> Comparison:
    """Explains a class of an image with each of the judge's methods.

    Args:
        judge (Judge): The model, the methods and the metrics. Metrics that need the objects' places are left out.
        name (str): The image's.
        picture (PIL.Image.Image): In mode RGB, of any size.
        target (int or None): The class. Default: None, the most probable
        show_progress (bool): Show a progress bar on the standard error stream. Default: False

    Returns:
        *Comparison*: Also of the other methods if one fails.
    """
    *_, complete = comparisons(judge, name, picture, target, show_progress)
    return complete


def comparisons(
    judge: Judge, name: str, picture: Image.Image, target: int | None = None, show_progress: bool = False
) -> Iterator[Comparison]:
    """As :func:`compare`, which gives the last: one before the first method, and one after each."""
    subject = judge.subject
    shown = subject.shown(picture)
    confidences = judge.confidences(shown)
    target = int(confidences.argmax()) if target is None else target
    comparison = Comparison(
        picture=name,
        photo=shown,
        class_index=target,
        class_name=subject.classifier.class_name(target),
        confidence=confidences[target].item(),
        layer=subject.layer_name,
        metrics=[*(metric for metric in judge.metrics if not metric.needs_objects), SECONDS],
        judgements={},
    )
    yield comparison
    methods = progress(judge.method_names, desc="methods") if show_progress else judge.method_names
    for outcome in judge.run(((method, [target]) for method in methods), shown, name=name, confidences=confidences):
        if outcome.problem is None:
            judgements = {**comparison.judgements, outcome.method: outcome.judgements[0]}
            comparison = replace(comparison, judgements=judgements)
        else:
            comparison = replace(comparison, failures={**comparison.failures, outcome.method: outcome.problem})
        yield comparison
