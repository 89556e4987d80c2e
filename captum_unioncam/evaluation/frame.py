"""Records as a table."""

from pathlib import Path

import pandas as pd

from captum_unioncam.evaluation.records import read_records, settings_in
from captum_unioncam.metrics.table import all_metrics

_KEYS = ("image", "target", "target_name", "method", "error", "confidence")


def records_as_table(folder: Path) -> pd.DataFrame:
    """As ``captum_unioncam.evaluation.load``."""
    # Refuses a folder without an evaluation.
    settings_in(folder)
    records = list(read_records(folder))
    rows = [{**{key: getattr(record, key) for key in _KEYS}, **record.values} for record in records]
    found = {name for record in records for name in record.values}
    # In the order of tables; those of plugins that are not installed here come last.
    metrics = [name for name in all_metrics() if name in found]
    table = pd.DataFrame(rows, columns=[*_KEYS, *metrics, *sorted(found.difference(metrics))])
    table["target"] = table["target"].astype("Int64")
    table["confidence"] = table["confidence"].astype(float)
    return table.sort_values(["image", "target", "method"], ignore_index=True)
