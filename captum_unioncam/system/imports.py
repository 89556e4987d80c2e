"""Imports functions by name, and suggests names for misspelled ones."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from captum_unioncam.system.errors import Failure, WrongArgument, one_line


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose public names are loaded when they are first used.

    Args:
        package (str): Its ``__name__``.
        homes (Mapping[str, str]): The module within it that holds each name.
    """

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return found


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """The end of an error sentence: asks whether a similar name was meant, if there is one."""
    near = get_close_matches(wrong, list(names), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def imported_function(name: str, asked: str) -> Any:
    """The function "package.module:function", imported.

    Args:
        name (str): Its name. Modules in the working folder are found as well.
        asked (str): The beginning of error messages: who asked for it.

    Raises:
        WrongArgument: There is no such module or function.
        Failure: Importing the module failed.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise WrongArgument(f"{asked}: give package.module:function.")
    # Present under python -m, but not in an installed command.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise WrongArgument(f"{asked}: there is no module {error.name!r}, here or installed.") from error
    except (Exception, SystemExit) as error:
        # A script without a __main__ guard may exit.
        raise Failure(f"{asked}: importing it raised {type(error).__name__}: {one_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise WrongArgument(
            f"{asked}: {module_name} has no function {function_name!r}{suggestion(function_name, functions)}"
        )
    return function
