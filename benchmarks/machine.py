"""What a benchmark ran on, and how its results are written."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from captum_unioncam.engine.accelerators import module_of
from captum_unioncam.system.files import make_folder, write_whole

RESULTS = Path(__file__).parent / "results"


def describe(device: torch.device) -> str:
    """The processor or GPU, and the versions that matter, in one line."""
    from importlib.metadata import version

    if device.type != "cpu":
        name_of = getattr(module_of(device), "get_device_name", None)
        hardware = name_of(device) if name_of else device.type
    else:
        names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
        instructions = [i for i in ("avx512f", "avx512_bf16", "amx_bf16") if any(i in line for line in _flags())]
        name = names[0] if names else platform.processor()
        hardware = f"{torch.get_num_threads()} cores of {name} ({', '.join(instructions) or 'no AVX-512'})"
    return f"{hardware}; PyTorch {torch.__version__}, Captum {version('captum')}, Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def _flags() -> list[str]:
    return [line for line in _lines("/proc/cpuinfo") if line.startswith("flags")][:1]


def write_result(name: str, text: str) -> Path:
    """Writes ``text`` to the folder of results."""
    make_folder(RESULTS)
    write_whole(RESULTS / name, text.encode())
    return RESULTS / name


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows of the same keys as a Markdown table."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([row[key] for key in header] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
