"""Methods side by side on one class of a picture: a panel, a table, and a page of both."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_unioncam.engine._captum import progress
from captum_unioncam.evaluation.judge import Judge, Judgement, problem
from captum_unioncam.report.html import png_uri, render
from captum_unioncam.report.panels import HeatMap, panel, png

# Towards what is better.
_ARROWS = {"drop": "↓", "increase": "↑", "insertion": "↑", "deletion": "↓", "seconds": "↓"}


# What fits above a map.
_TITLE_WIDTH = 32


@dataclass(frozen=True)
class Comparison:
    """What several methods say of one class of a picture.

    Args:
        picture (str): Its name.
        photo (Tensor): As the model saw it, before normalisation: (3, H, W), in [0, 1].
        class_name (str): Of the explained output.
        confidence (float): The model's, in the class.
        layer (str): The explained layer.
        judgements (dict[str, Judgement]): Of the methods, by name.
        failures (dict[str, str]): What went wrong, of the methods that failed.
    """

    picture: str
    photo: Tensor
    class_name: str
    confidence: float
    layer: str
    judgements: dict[str, Judgement]
    failures: dict[str, str]

    def table(self) -> pd.DataFrame:
        """A row for each method: its drop, increase, insertion, deletion and seconds, or its error."""
        rows: list[dict[str, object]] = [
            {
                "method": method,
                "drop": judgement.drop,
                "increase": judgement.increase,
                "insertion": judgement.insertion.area.item(),
                "deletion": judgement.deletion.area.item(),
                "seconds": judgement.seconds,
            }
            for method, judgement in self.judgements.items()
        ]
        rows += [{"method": method, "error": error} for method, error in self.failures.items()]
        table: pd.DataFrame = pd.DataFrame(rows, columns=["method", *_ARROWS, "error"])
        # A whole number, also beside those that are missing.
        table["increase"] = table["increase"].astype("Int64")
        return table

    def text(self) -> str:
        """The table as plain text, without the methods that failed."""
        return str(self._display_table().to_string(index=False))

    def csv(self) -> bytes:
        """The table as a file."""
        return self.table().to_csv(index=False).encode(errors="replace")

    def panel(self) -> Figure:
        """The photo, and each method's map over it."""
        heat_maps = [
            HeatMap(
                judgement.attribution,
                f"{textwrap.fill(method, _TITLE_WIDTH)}\ninsertion {judgement.insertion.area.item():.2f}, "
                f"deletion {judgement.deletion.area.item():.2f}",
            )
            for method, judgement in self.judgements.items()
        ]
        title = f"{self.class_name}  {self.confidence:.2f}   |   layer {self.layer}"
        return panel(self.photo, heat_maps, title)

    def page(self) -> bytes:
        """An HTML file that needs nothing else."""
        table = self._display_table()
        return render(
            "comparison.html",
            comparison=self,
            panel=png_uri(png(self.panel())),
            headings=list(table.columns),
            rows=table.to_numpy().tolist(),
        )

    def _display_table(self) -> pd.DataFrame:
        """The table as people read it: texts, of the methods that did not fail."""
        table = self.table().iloc[: len(self.judgements)]
        texts: pd.DataFrame = table[["method"]].copy()
        for name, arrow in _ARROWS.items():
            texts[f"{name} {arrow}"] = table[name].map(("{:d}" if name == "increase" else "{:.3f}").format)
        return texts


def compare(
    judge: Judge, name: str, picture: Image.Image, target: int | None = None, show_progress: bool = False
) -> Comparison:
    """Lets each of the judge's methods explain a class of a picture.

    Args:
        judge (Judge): The model, the methods and the metrics.
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
    judgements, failures = {}, {}
    methods = judge.method_names
    for method in progress(methods, desc="methods") if show_progress else methods:
        try:
            judgements[method] = judge.judge(method, shown, target, None, name)
        except Exception as error:
            failures[method] = problem(method, error)
    return Comparison(
        name,
        shown,
        subject.classifier.class_name(target),
        confidences[target].item(),
        subject.layer_name,
        judgements,
        failures,
    )
