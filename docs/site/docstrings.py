"""The package's docstrings, which have Captum's form, as Markdown."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

import griffe

_MATH_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)


class CaptumDocstrings(griffe.Extension):
    """Griffe reads Google's sections; the roles, equations and stars within them are reStructuredText."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    docstring = _MATH_BLOCK.sub(_display, docstring)
    docstring = re.sub(r":math:`(.+?)`", r"$\1$", docstring, flags=re.DOTALL)
    docstring = re.sub(r":\w+:`(.+?)`", r"`\1`", docstring)
    docstring = re.sub(r"^( *Examples?)::$", r"\1:", docstring, flags=re.MULTILINE)
    # A star before a name is no emphasis: (N, K, *spatial).
    return re.sub(r"(?<=[(, ])\*(?=(spatial|grid|size)\b)", r"\\*", docstring)


def _display(block: re.Match[str]) -> str:
    return indent(f"$$\n{dedent(block[2]).strip()}\n$$\n\n", block[1])
