"""Composes signatures and docstrings from parts, so that each shared argument is documented once."""

import inspect
import re
from collections.abc import Callable, Sequence
from inspect import Parameter
from textwrap import dedent, fill, indent
from typing import Any

_HEADING = re.compile(r"^(Args|Returns|Raises|Examples?)(::?)$", re.MULTILINE)
_WIDTH = 108  # within two levels of indentation
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)


def sections(text: str | None) -> dict[str, str]:
    """A docstring's parts by heading, without indentation. The part before the first heading has the key ""."""
    parts = _HEADING.split(inspect.cleandoc(text or ""))
    return {"": parts[0].strip(), **{parts[i]: dedent(parts[i + 2].strip("\n")) for i in range(1, len(parts), 3)}}


def entries(text: str | None, heading: str) -> dict[str, str]:
    """The entries below a heading, in order, by the name at their beginning."""
    found = [entry.rstrip() for entry in _ENTRY.split(sections(text).get(heading, "")) if entry.strip()]
    return {re.split(r"[ :(]", entry, maxsplit=1)[0]: entry for entry in found}


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The function's parameters without ``self``, ``*args`` and ``**kwargs``."""
    every = inspect.signature(function).parameters.values()
    return [p for p in every if p.name != "self" and p.kind not in _VARIABLE]


def options(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters that have a default."""
    return [p for p in parameters(function) if p.default is not Parameter.empty]


def document(signature: inspect.Signature, functions: Sequence[Callable[..., Any]]) -> str:
    """A docstring in Captum's form, composed of other functions' docstrings.

    Args:
        signature (inspect.Signature): The documented function's, whose order the arguments have.
        functions (Sequence[Callable]): Their docstrings document the arguments, returns, errors and examples. Later
            ones take precedence. The last one's first section becomes that of the docstring.
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
        "Returns:": _last("Returns", docs),
        "Raises:": "\n".join(
            fill(f"{name}: {'; '.join(dict.fromkeys(said))}.", _WIDTH, subsequent_indent="    ")
            for name, said in raised.items()
        ),
        "Examples::": "\n" + _last("Examples", docs),
    }
    body = "\n\n".join(f"{heading}\n{indent(text, '    ')}" for heading, text in parts.items() if text.strip())
    return f"{sections(docs[-1])['']}\n\n{body}".strip()


def _last(heading: str, docs: Sequence[str | None]) -> str:
    return next((found[heading] for found in map(sections, reversed(docs)) if heading in found), "")


def specialised(
    template: Callable[..., Any],
    call: Callable[[dict[str, Any]], Any],
    parts: Sequence[Callable[..., Any]],
    documented_by: Sequence[Callable[..., Any]],
    hidden: Sequence[str] = (),
) -> Callable[..., Any]:
    """A function that has a template's arguments and further ones in its signature and docstring.

    Args:
        template (Callable): Its parameters come first, including ``self``.
        call (Callable): Called with a dictionary of all arguments, defaults included.
        parts (Sequence[Callable]): Functions whose parameters with a default are the further arguments.
        documented_by (Sequence[Callable]): As the ``functions`` of :func:`document`.
        hidden (Sequence[str]): Arguments of the template that are left out. Default: none
    """
    shown = [p for p in inspect.signature(template).parameters.values() if p.kind not in _VARIABLE]
    first = [p for p in shown if p.kind != p.KEYWORD_ONLY and p.name not in hidden]
    last = [p for p in shown if p.kind == p.KEYWORD_ONLY and p.name not in hidden]
    every = [*first, *(p for part in parts for p in options(part)), *last]
    signature = inspect.Signature(sorted(every, key=lambda parameter: parameter.kind))

    def function(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return call(given.arguments)

    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = document(signature, documented_by)
    return function


def class_document(cls: type[Any]) -> str:
    """A class's own docstring, with the constructor's arguments as its bases document them."""
    known = {name: entry for base in reversed(cls.__mro__) for name, entry in entries(base.__doc__, "Args").items()}
    arguments = "\n".join(known[name] for name in inspect.signature(cls.__init__).parameters if name in known)
    own = sections(cls.__dict__.get("__doc__"))
    parts = [own.pop(""), f"Args:\n{indent(arguments, '    ')}"]
    parts += [f"{name}:\n\n{indent(text.strip(), '    ')}" for name, text in own.items() if name != "Args"]
    return "\n\n".join(part for part in parts if part)
