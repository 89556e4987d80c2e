"""Errors that the command prints in one line: what is wrong and what to do about it."""

import re
from collections.abc import Mapping


class WrongArgument(ValueError):
    """An argument is wrong, or does not fit another. The command ends with exit code 2."""


class Failure(RuntimeError):
    """Something could not be done. The command continues with the rest and ends with exit code 1."""


def one_line(error: BaseException) -> str:
    """The error's message without line breaks, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def without_name(error: BaseException, name: str) -> str:
    """The error in a line, without the name of what failed in front, and with its type unless it is a ``Failure``."""
    message = one_line(error).removeprefix(f"{name}: ")
    return message if isinstance(error, Failure) else f"{type(error).__name__}: {message}"


def in_words(message: str, words: Mapping[str, str]) -> str:
    """Replaces the names of arguments in a message, by the command's options for example.

    Args:
        message (str): Names arguments in Python's form: "layer='4'" anywhere, or "layer: " at the beginning.
        words (Mapping[str, str]): The replacement of each argument's name.

    Examples::

        >>> in_words("device='abacus': is not there.", {"device": "--device"})
        '--device abacus: is not there.'
    """
    names = "|".join(words)
    message = re.sub(rf"^({names})(?=: )", lambda found: words[found[1]], message)
    value = r"""(['"]?)(.+?)\2(?=[:;,.]*(?: |$))"""
    return re.sub(rf"\b({names})={value}", lambda found: f"{words[found[1]]} {found[3]}", message)
