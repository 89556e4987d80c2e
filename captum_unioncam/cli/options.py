"""The options that commands share."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from captum_unioncam.models import MODELS

Preprocess = StrEnum("Preprocess", ["auto", "paper"])
ChannelSelection = StrEnum("ChannelSelection", ["representatives", "deviation"])
Quality = StrEnum("Quality", ["exact", "balanced", "fast"])
Confidence = StrEnum("Confidence", ["softmax", "sigmoid", "none"])
SettledConfidence = StrEnum("SettledConfidence", ["softmax", "sigmoid", "none", "auto"])
Subset = StrEnum("Subset", ["difficult"])
Dtype = StrEnum("Dtype", ["float32", "bfloat16", "float16"])

CONFIDENCES = (
    "What turns the model's outputs into confidences: softmax; sigmoid, for classes that do not exclude each other; "
    "none, where the outputs are confidences"
)
"""The help of --confidence, to which evaluate adds."""

CommandT = TypeVar("CommandT", bound=Callable[..., None])

ImagesArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="IMAGES", help="Image files, folders or patterns.", show_default="the demo image"),
]
ModelOption = Annotated[str, typer.Option(metavar="NAME", help=f"{MODELS}.")]
PhotoModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"{MODELS}.", show_default="demo; for photos resnet18")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Weights of the model: .safetensors, or a state dict saved by torch.save; random leaves models of timm "
        "and Hugging Face untrained.",
        show_default="the model's own, which are downloaded",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where to compute: cpu, or an accelerator by its kind in PyTorch: cuda, cuda:1, xpu, mps.",
        show_default="the accelerator if there is one, else cpu",
    ),
]
TargetOption = Annotated[
    str | None, typer.Option(metavar="CLASS", help="Class to explain: index or name.", show_default="predicted")
]

MethodsOption = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Methods, separated by commas: all, or those that captum-unioncam methods lists, torchcam:NAME and "
        "grad_cam:NAME for any CAM of those packages, or package.module:function, a factory of your own.",
    ),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Metrics, separated by commas: all, or those that captum-unioncam metrics lists.",
        show_default="all that are not listed as on request",
    ),
]
QualityOption = Annotated[
    Quality | None,
    typer.Option(
        help="exact: score all channels. balanced: 128 representatives of them. fast: 32, in 16 bits where the "
        "processor has such arithmetic.",
        show_default="exact",
    ),
]
StepsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Steps of the metrics' curves.")]
SeedOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Seed of random subsets, and of methods that draw random numbers.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "--out", "-o", metavar="FOLDER", help="Output folder; created if missing.")
]
ColormapOption = Annotated[
    str, typer.Option(metavar="NAME", help="The maps' colours: glow, or one of matplotlib's, such as viridis.")
]
OpacityOption = Annotated[
    float,
    typer.Option(min=0, max=1, metavar="SHARE", help="Opacity of a map's highest value; the lowest has half of it."),
]
DpiOption = Annotated[
    int, typer.Option(min=20, max=2400, metavar="N", help="Resolution of the figures, in pixels per inch.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads to compute with.", show_default="by PyTorch")
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the first file that is written.")]


def _model_options(
    model: PhotoModelOption = None,
    weights: WeightsOption = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the model's classes, in the order of its outputs: one a line, or a list in .json.",
            show_default="the model's own",
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer to explain, such as features.28.",
            show_default="the last layer with a spatial output",
        ),
    ] = None,
    preprocess: Annotated[
        Preprocess,
        typer.Option(
            help="auto: as the weights were trained. paper: as in the UnionCAM paper, 224x224 in [0, 1], nothing else."
        ),
    ] = Preprocess.auto,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="For your own model: resize images to N by N pixels; with --crop, resize their shorter side to N.",
            show_default="224",
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="For your own model: crop to the middle square of N by N pixels, after resizing."
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="For your own model: mean of each channel, subtracted from pixels in [0, 1].",
            show_default="0,0,0",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="For your own model: standard deviation of each channel, by which the difference is divided.",
            show_default="1,1,1",
        ),
    ] = None,
    confidence: Annotated[Confidence, typer.Option(help=f"{CONFIDENCES}.")] = Confidence.softmax,
    output_fn: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="package.module:function, what the model returns to the tensor (N, classes) to explain.",
            show_default="the tensor itself, or the one named logits or out, or the only one",
        ),
    ] = None,
    theta: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Percentile of the gradients below which they are noise.",
            show_default="the method's own, 10 for UnionCAM",
        ),
    ] = None,
    max_channels: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Score at most N channels of an image, which is faster.", show_default="all"
        ),
    ] = None,
    channel_selection: Annotated[
        ChannelSelection | None,
        typer.Option(
            help="Which channels --max-channels scores: representatives of all, or those of largest standard "
            "deviation.",
            show_default="representatives",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Precision in which channels are scored; 16 bits are faster on many devices.")
    ] = Dtype.float32,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Batch size of the masked forward passes. Halved automatically when memory runs out.",
            show_default="by a fixed rule",
        ),
    ] = None,
) -> None:
    """The options of explain, compare and evaluate for the model and the methods."""


def with_model_options(command: CommandT) -> CommandT:
    """Adds ``_model_options`` to those of a command, which gets them in ``context.params``; its own go before."""
    own = inspect.signature(command, eval_str=True)
    named = {name: given for name, given in own.parameters.items() if given.kind is not given.VAR_KEYWORD}
    shared = inspect.signature(_model_options, eval_str=True).parameters
    # In their place among the shared.
    last = {name: named.pop(name, option) for name, option in shared.items()}
    command.__signature__ = own.replace(parameters=[*named.values(), *last.values()])  # type: ignore[attr-defined]
    return command


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
