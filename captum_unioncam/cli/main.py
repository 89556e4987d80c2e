"""The command ``captum-unioncam``. Slow imports, such as torch, are made by the subcommands."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any

_INSTALL = "install what the command needs with: pip install 'captum-unioncam[{}]'"
_OF_CLI = "PIL", "jinja2", "matplotlib", "pandas", "safetensors", "scipy", "tabulate", "torchvision"
_EXTRAS = {**dict.fromkeys(_OF_CLI, "cli"), "gradio": "app"}
"""The extra that installs each package."""

try:
    import typer

    from captum_unioncam import __version__
    from captum_unioncam.cli import compare, evaluate, explain, lists, report, sanity, serve
    from captum_unioncam.cli.shared import complain
    from captum_unioncam.system.errors import Failure, WrongArgument
except ModuleNotFoundError:
    sys.exit(f"Error: typer is missing; {_INSTALL.format('cli')}")
except KeyboardInterrupt:
    sys.exit(130)

app = typer.Typer(
    pretty_exceptions_enable=False,
    # Rich's tables leave little room for the help texts.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (explain.explain, compare.compare, sanity.sanity, evaluate.evaluate, report.report):
    app.command()(command)
app.command()(lists.methods)
app.command()(lists.metrics)
app.command("app")(serve.serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"captum-unioncam {__version__}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """UnionCAM class activation maps: the evidence in an image for a class of a convolutional network."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Errors are printed in one line on stderr.

    Args:
        arguments (Sequence[str] or None): Without the command's own name. Default: None, those of the process

    Returns:
        *int*: The exit code: 0, 1 for a failure, 2 for wrong arguments, 130 when interrupted.
    """
    interrupted = _watch_interrupts() if arguments is None else []
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception:
        # An import that is interrupted may raise another exception.
        if interrupted:
            return 130
        raise
    finally:
        if arguments is None:
            # Only Python's own shutdown remains, which would print a traceback.
            _ignore_interrupts()


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files and methods may not be in stdout's encoding.
            sys.stdout.reconfigure(errors="backslashreplace")
        code: int = app(given or ["--help"], prog_name="captum-unioncam", standalone_mode=False) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (WrongArgument, Failure) as error:
        complain(error)
        return 2 if isinstance(error, WrongArgument) else 1
    except typer.Abort:
        return 130
    except SystemExit as error:
        if _completes(given):
            return int(error.code or 0)
        # Typer exits when the reader of a pipe has closed it.
        if isinstance(error.__context__, BrokenPipeError):
            return _cannot_print(error.__context__)
        complain(Failure(f"the code of a model or method has ended the process by exit({error.code!r})."))
        return 1
    except OSError as error:
        # Errors of files have a name; this one is of stdout.
        if error.filename is not None:
            raise
        return _cannot_print(error)
    except ImportError as error:
        # pandas raises an ImportError of its own from that of a package.
        package = str(getattr(error.__cause__ or error, "name", None)).partition(".")[0]
        if package not in _EXTRAS:
            raise
        complain(Failure(f"{package} is missing; {_INSTALL.format(_EXTRAS[package])}"))
        return 1
    except Exception as error:
        # Typer's errors about arguments. Their class is click's, or that of a copy within newer Typers.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "captum-unioncam"
        complain(WrongArgument(f"{error.format_message().rstrip('.')}; see {command} --help."))
        return 2


def _completes(given: Sequence[str]) -> bool:
    """Whether Typer's shell completion answers, which ends by ``sys.exit``."""
    options = "--install-completion", "--show-completion"
    return "_CAPTUM_UNIONCAM_COMPLETE" in os.environ or (bool(given) and given[0].startswith(options))


def _cannot_print(error: OSError) -> int:
    # Else Python would try to flush the rest at its end, and print a traceback.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    complain(Failure(f"cannot print: {error.strerror or error}; what was written to files is kept."))
    return 1


def _watch_interrupts() -> list[int]:
    """Records each Ctrl-C besides raising it, since some code swallows KeyboardInterrupt or only prints it."""
    interrupts: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    def unraisable(problem: Any) -> None:
        if not isinstance(problem.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(problem)

    # Not outside the main thread, and not where the signal is ignored, as by nohup.
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
            sys.unraisablehook = unraisable
    return interrupts


def _ignore_interrupts() -> None:
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
