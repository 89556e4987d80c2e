"""The command ``captum-unioncam``. It imports what is slow to import, torch above all, only when it is to run."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

from captum_unioncam import __version__
from captum_unioncam.system.errors import Failure, WrongArgument

_INSTALL = "install what the command needs with: pip install 'captum-unioncam[cli]'"
_NEEDED = ("PIL", "jinja2", "pandas", "safetensors", "torchvision")

try:
    import typer

    from captum_unioncam.cli.compare import compare
    from captum_unioncam.cli.evaluate import evaluate
    from captum_unioncam.cli.explain import explain
    from captum_unioncam.cli.lists import methods, metrics
    from captum_unioncam.cli.report import report
    from captum_unioncam.cli.serve import serve
    from captum_unioncam.cli.shared import complain
except ModuleNotFoundError:
    sys.exit(f"Error: typer is missing; {_INSTALL}")

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    # Rich's table would leave the help a third of the screen.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (explain, compare, evaluate, report, methods, metrics):
    app.command()(command)
app.command("app")(serve)


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
    """UnionCAM class activation maps: what in a picture speaks for a class of a convolutional network."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; what goes wrong is told in one line on stderr.

    Args:
        arguments (Sequence[str] or None): Without the command's own name. Default: None, those of the process

    Returns:
        *int*: The exit code: 0, 1 for a failure, 2 for wrong arguments, 130 when interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files and methods need not be in its encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return app(arguments, prog_name="captum-unioncam", standalone_mode=False) or 0
    except (WrongArgument, Failure) as error:
        complain(error)
        return 2 if isinstance(error, WrongArgument) else 1
    except typer.Abort:
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _NEEDED:
            raise
        complain(Failure(f"{package} is missing; {_INSTALL}"))
        return 1
    except Exception as error:
        # What Typer finds wrong with the arguments; the type is click's, which newer Typers carry within themselves.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "captum-unioncam"
        complain(WrongArgument(f"{error.format_message().rstrip('.')}; see {command} --help."))
        return 2
