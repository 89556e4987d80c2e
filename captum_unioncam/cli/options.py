"""The options that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Preprocess(StrEnum):
    auto = "auto"
    paper = "paper"


class ChannelWeights(StrEnum):
    score = "score"
    softmax = "softmax"


class Protocol(StrEnum):
    own = "own"
    paper = "paper"


class Confidence(StrEnum):
    softmax = "softmax"
    sigmoid = "sigmoid"
    none = "none"


class Dtype(StrEnum):
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
    str | None,
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

ConfidenceOption = Annotated[
    Confidence,
    typer.Option(
        "--confidence",
        help="What makes confidences of the model's outputs: softmax; sigmoid, for classes that do not exclude each "
        "other; none, where they are confidences.",
    ),
]

DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute: cpu, cuda, cuda:1, mps.",
        show_default="cuda where there is one",
    ),
]

DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Precision that channels are scored in; half of it is faster on many devices.")
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

MethodOption = Annotated[
    str,
    typer.Option("--method", metavar="NAME", help="Method, of those that captum-unioncam methods lists."),
]

MethodsOption = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar="NAMES",
        help="Methods, with commas between: those that captum-unioncam methods lists, torchcam:NAME and grad_cam:NAME "
        "for any CAM of those packages, or package.module:function, a factory of your own.",
    ),
]

MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="NAMES",
        help="Metrics, with commas between: those that captum-unioncam metrics lists.",
        show_default="all",
    ),
]

TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="CLASS", help="Class to explain: index or name.", show_default="predicted"),
]

StepsOption = Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps of the metrics' curves.")]

SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, metavar="N", help="Seed of random subsets, and of methods that draw random numbers."),
]

ProtocolOption = Annotated[
    Protocol,
    typer.Option(
        "--protocol",
        help="own: as the other options say. paper: as the UnionCAM paper has it, --model vgg16 --layer features.29 "
        "--preprocess paper --theta 10 --limit 2000 (of Pascal VOC all), except for those of them that are given.",
    ),
]

OutputOption = Annotated[
    Path, typer.Option("--output", "--out", metavar="FOLDER", help="Where the files go; made if need be.")
]
