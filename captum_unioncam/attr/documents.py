"""Signatures and docstrings put together from parts, so that each argument is documented once and shown everywhere."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from inspect import Parameter
from textwrap import dedent, fill, indent
from typing import Any

from captum_unioncam.engine._captum import log_usage

_HEADING = re.compile(r"^(Args|Returns|Raises|Examples?)(::?)$", re.MULTILINE)
_WIDTH = 108  # within two levels of indentation
_ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)


def sections(text: str | None) -> dict[str, str]:
    """A docstring's parts by heading, without their indentation; what stands in front of the first has the key ""."""
    parts = _HEADING.split(inspect.cleandoc(text or ""))
    return {"": parts[0].strip(), **{parts[i]: dedent(parts[i + 2].strip("\n")) for i in range(1, len(parts), 3)}}


def entries(text: str | None, heading: str) -> dict[str, str]:
    """The entries below a heading, by the name that each begins with, in order."""
    found = [entry.rstrip() for entry in _ENTRY.split(sections(text).get(heading, "")) if entry.strip()]
    return {re.split(r"[ :(]", entry, maxsplit=1)[0]: entry for entry in found}


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Those that have a name of their own, without ``self``."""
    variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self" and p.kind not in variable]


def options(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters that have a default: those that a user may leave out."""
    return [p for p in parameters(function) if p.default is not Parameter.empty]


def document(signature: inspect.Signature, functions: Sequence[Callable[..., Any]]) -> str:
    """A docstring in Captum's form: the arguments in the signature's order, then what the functions' own have.

    Args:
        signature (inspect.Signature): Of what is documented.
        functions (Sequence[Callable]): Their docstrings document the arguments. Of several that document the same, the
            last counts; the first says what is returned, and the last has the example.
    """
    docs = [function.__doc__ for function in functions]
    known = {name: entry for doc in docs for name, entry in entries(doc, "Args").items()}
    raised: dict[str, list[str]] = {}
    for doc in docs:
        for name, entry in entries(doc, "Raises").items():
            said = " ".join(re.sub(rf"^{name}: |\.$", "", entry).split())
            raised.setdefault(name, []).append(said[0].lower() + said[1:])
    parts = {
        "Args:": "\n".join(known[name] for name in signature.parameters if name in known),
        "Returns:": sections(docs[0]).get("Returns", ""),
        "Raises:": "\n".join(
            fill(f"{name}: {'; '.join(dict.fromkeys(said))}.", _WIDTH, subsequent_indent="    ")
            for name, said in raised.items()
        ),
        "Examples::": "\n" + next((s["Examples"] for s in map(sections, reversed(docs)) if "Examples" in s), ""),
    }
    return "\n\n".join(f"{heading}\n{indent(text, '    ')}" for heading, text in parts.items() if text.strip())


def specialised(
    cls: type[Any],
    template: Callable[..., Any],
    parts: Sequence[Any],
    documented_by: Sequence[Any],
    hidden: Sequence[str] = (),
) -> Any:
    """The template as a method of ``cls``, with further arguments, all of them in its signature and its docstring.

    Args:
        cls (type): The class.
        template (Callable): Is called with all arguments by name.
        parts (Sequence[Callable]): Whatever has a default in their signatures is a further argument.
        documented_by (Sequence[Callable]): Functions whose docstrings document the arguments, as ``document`` reads
            them.
        hidden (Sequence[str]): Arguments of the template that the class does not have. Default: none
    """
    shown = [p for p in parameters(template) if p.name not in hidden]
    first = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *(p for p in shown if p.kind != p.KEYWORD_ONLY)]
    last = [p for p in shown if p.kind == p.KEYWORD_ONLY]
    every = [*first, *(p for part in parts for p in options(part)), *last]
    signature = inspect.Signature(sorted(every, key=lambda parameter: parameter.kind))

    def attribute(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return template(**given.arguments)

    attribute.__signature__ = signature  # type: ignore[attr-defined]
    attribute.__doc__ = document(signature, [template, *documented_by])
    attribute.__module__, attribute.__qualname__ = cls.__module__, f"{cls.__qualname__}.{template.__name__}"
    return log_usage(part_of_slo=True)(attribute)


def class_document(cls: type[Any]) -> str:
    """What a class says of itself, and the arguments of its constructor, which its bases document."""
    known = {name: entry for base in reversed(cls.__mro__) for name, entry in entries(base.__doc__, "Args").items()}
    arguments = "\n".join(known[name] for name in inspect.signature(cls.__init__).parameters if name in known)
    return f"{sections(cls.__dict__.get('__doc__'))['']}\n\nArgs:\n{indent(arguments, '    ')}"
