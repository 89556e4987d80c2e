"""How a command ends early: what went wrong and what to do about it, in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping


class WrongArgument(ValueError):
    """What was asked for does not exist or does not go together; the command ends with exit code 2."""


class Failure(RuntimeError):
    """What was asked for could not be done; the command goes on with the rest and ends with exit code 1."""


def one_line(error: BaseException) -> str:
    """The error's message without line breaks, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def in_words(message: str, words: Mapping[str, str]) -> str:
    """A message about arguments, in the words of whoever asked.

    Args:
        message (str): Names arguments as Python has them: "layer='4'" anywhere, or "layer: " at the beginning.
        words (Mapping[str, str]): By argument, what stands for it, with its value behind.

    Examples::

        >>> in_words("device='abacus': is not there.", {"device": "--device"})
        '--device abacus: is not there.'
    """
    names = "|".join(words)
    message = re.sub(rf"^({names})(?=: )", lambda found: words[found[1]], message)
    value = r"""(['"]?)(.+?)\2(?=[:;,.]*(?: |$))"""
    return re.sub(rf"\b({names})={value}", lambda found: f"{words[found[1]]} {found[3]}", message)
