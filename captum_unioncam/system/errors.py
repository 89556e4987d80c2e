"""How a command ends early: what went wrong and what to do about it, in one line."""

from __future__ import annotations


class WrongArgument(ValueError):
    """What was asked for does not exist or does not go together; the command ends with exit code 2."""


class Failure(RuntimeError):
    """What was asked for could not be done; the command goes on with the rest and ends with exit code 1."""


def one_line(error: BaseException) -> str:
    """The error's message without line breaks, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
