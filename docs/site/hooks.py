"""What the pages need beside Markdown: source lines by name, tables, equations as MathML, notebooks as pages."""

from __future__ import annotations

import ast
import html
import inspect
import pkgutil
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from ruff.__main__ import find_ruff_bin

from captum_unioncam import methods
from captum_unioncam.metrics.table import all_metrics

_SOURCE_BLOCK = re.compile(r"^```source\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_WIDTH = 88
"""Characters of a line of code."""
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each notebook, and its pictures beside it."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = nbformat.reads(file.content_string, as_version=4)
        name = Path(file.src_uri)
        prefix = f"{name.stem}_"
        resources = {"unique_key": name.stem, "output_files_dir": "."}
        markdown, resources = MarkdownExporter().from_notebook_node(notebook, resources)
        download = f"This page is a notebook: [{name.name}]({name.name}).\n\n"
        heading, _, rest = markdown.lstrip().partition("\n")
        page = File.generated(config, name.with_suffix(".md").as_posix(), content=f"{heading}\n\n{download}{rest}")
        files.append(page)
        for picture, content in resources["outputs"].items():
            assert Path(picture).name.startswith(prefix), picture
            files.append(File.generated(config, (name.parent / picture).as_posix(), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the lines of the package in place of the ``source`` blocks that name them."""

    def shown(block: re.Match[str]) -> str:
        try:
            return source_lines(*block[1].splitlines())
        except (AttributeError, ImportError, TypeError, ValueError) as error:
            raise PluginError(f"{page.file.src_uri}: no source {block[1]!r}: {error}") from error

    for mark, table in _TABLES.items():
        markdown = markdown.replace(f"<!-- {mark} -->", table())
    # In the repository the notebooks themselves can be read, here their pages.
    return re.sub(r"\]\((notebooks/\w+)\.ipynb", r"](\1.md", _SOURCE_BLOCK.sub(shown, markdown))


def methods_table() -> str:
    """The attribution methods by name, as the registry has them."""
    rows = [f"| `{name}` | {methods.describe(name)} |" for name in methods.names()]
    return "\n".join(["| name | method |", "| --- | --- |", *rows])


def metrics_table() -> str:
    """The metrics that evaluations compute, as the table of metrics has them."""
    found = all_metrics().values()
    rows = [f"| `{m.name}` | {m.heading} | {m.description}{' On request.' if m.on_request else ''} |" for m in found]
    return "\n".join(["| name | heading | what it says |", "| --- | --- | --- |", *rows])


def measurements_table() -> str:
    """Each CAM's time and quality, as the files of benchmark results have them, the fastest first."""
    names = "speed-methods", "faithfulness-sample-64ch-bfloat16", "faithfulness-demo-64ch"
    times, photos, generated = ((_RESULTS / f"{name}.md").read_text() for name in names)
    mobilenet, resnet = (text.split("\n## ")[0] for text in re.split(r"\n## (?:mobilenet_v2|resnet18), ", times)[1:])
    columns = {
        "MobileNetV2, s": column(mobilenet, "seconds"),
        "ResNet-18, s": column(resnet, "seconds"),
        "photos: average drop (%) ↓": column(photos, "average drop (%) ↓"),
        "generated: pointing game (%) ↑": column(generated, "pointing game (%) ↑"),
    }
    heading = " | ".join(["method", *columns])
    rows = [
        " | ".join([f"`{name}`", *(of.get(name, "").replace(" ", "&nbsp;") for of in columns.values())])
        for name in sorted(columns["MobileNetV2, s"], key=lambda name: float(columns["MobileNetV2, s"][name]))
    ]
    return "\n".join(f"| {row} |" for row in [heading, "--- | " * len(columns) + "---", *rows])


def column(text: str, heading: str) -> dict[str, str]:
    """A column of the first Markdown table with that heading, by the name in its first column, without spreads."""
    table = re.search(rf"^\|[^\n]*\| {re.escape(heading)} \|.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
    number = lines[0].index(heading)
    return {cells[0].split("`")[1]: cells[number].strip("*").partition(" (")[0] for cells in lines[2:]}


_TABLES = {
    "table of methods": methods_table,
    "table of metrics": metrics_table,
    "table of measurements": measurements_table,
}


def source_lines(name: str, first: str | None = None, last: str | None = None) -> str:
    """A code block of a function without its docstring, or of its lines from one that begins so to another."""
    found = pkgutil.resolve_name(name)
    function = inspect.unwrap(found.fget if isinstance(found, property) else found)
    lines, number = inspect.getsourcelines(function)
    body = ast.parse(textwrap.dedent("".join(lines))).body[0].body
    begins = [line.strip() for line in lines]
    if first is not None:
        start = one(begins, first)
        shown = range(start, one(begins, last or first) + 1)
    else:
        documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        docstring = range(body[0].lineno - 1, body[0].end_lineno) if documented else range(0)
        shown = [i for i in range(len(lines)) if i not in docstring]
    code = narrow(textwrap.dedent("".join(lines[i] for i in shown)).rstrip())
    module = function.__module__.replace(".", "/")
    return f'```python title="{module}.py, line {number + shown[0]}"\n{code}\n```'


def narrow(code: str) -> str:
    """Whole statements with their long lines broken."""
    if max(map(len, code.splitlines())) <= _WIDTH:
        return code
    command = [find_ruff_bin(), "format", "--isolated", "--line-length", str(_WIDTH), "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout.rstrip()


def one(begins: list[str], beginning: str) -> int:
    """The number of the only line that begins so."""
    numbers = [i for i, line in enumerate(begins) if line.startswith(beginning)]
    if len(numbers) != 1:
        raise ValueError(f"{len(numbers)} lines begin with {beginning!r}; name one.")
    return numbers[0]


def on_page_content(content: str, **_: Any) -> str:
    """Makes MathML of the equations, which browsers render without a script."""

    def mathml(equation: re.Match[str]) -> str:
        found = convert(html.unescape(equation[3]).strip(), display="block" if equation[2] == "[" else "inline")
        # As fences, bars need no spaces around them.
        return re.sub(r"<mo([^>]*)>(&#x0007C;|\|)</mo>", r'<mo\1 lspace="0" rspace="0">|</mo>', found)

    return _EQUATION.sub(mathml, content)
