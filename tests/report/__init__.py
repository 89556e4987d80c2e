"""What the tests of reports share."""

import json


def write_evaluation(folder, records, settings):
    """An evaluation's folder as ``evaluate`` leaves it."""
    (folder / "records").mkdir(parents=True)
    (folder / "records" / "a.jsonl").write_bytes(b"".join(record.line() for record in records))
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder
