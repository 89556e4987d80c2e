"""Judges methods over a data set: resumable, on any number of processes.

On several devices or machines with a shared file system::

    torchrun --nproc-per-node 8 -m captum_unioncam evaluate DATA --methods union_cam,grad_cam --out DIR

Each process takes its share of the images, finds which of their records are missing, and writes those to its own file.
Processes do not communicate, so none waits for another, and an evaluation can be resumed by any number of them. The
first process writes the settings to the folder; the others compare theirs with them.
"""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_unioncam.datasets.base import DataSet, difficult, subset
from captum_unioncam.datasets.classes import names_of_outputs
from captum_unioncam.datasets.open import open_data_set
from captum_unioncam.engine._captum import NullProgress, progress
from captum_unioncam.engine.accelerators import Mark, current, has_streams
from captum_unioncam.engine.maps import minmax
from captum_unioncam.engine.representatives import REPRESENTATIVES
from captum_unioncam.evaluation.distributed import rank, world_size
from captum_unioncam.evaluation.judge import Judge, Judgement, Started, is_shortage, release
from captum_unioncam.evaluation.records import (
    FIRST_METRICS,
    MAP_SIZE,
    SHORTAGE,
    EvaluationSettings,
    Key,
    Record,
    RecordFile,
    begin_or_go_on,
    read_records,
    read_settings,
)
from captum_unioncam.evaluation.transfers import IMAGES_AHEAD, RESULTS_BEHIND, Uploads, queued, to_host
from captum_unioncam.methods.registry import PEER_PACKAGES, factory_of
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics.table import find_metrics
from captum_unioncam.models.preprocessing import Preprocessing
from captum_unioncam.models.subject import AUTO, ExplainedModel
from captum_unioncam.models.weights import fingerprint
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.versions import package_versions

_SECONDS_BETWEEN_LINES = 30

_PICTURES_FOR_CONFIDENCE = 8
"""That "auto" looks at."""


@dataclass(frozen=True)
class Evaluation:
    """The data and settings on which records depend.

    Args:
        data (str): "demo", or the folder of a data set, as ``open_data_set`` takes it.
        classes (Path or None): Its file of classes. Default: None
        limit (int or None): Size of a random subset of the images, the same in every process. Default: None, all
        seed (int): Seed of the subset and of methods that draw random numbers. Default: 0
        steps (int): Steps of the insertion and deletion curves. Default: 100
        settings (MethodSettings): The methods' settings. The batch size may differ between starts, since it changes
            only rounding.
        subset (str or None): "difficult" for the targets of TorchRay's subset of that name, as
            ``captum_unioncam.datasets.base.difficult`` has them; the limit is of the images that have some. Default:
            None, all
    """

    data: str
    classes: Path | None = None
    limit: int | None = None
    seed: int = 0
    steps: int = 100
    settings: MethodSettings = field(default_factory=MethodSettings)
    subset: str | None = None

    def names_and_targets(self, data_set: DataSet) -> dict[str, tuple[int, ...] | Failure]:
        """The targets of each chosen image, or why they cannot be read.

        Raises:
            WrongArgument: The subset is another, or has no target in the data set.
        """
        if self.subset is None:
            chosen = subset(data_set.names, self.limit, self.seed)
            return {name: _targets(data_set.targets, name) for name in chosen}
        if self.subset != "difficult":
            raise WrongArgument(f"subset={self.subset!r}: there is none; give subset='difficult', or leave it out.")
        found = {name: _targets(partial(difficult, data_set), name) for name in data_set.names}
        found = {name: targets for name, targets in found.items() if targets}
        if not found:
            raise WrongArgument(
                "subset='difficult': no image has an object on less than a quarter of it beside one of another class; "
                "give a data set with boxes or masks of several classes, or leave it out."
            )
        return {name: found[name] for name in subset(found, self.limit, self.seed)}

    def recorded(
        self,
        subject: ExplainedModel,
        chosen: Mapping[str, tuple[int, ...] | Failure],
        metric_names: Sequence[str],
    ) -> EvaluationSettings:
        """The settings as written beside the records."""
        images = [(name, None if isinstance(targets, Failure) else targets) for name, targets in chosen.items()]
        dtype = self.settings.score_dtype
        return {
            "data": self.data if self.data == "demo" else str(Path(self.data).resolve()),
            "images": len(images),
            "records_of_a_method": sum(1 if targets is None else len(targets) for _, targets in images),
            "images_sha256": hashlib.sha256(repr(images).encode(errors="surrogatepass")).hexdigest(),
            "classes": None if self.classes is None else str(self.classes),
            "limit": self.limit,
            # Earlier versions do not name it.
            **({} if self.subset is None else {"subset": self.subset}),
            "seed": self.seed,
            "model": subject.classifier.name,
            "weights": subject.weights,
            "model_sha256": fingerprint(subject.model),
            "layer": subject.layer_name,
            "preprocess": subject.preprocess,
            "confidence": subject.confidence,
            **({} if subject.output_fn is None else {"output_fn": str(subject.output_fn)}),
            # The default of this package's methods.
            "theta": 10.0 if self.settings.theta is None else self.settings.theta,
            "max_channels": self.settings.max_channels,
            "channel_selection": None
            if self.settings.max_channels is None
            else self.settings.channel_selection or REPRESENTATIVES,
            "dtype": "float32" if dtype is None else str(dtype).removeprefix("torch."),
            "steps": self.steps,
            "metrics": list(metric_names),
            "versions": package_versions(*PEER_PACKAGES),
        }


@dataclass
class Tally:
    """Counts of one process: records written, failures and shortages of memory among them, and images."""

    records: int = 0
    failures: int = 0
    shortages: int = 0
    images: int = 0


def evaluate(
    evaluation: Evaluation,
    subject: ExplainedModel,
    method_names: Sequence[str],
    folder: Path,
    workers: int = 2,
    show_progress: bool = True,
    retry_failures: bool = False,
    metric_names: Iterable[str] | None = None,
    accept_other_versions: bool = False,
) -> Tally:
    """Judges the methods on every image and target that has no record yet.

    On a GPU, images are copied before their turn, and results are read while the next ones are computed.

    Args:
        evaluation (Evaluation): The data and the settings.
        subject (ExplainedModel): The model and the layer. If its classifier has no names of classes, it gets those of
            the evaluation's file of classes.
        method_names (Sequence[str]): As ``captum_unioncam.methods`` knows them. A later start may add others.
        folder (Path): Holds the records; made if need be.
        workers (int): Processes that read images while the device computes. Default: 2
        show_progress (bool): Show a progress bar on the standard error stream. Default: True
        retry_failures (bool): Also redo records that hold an error. Those of exhausted memory are always redone.
            Default: False
        metric_names (Iterable[str] or None): As ``captum_unioncam.metrics.table`` knows them. Default: None, those of
            the folder's evaluation, or all in a new one
        accept_other_versions (bool): Continue although packages have other versions than at the first start. Default:
            False

    Returns:
        *Tally*: The counts of this process.

    Raises:
        WrongArgument: There is no such data set, method or metric, or the folder holds an evaluation with other
            settings.
        Failure: The folder cannot be written.
    """
    data_set = open_data_set(evaluation.data, subject.classifier.class_names, subject.classes, evaluation.classes)
    if evaluation.classes is not None and subject.classifier.class_names is None:
        names = names_of_outputs(evaluation.classes, subject.classes)
        subject.classifier = replace(subject.classifier, class_names=names)
    if metric_names is None and (begun := read_settings(folder)) is not None:
        metric_names = begun.get("metrics", FIRST_METRICS)
    # Before the targets are read, for which the demo's 1000 images are drawn.
    for name in method_names:
        factory_of(name)
    find_metrics(metric_names)
    chosen = evaluation.names_and_targets(data_set)
    if subject.confidence == AUTO:
        _settle_confidence(subject, data_set, chosen)
    judge = Judge(subject, method_names, evaluation.settings, evaluation.steps, evaluation.seed, metric_names)
    settings = evaluation.recorded(subject, chosen, [metric.name for metric in judge.metrics])
    begin_or_go_on(folder, settings, accept_other_versions)
    # Shares are of all images, not of the missing ones, which change while other processes write.
    share = dict(list(chosen.items())[rank() :: world_size()])
    missing = _missing(folder, share, method_names, retry_failures)
    total = sum(map(len, missing.values()))
    tally = Tally(images=len(missing))
    loader = DataLoader(
        _Pictures(data_set, subject.classifier.preprocessing),
        sampler=list(missing),
        batch_size=None,
        num_workers=min(workers, len(missing)),
        worker_init_fn=_end_with_the_run,
    )
    # A bar that is not on a terminal writes a line to a log at each update.
    interval = 0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    bar = progress(desc="records", total=total, mininterval=interval) if show_progress and total else NullProgress()
    is_queued = has_streams(subject.device)
    with RecordFile(folder) as file, bar, current(subject.device):
        images = queued(_placed(subject, _reported(loader)), IMAGES_AHEAD if is_queued else 0)
        records = (one for image in images for one in _records(judge, image, missing[image.name], chosen[image.name]))
        for record in queued(records, RESULTS_BEHIND if is_queued else 0):
            file.append(record)
            tally.records += 1
            tally.shortages += record.is_shortage
            tally.failures += record.error is not None and not record.is_shortage
            bar.update()
    return tally


def _targets(of: Callable[[str], tuple[int, ...]], name: str) -> tuple[int, ...] | Failure:
    try:
        return of(name)
    except Failure as error:
        return error


def _settle_confidence(
    subject: ExplainedModel, data_set: DataSet, chosen: Mapping[str, tuple[int, ...] | Failure]
) -> None:
    """Finds out by the first images that can be read whether the model's outputs are logits."""
    shown: list[Tensor] = []
    for name in chosen:
        if len(shown) == _PICTURES_FOR_CONFIDENCE:
            break
        try:
            shown.append(subject.shown(data_set.sample(name).picture))
        except Failure:
            continue
    several = any(len(targets) > 1 for targets in chosen.values() if not isinstance(targets, Failure))
    subject.settle_confidence(shown, exclusive=not several)


def _reported(loader: DataLoader[_Seen]) -> Iterator[_Seen]:
    """The images that the workers read; a ``Failure`` if a worker dies or cannot be started."""
    try:
        if loader.num_workers:
            # Fails early where locks cannot be shared, before the loader is partly constructed.
            multiprocessing.Lock()
        yield from loader
    except (RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise Failure(
            f"a process that reads images has died or cannot be started ({one_line(error)}); start again with "
            "--workers 0, which goes on where it was, and fails at the image."
        ) from error


def _end_with_the_run(_worker: int) -> None:
    """End a worker whose run was killed. PyTorch's own worker would wait forever to hand on an image."""

    def wait() -> None:
        run = multiprocessing.parent_process()
        if run is not None:
            run.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _placed(subject: ExplainedModel, pictures: Iterable[_Seen]) -> Iterator[Callable[[], _Seen]]:
    """The images as they were read, and what the model gets of them where that is copied beside its passes."""
    uploads = Uploads(subject.device) if has_streams(subject.device) else None
    for seen in pictures:
        given = None if uploads is None or seen.shown is None else _uploaded(uploads, subject, seen)
        yield given or partial(replace, seen)


def _uploaded(uploads: Uploads, subject: ExplainedModel, seen: _Seen) -> Callable[[], _Seen] | None:
    """Starts the copies; None, or an image without them, where that fails: its methods try it again and say why."""
    assert seen.shown is not None
    try:
        given = subject.input_and_baseline(torch.from_numpy(seen.shown), torch.device("cpu"))
        masks = seen.masks_on_cpu()
        copied = uploads.start([*given, *masks.values()])
    except Exception:
        return None

    def arrived() -> _Seen:
        try:
            inputs, black, *objects = copied()
        except Exception:
            return seen
        return replace(seen, given=(inputs, black), masks=dict(zip(masks, objects, strict=True)))

    return arrived


def _records(
    judge: Judge, seen: _Seen, keys: Sequence[Key], targets: tuple[int, ...] | Failure
) -> Iterator[Callable[[], Record]]:
    """Functions that give the missing records of one image, which a GPU may still be computing."""
    class_name = judge.subject.classifier.class_name
    error = one_line(targets) if isinstance(targets, Failure) else seen.error
    if error is not None or seen.shown is None:
        for name, target, method in keys:
            yield partial(Record, name, target, None if target is None else class_name(target), method, error=error)
        return
    # One class at a time, to measure the seconds of one.
    pairs = [(method, (target,)) for _, target, method in keys if target is not None]
    masks = seen.masks_on_cpu() if seen.masks is None else seen.masks
    for started in judge.started(pairs, torch.from_numpy(seen.shown), masks, seen.name, given=seen.given):
        coming: list[tuple[Tensor, Mark]] = []
        try:
            coming = [(to_host(_thumbnail(x.attribution)), Mark(judge.subject.device)) for x in started.pending]
        except Exception as error:
            # A GPU reports errors late: this may be one of an earlier pass.
            started = replace(started, pending=[], error=error)
        release(started.error)
        yield partial(_record, judge, seen.name, started, coming)


def _record(judge: Judge, name: str, started: Started, coming: Sequence[tuple[Tensor, Mark]]) -> Record:
    """The record of what was started, when it has arrived."""
    (target,) = started.targets
    outcome, class_name, device = started.outcome(), judge.subject.classifier.class_name(target), judge.subject.device
    if outcome.error is not None:
        release(outcome.error)
        if not _answers(device):
            raise Failure(
                f"{device} has failed while {outcome.method} explained {class_name} of {name} "
                f"({one_line(outcome.error.__cause__ or outcome.error)}); start again, which goes on where this was."
            ) from outcome.error
        problem = f"{SHORTAGE}{outcome.problem}" if outcome.is_shortage else outcome.problem
        return Record(name, target, class_name, outcome.method, error=problem)
    ((small, arrived),) = coming
    arrived.wait()
    return Record(name, target, class_name, outcome.method, **_numbers(outcome.judgements[0], small))


def _answers(device: torch.device) -> bool:
    """Whether the device still computes; after some errors a GPU no longer does in this process."""
    try:
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def _numbers(judgement: Judgement, small: Tensor) -> dict[str, Any]:
    """The judgement as fields of a record."""
    return {
        "confidence": _short(judgement.confidence),
        "values": {name: _short(value) for name, value in judgement.values.items()},
        "curves": {name: [round(value, 4) for value in curve] for name, curve in judgement.curves.items()},
        "map": base64.b64encode(small.numpy().tobytes()).decode(),
    }


def _short(value: float) -> float:
    """Six digits; further ones differ between devices by rounding."""
    return float(f"{value:.6g}")


def _thumbnail(attribution: Tensor) -> Tensor:
    small = minmax(F.interpolate(attribution, (MAP_SIZE, MAP_SIZE), mode="area"))
    return (small * 255).round().to(torch.uint8)


# Workers send arrays, which go through a pipe. Tensors need shared memory: a container has 64 MB of it, and where it is
# full, workers hang.
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Seen:
    """An image and the masks of its objects as the model sees them, or why it cannot be read.

    ``objects`` are the masks that show something. ``given`` is the model's input and baseline, and ``masks`` the
    objects, copied to a GPU.
    """

    name: str
    shown: Array | None
    objects: dict[int, Array]
    error: str | None = None
    given: tuple[Tensor, Tensor] | None = None
    masks: dict[int, Tensor] | None = None

    def masks_on_cpu(self) -> dict[int, Tensor]:
        """The objects as tensors."""
        return {target: torch.from_numpy(mask) for target, mask in self.objects.items()}


class _Pictures(Dataset[_Seen]):
    """Pictures by name, read and preprocessed in a worker."""

    def __init__(self, data_set: DataSet, preprocessing: Preprocessing) -> None:
        self.data_set = data_set
        self.preprocessing = preprocessing

    def __getitem__(self, name: str) -> _Seen:
        try:
            sample = self.data_set.sample(name)
            shown = self.preprocessing.fit(sample.picture)
            objects = {
                target: self.preprocessing.objects_seen(mask, sample.boxes.get(target, ())).numpy()
                for target, mask in sample.objects.items()
                if mask is not None
            }
        except Exception as error:
            # An image that cannot be read must not end the run.
            return _Seen(name, None, {}, f"{SHORTAGE if is_shortage(error) else ''}{one_line(error)}")
        return _Seen(name, shown.numpy(), {target: mask for target, mask in objects.items() if mask.any()})


def _missing(
    folder: Path, share: Mapping[str, tuple[int, ...] | Failure], method_names: Sequence[str], retry_failures: bool
) -> dict[str, list[Key]]:
    """The keys of missing records, by image. Includes records of exhausted memory, which may suffice now."""
    done = {
        record.key
        for record in read_records(folder)
        if record.error is None or not (retry_failures or record.is_shortage)
    }
    missing: dict[str, list[Key]] = defaultdict(list)
    for name, targets in share.items():
        for target in (None,) if isinstance(targets, Failure) else targets:
            missing[name] += [key for key in ((name, target, method) for method in method_names) if key not in done]
    return {name: keys for name, keys in missing.items() if keys}
