"""Methods run on images and judged: one image explained or compared, whole data sets evaluated, records kept.

Imports methods, metrics, models, datasets and what is below them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load"]


def load(folder: Path | str) -> pd.DataFrame:
    """The records of an evaluation as a table, for notebooks.

    Args:
        folder (Path or str): Where ``captum-unioncam evaluate`` has written them.

    Returns:
        *pandas.DataFrame*: A row for each record, sorted: image, target (Int64; missing where the image's classes could
        not be read), target_name, method, error (missing where there is none), confidence, and each metric that some
        record has, by name, as it was computed and not in percent.

    Raises:
        WrongArgument: The folder holds no evaluation.
        Failure: It cannot be read.

    Examples::

        >>> table = load("evaluation")
        >>> table.groupby("method")["drop"].mean()
    """
    # pandas and the rest take a second to import.
    from captum_unioncam.evaluation.frame import records_as_table

    return records_as_table(Path(folder))
