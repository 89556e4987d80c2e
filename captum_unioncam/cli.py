"""The command ``captum-unioncam``. It imports what is slow to import, torch above all, only when it is to run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from captum_unioncam import __version__
from captum_unioncam.errors import Failure, WrongArgument, one_line

_INSTALL = "install what the command needs with: pip install 'captum-unioncam[cli]'"

try:
    import typer
except ModuleNotFoundError:
    sys.exit(f"Error: typer is missing; {_INSTALL}")

if TYPE_CHECKING:
    from captum_unioncam.explanation import Explainer, Explanation
    from captum_unioncam.files import FreeNames

_EMBEDDED = "embedded picture"
_FOUND = " (found: the last whose output has space)"
_NEEDED = ("PIL", "safetensors", "torchvision")

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    # Rich's table would leave the help a third of the screen.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(str, Enum):
    png = "png"
    npy = "npy"
    json = "json"


class Preprocess(str, Enum):
    auto = "auto"
    paper = "paper"


class ChannelWeights(str, Enum):
    score = "score"
    softmax = "softmax"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="demo, the embedded network; a torchvision classification model; or package.module:function, a function "
        "that returns your own.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights of the model: .safetensors, or a state dict saved by torch.save.",
        show_default="the model's own, which torchvision downloads",
    ),
]
LayerOption = Annotated[
    str | None,
    typer.Option(
        "--layer",
        metavar="NAME",
        help="Layer to explain, such as features.28.",
        show_default="the last whose output has space",
    ),
]
PreprocessOption = Annotated[
    Preprocess,
    typer.Option("--preprocess", help="As the weights want it, or the paper's: 224x224 in [0, 1], nothing else."),
]
ThetaOption = Annotated[
    float,
    typer.Option(
        "--theta", min=0, max=100, metavar="PERCENT", help="Percentile of the gradients below which they are noise."
    ),
]
ChannelWeightsOption = Annotated[
    ChannelWeights,
    typer.Option("--channel-weights", help="Weight channels by their score, or by the softmax of all scores."),
]
MaxChannelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-channels",
        min=1,
        metavar="N",
        help="Score only the N channels that vary most, which is faster.",
        show_default="all",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps.", show_default="cuda where there is one"),
]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="What channels are scored in; half precision is faster on many devices.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="Masked pictures in a forward pass.",
        show_default="the fastest",
    ),
]


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


@app.command()
def explain(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGES", help="Pictures.", show_default="an embedded one")
    ] = None,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    layer: LayerOption = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="CLASS", help="Class to explain: index or name.", show_default="predicted"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, metavar="K", help="Explain the K most probable classes instead.")
    ] = None,
    preprocess: PreprocessOption = Preprocess.auto,
    theta: ThetaOption = 10.0,
    channel_weights: ChannelWeightsOption = ChannelWeights.score,
    max_channels: MaxChannelsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    batch_size: BatchSizeOption = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="Where the files go; made if need be.")
    ] = Path("unioncam"),
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="A panel of all maps, the raw map, or the numbers and settings; may be given again for more.",
            show_default="png",
        ),
    ] = None,
) -> None:
    """Explain the class that a network sees in each picture.

    For each picture a panel is written: the photo, GradCAM for comparison, and UnionCAM's denoised, region and union
    maps, with the class, the confidence, and which map was selected.

    Without arguments, an embedded picture is explained with an embedded network, and nothing is downloaded.
    """
    if target is not None and top_k is not None:
        raise WrongArgument("--target and --top-k do not go together; give one of them.")
    from captum_unioncam.explanation import Explainer, Settings

    settings = Settings(
        model=model,
        weights=None if weights is None else str(weights),
        layer=layer,
        preprocess=preprocess.value,
        device=device,
        dtype=dtype.value,
        batch_size=batch_size,
        theta=theta,
        channel_weights=channel_weights.value,
        max_channels=max_channels,
    )
    explainer = Explainer(settings, show_progress=sys.stderr.isatty())
    class_index = None if target is None else explainer.subject.class_index(target)
    all_explained = _explain_pictures(explainer, images or [], class_index, top_k or 1, formats or [Format.png], output)
    if not all_explained:
        raise typer.Exit(1)


def _explain_pictures(
    explainer: Explainer, paths: list[Path], target: int | None, top_k: int, formats: list[Format], output: Path
) -> bool:
    """Explains the pictures, or the embedded one where there are none, and says whether all could be."""
    from captum_unioncam.files import FreeNames, make_folder

    make_folder(output)
    names = FreeNames(output, taken=paths)
    typer.echo(f"layer: {explainer.settings.layer}{_FOUND if explainer.subject.layer_found else ''}")
    all_explained = True
    for path in paths or (None,):
        try:
            for line in _explain_picture(explainer, path, target, top_k, formats, names):
                typer.echo(line)
        except BrokenPipeError:
            # Whoever read what is printed wants no more.
            raise
        except Exception as error:
            # Whatever a user's model raises for one picture, the others are still to be explained.
            if not isinstance(error, Failure):
                error = Failure(f"{path or _EMBEDDED}: {type(error).__name__}: {error}")
            _complain(error)
            all_explained = False
    return all_explained


def _explain_picture(
    explainer: Explainer, path: Path | None, target: int | None, top_k: int, formats: list[Format], names: FreeNames
) -> Iterator[str]:
    """Writes the files of one picture, and says so in a line for each class."""
    from captum_unioncam.files import slug, write_whole
    from captum_unioncam.pictures import open_picture

    if path is None:
        from captum_unioncam.demo import load_picture

        name, stem, picture = _EMBEDDED, "demo", load_picture()
    else:
        name, stem, picture = str(path), path.stem, open_picture(path)
    for explanation in explainer.explain(picture, target, top_k):
        # Before any file is written: what fails here leaves none.
        contents = {wanted.value: _content(explanation, name, wanted) for wanted in formats}
        paths = names.paths(f"{stem}-{slug(explanation.class_name)}", contents)
        for file, content in zip(paths, contents.values(), strict=True):
            write_whole(file, content)
        betas = ", ".join(f"{map_name} {beta:.2f}" for map_name, beta in explanation.betas.items())
        yield (
            f"{name}: {explanation.class_name} {explanation.confidence:.2f}; betas: {betas}; "
            f"{explanation.choice} map selected; {', '.join(map(str, paths))}"
        )


def _content(explanation: Explanation, picture: str, wanted: Format) -> bytes:
    if wanted is Format.npy:
        return explanation.npy()
    if wanted is Format.json:
        return (json.dumps({"picture": picture, **explanation.record()}, indent=2) + "\n").encode()
    from captum_unioncam.visualization import explanation_panel, png

    return png(explanation_panel(explanation))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; what goes wrong is told in one line on stderr.

    Args:
        arguments (Sequence[str] or None): Without the command's own name. Default: None, those of the process

    Returns:
        *int*: The exit code: 0, 1 for a failure, 2 for wrong arguments, 130 when interrupted.
    """
    try:
        return app(arguments, prog_name="captum-unioncam", standalone_mode=False) or 0
    except (WrongArgument, Failure) as error:
        _complain(error)
        return 2 if isinstance(error, WrongArgument) else 1
    except typer.Abort:
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _NEEDED:
            raise
        _complain(Failure(f"{package} is missing; {_INSTALL}"))
        return 1
    except Exception as error:
        # What Typer finds wrong with the arguments; the type is click's, which newer Typers carry within themselves.
        if not hasattr(error, "format_message"):
            raise
        _complain(WrongArgument(f"{error.format_message().rstrip('.')}; see captum-unioncam explain --help."))
        return 2


def _complain(error: Exception) -> None:
    typer.echo(f"Error: {one_line(error)}", err=True)
