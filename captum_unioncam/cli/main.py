"""The command ``captum-unioncam``. It imports what is slow to import, torch above all, only when it is to run."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from captum_unioncam import __version__
from captum_unioncam.system.errors import Failure, WrongArgument, one_line

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from captum_unioncam.evaluation.explain import Explainer, Explanation
    from captum_unioncam.evaluation.records import Settings
    from captum_unioncam.methods.settings import MethodSettings
    from captum_unioncam.system.files import FreeNames


_INSTALL = "install what the command needs with: pip install 'captum-unioncam[cli]'"


try:
    import typer

    from captum_unioncam.cli.options import (
        OUTPUT_HELP,
        BatchSizeOption,
        ChannelWeights,
        ChannelWeightsOption,
        Confidence,
        ConfidenceOption,
        DeviceOption,
        Dtype,
        DtypeOption,
        LayerOption,
        MaxChannelsOption,
        MethodsOption,
        ModelOption,
        Preprocess,
        PreprocessOption,
        Protocol,
        ProtocolOption,
        SeedOption,
        StepsOption,
        TargetOption,
        ThetaOption,
        WeightsOption,
    )
except ModuleNotFoundError:
    sys.exit(f"Error: typer is missing; {_INSTALL}")


_EMBEDDED = "embedded picture"


_FOUND = " (found: the last whose output has space)"


_NEEDED = ("PIL", "jinja2", "pandas", "safetensors", "torchvision")


app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    # Rich's table would leave the help a third of the screen.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    png = "png"
    npy = "npy"
    json = "json"


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
    target: TargetOption = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, metavar="K", help="Explain the K most probable classes instead.")
    ] = None,
    preprocess: PreprocessOption = Preprocess.auto,
    confidence: ConfidenceOption = Confidence.softmax,
    theta: ThetaOption = 10.0,
    channel_weights: ChannelWeightsOption = ChannelWeights.score,
    max_channels: MaxChannelsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    batch_size: BatchSizeOption = None,
    output: Annotated[Path, typer.Option("--output", "--out", metavar="FOLDER", help=OUTPUT_HELP)] = Path("unioncam"),
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            metavar="png|npy|json",
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
    from captum_unioncam.evaluation.explain import Explainer, Settings

    settings = Settings(
        model=model,
        weights=_path(weights),
        layer=layer,
        preprocess=preprocess.value,
        device=device,
        confidence=confidence.value,
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
    from captum_unioncam.system.files import FreeNames, make_folder

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
    from captum_unioncam.system.files import slug, write_whole

    name, stem, picture = _opened(path)
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


def _opened(path: Path | None) -> tuple[str, str, Image.Image]:
    """The picture, or the embedded one, with its name and what its files are named after."""
    if path is None:
        from captum_unioncam.demo import load_picture

        return _EMBEDDED, "demo", load_picture()
    from captum_unioncam.datasets.pictures import open_picture

    return str(path), path.stem, open_picture(path)


def _content(explanation: Explanation, picture: str, wanted: Format) -> bytes:
    if wanted is Format.npy:
        return explanation.npy()
    if wanted is Format.json:
        return (json.dumps({"picture": picture, **explanation.record()}, indent=2) + "\n").encode()
    from captum_unioncam.report.panels import explanation_panel, png

    return png(explanation_panel(explanation))


@app.command()
def methods() -> None:
    """List the methods that compare and evaluate know by name."""
    from captum_unioncam.methods.registry import names

    for name in names():
        typer.echo(name)
    typer.echo("torchcam:NAME, grad_cam:NAME: any CAM of those packages, such as torchcam:LayerCAM")
    typer.echo("package.module:function: a factory of your own, as captum_unioncam.methods.register takes it")


@app.command()
def compare(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Picture.", show_default="an embedded one")
    ] = None,
    method_names: MethodsOption = "union_cam, denoised_grad_cam, score_cam, grad_cam, guided_grad_cam, occlusion",
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    layer: LayerOption = None,
    target: TargetOption = None,
    preprocess: PreprocessOption = Preprocess.auto,
    confidence: ConfidenceOption = Confidence.softmax,
    theta: ThetaOption = 10.0,
    max_channels: MaxChannelsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    batch_size: BatchSizeOption = None,
    steps: StepsOption = 100,
    seed: SeedOption = 0,
    output: Annotated[Path, typer.Option("--out", "--output", metavar="FOLDER", help=OUTPUT_HELP)] = Path("comparison"),
) -> None:
    """Compare methods on one picture, by maps and metrics.

    Writes a panel of the maps (png), each method's drop, increase, insertion, deletion and seconds (csv), and one page
    with both (html). Of a method that fails the error is shown, and the exit code is 1.
    """
    from captum_unioncam.evaluation.compare import compare as compare_methods
    from captum_unioncam.evaluation.judge import Judge
    from captum_unioncam.models.subject import ExplainedModel
    from captum_unioncam.report.panels import png
    from captum_unioncam.system.files import FreeNames, make_folder, slug, write_whole

    wanted = _method_names(method_names)
    name, stem, picture = _opened(image)
    on_terminal = sys.stderr.isatty()
    subject = ExplainedModel(model, _path(weights), layer, preprocess.value, device, on_terminal, confidence.value)
    class_index = None if target is None else subject.class_index(target)
    judge = Judge(subject, wanted, _method_settings(theta, max_channels, dtype, batch_size), steps, seed)
    make_folder(output)
    comparison = compare_methods(judge, name, picture, class_index, on_terminal)
    contents = {"png": png(comparison.panel()), "csv": comparison.csv(), "html": comparison.page()}
    names = FreeNames(output, taken=[] if image is None else [image])
    paths = names.paths(f"{stem}-{slug(comparison.class_name)}", contents)
    for path, content in zip(paths, contents.values(), strict=True):
        write_whole(path, content)
    typer.echo(f"{name}: {comparison.class_name} {comparison.confidence:.2f}; layer {comparison.layer}")
    if comparison.judgements:
        typer.echo(comparison.text())
    typer.echo(", ".join(map(str, paths)))
    for method, problem in comparison.failures.items():
        _complain(Failure(f"{method}: {problem}"))
    if comparison.failures:
        raise typer.Exit(1)


@app.command()
def evaluate(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="demo, 1000 generated pictures; a folder with one subfolder of pictures for each class (ImageNet's "
            "layout); or one that holds VOCdevkit/VOC2007.",
        ),
    ] = "demo",
    method_names: MethodsOption = "union_cam, score_cam, denoised_grad_cam, grad_cam",
    output: Annotated[
        Path, typer.Option("--out", "--output", metavar="FOLDER", help="Where the records go; made if need be.")
    ] = Path("evaluation"),
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="Which output each class of the data is: one line for each output, its first word the class's name "
            "in the data (as ImageNet's LOC_synset_mapping.txt), or .json with the output of each name.",
            show_default="by name or order",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="A random subset of N pictures.", show_default="all"),
    ] = None,
    seed: SeedOption = 0,
    protocol: ProtocolOption = Protocol.own,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    layer: LayerOption = None,
    preprocess: PreprocessOption = Preprocess.auto,
    confidence: ConfidenceOption = Confidence.softmax,
    theta: ThetaOption = 10.0,
    max_channels: MaxChannelsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    batch_size: BatchSizeOption = None,
    steps: StepsOption = 100,
    workers: Annotated[
        int, typer.Option("--workers", min=0, metavar="N", help="Processes that read pictures ahead.")
    ] = 2,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Do again what failed in an earlier start.")
    ] = False,
) -> None:
    """Evaluate methods over a data set, on one process or many.

    One record for each picture, class and method is appended to files in the folder; that of a method that fails is its
    error. Started again with the same settings, it does only what is missing; report shows what there is.

    For several GPUs or machines, each of which sees the folders:

    \b
    torchrun --nproc-per-node G --nnodes M -m captum_unioncam evaluate DATA ...
    """
    from captum_unioncam.datasets.voc import is_voc
    from captum_unioncam.evaluation.distributed import is_first_process, local_device
    from captum_unioncam.evaluation.run import Evaluation
    from captum_unioncam.evaluation.run import evaluate as evaluate_methods
    from captum_unioncam.models.subject import ExplainedModel

    if protocol is Protocol.paper:
        model = model if _given(context, "model") else "vgg16"
        preprocess = preprocess if _given(context, "preprocess") else Preprocess.paper
        # Of ImageNet; of Pascal VOC, the whole test set.
        limit = limit if _given(context, "limit") or is_voc(data) else 2000
        # Another model has another layer.
        layer = layer or ("features.29" if model == "vgg16" else None)
    wanted = _method_names(method_names)
    subject = ExplainedModel(
        model, _path(weights), layer, preprocess.value, local_device(device), sys.stderr.isatty(), confidence.value
    )
    settings = _method_settings(theta, max_channels, dtype, batch_size)
    evaluation = Evaluation(data, classes, limit, seed, steps, settings)
    first = is_first_process()
    if first:
        typer.echo(f"layer: {subject.layer_name}{_FOUND if subject.layer_found else ''}")
    tally = evaluate_methods(evaluation, subject, wanted, output, workers, first, retry_failures)
    typer.echo(
        f"{tally.records} new records of {tally.images} pictures in {output}, {tally.failures} of them failures; "
        f"captum-unioncam report {output} shows all."
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where an evaluation's records are.")] = Path(
        "evaluation"
    ),
) -> None:
    """Report on an evaluation in tables, plots and a page.

    Prints the means of each method, and writes them with their plots to FOLDER/report: table.csv, table.md, table.tex,
    curves.png, box.png, and report.html, which also shows the best and the worst maps. The evaluation need not have
    finished.
    """
    from captum_unioncam.evaluation.records import read_records, read_settings
    from captum_unioncam.report.page import write_report
    from captum_unioncam.report.statistics import summarize
    from captum_unioncam.report.tables import text

    settings = read_settings(folder)
    if settings is None:
        raise WrongArgument(
            f"{folder}: holds no evaluation; give the folder that captum-unioncam evaluate has written."
        )
    summary = summarize(read_records(folder))
    paths = write_report(folder, _photos(settings), summary)
    # In a file or a pipe a row is a line.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(text(summary, width, settings))
    typer.echo(f"\n{', '.join(map(str, paths))}")


@app.command("app")
def try_out(
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    device: DeviceOption = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, metavar="N", help="Port.", show_default="a free one from 7860 on"),
    ] = None,
) -> None:
    """Serve a page to try it on: a picture, a network, and the maps of several methods. Ctrl-C ends it.

    Visitors choose among the network given here, the embedded one and torchvision's.
    """
    from threading import Event

    try:
        from captum_unioncam.app.page import served
        from captum_unioncam.app.workbench import Workbench
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise Failure(
            "gradio is missing; install what the command needs with: pip install 'captum-unioncam[app]'"
        ) from error

    with suppress(KeyboardInterrupt), served(Workbench(model, _path(weights), device), host, port) as address:
        typer.echo(f"{address} (Ctrl-C ends it)")
        Event().wait()


def _given(context: typer.Context, name: str) -> bool:
    """Whether the option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _photos(settings: Settings) -> Callable[[str], Tensor | None]:
    """The photos of an evaluation as its model saw them, None where they are not at hand any more."""
    from captum_unioncam.datasets.open import picture_of
    from captum_unioncam.models.zoo import preprocessing_of

    def photo(name: str) -> Tensor | None:
        try:
            preprocessing = preprocessing_of(settings["model"], settings["preprocess"])
            return preprocessing.fit(picture_of(settings["data"], name))
        except Exception:
            # The report is of the records: it shows the maps without them.
            return None

    return photo


def _method_names(text: str) -> list[str]:
    """Those in a list with commas between, each once."""
    names = list(dict.fromkeys(name for name in (part.strip() for part in text.split(",")) if name))
    if not names:
        raise WrongArgument("--methods: is empty; give names with commas between.")
    return names


def _method_settings(theta: float, max_channels: int | None, dtype: Dtype, batch_size: int | None) -> MethodSettings:
    import torch

    from captum_unioncam.methods.settings import MethodSettings

    score_dtype = None if dtype is Dtype.float32 else getattr(torch, dtype.value)
    return MethodSettings(theta, max_channels, batch_size, score_dtype)


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


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
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "captum-unioncam"
        _complain(WrongArgument(f"{error.format_message().rstrip('.')}; see {command} --help."))
        return 2


def _complain(error: Exception) -> None:
    typer.echo(f"Error: {one_line(error)}", err=True)
