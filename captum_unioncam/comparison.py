"""Methods side by side on one class of a picture: a panel, a table, and a page of both."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_unioncam.errors import one_line
from captum_unioncam.judging import Judge, Judgement
from captum_unioncam.pages import png_uri, render
from captum_unioncam.visualization import HeatMap, panel, png


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
                "increase": int(judgement.increase),
                "insertion": judgement.insertion.area.item(),
                "deletion": judgement.deletion.area.item(),
                "seconds": judgement.seconds,
            }
            for method, judgement in self.judgements.items()
        ]
        rows += [{"method": method, "error": error} for method, error in self.failures.items()]
        table: pd.DataFrame = pd.DataFrame(rows)
        return table

    def text(self) -> str:
        """The table for a terminal."""
        return str(self.table().to_string(index=False, na_rep="-", float_format="{:.3f}".format))

    def csv(self) -> bytes:
        """The table as a file."""
        file = io.StringIO()
        self.table().to_csv(file, index=False)
        return file.getvalue().encode()

    def panel(self) -> Figure:
        """The photo, and each method's map over it."""
        heat_maps = [
            HeatMap(
                judgement.attribution,
                f"{method}\ninsertion {judgement.insertion.area.item():.2f}, "
                f"deletion {judgement.deletion.area.item():.2f}",
            )
            for method, judgement in self.judgements.items()
        ]
        return panel(self.photo, heat_maps, self._title())

    def page(self) -> bytes:
        """An HTML file that needs nothing else."""
        table = self.table()
        return render(
            "comparison.html",
            title=self._title(),
            picture=self.picture,
            panel=png_uri(png(self.panel())),
            methods=", ".join(self.judgements),
            headings=list(table.columns),
            rows=[[_cell(value) for value in row] for row in table.itertuples(index=False)],
        )

    def _title(self) -> str:
        return f"{self.class_name}  {self.confidence:.2f}   |   layer {self.layer}"


def compare(judge: Judge, name: str, picture: Image.Image, target: int | None = None) -> Comparison:
    """Lets each of the judge's methods explain a class of a picture.

    Args:
        judge (Judge): The model, the methods and the metrics.
        name (str): The picture's.
        picture (PIL.Image.Image): In mode RGB, of any size.
        target (int or None): The class. Default: None, the most probable

    Returns:
        *Comparison*: A method that fails does not keep the others from it.
    """
    subject = judge.subject
    shown = subject.shown(picture)
    confidences = subject.confidences(subject.input_and_baseline(shown)[0])[0]
    target = int(confidences.argmax()) if target is None else target
    judgements, failures = {}, {}
    for method in judge.method_names:
        try:
            judgements[method] = judge.judge(method, shown, target, None, name)
        except Exception as error:
            failures[method] = f"{type(error).__name__}: {one_line(error)}"
    return Comparison(
        name,
        shown,
        subject.classifier.class_name(target),
        confidences[target].item(),
        subject.layer_name,
        judgements,
        failures,
    )


def _cell(value: object) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
