"""A campaign against reliability: runs killed, records damaged, calls interrupted and fuzzed, threads on one model.

``python -m benchmarks.campaign`` prints how much was tried and what came of it: a wrong result or a model left changed,
an error that does not say which argument it is about, or a call that does not end. All three are to be 0. It attacks
with the helpers of the tests, which try a little of the same each time.
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.machine import markdown
from captum_unioncam import LayerScoreCam, LayerUnionCam
from captum_unioncam.engine.checks import described
from captum_unioncam.evaluation.records import Record, read_records
from captum_unioncam.system.errors import Failure
from captum_unioncam.testing import networks
from captum_unioncam.testing.state_checks import state_of, training_net
from tests.attr import reference
from tests.attr import test_arguments as arguments
from tests.engine import test_interrupts as interrupts
from tests.engine import test_threads as threads
from tests.evaluation.test_run import FORKS, settle
from tests.networks import PooledNet, TinyNet, same, tiny_inputs

METHODS = ("grad_cam", "score_cam")
EVALUATE = ["evaluate", "demo", "--limit", "8", "--methods", ",".join(METHODS), "--steps", "2", "--workers", "0"]
PASSES = ["--device", "cpu", "--batch-size", "8"]
SECONDS = 50
"""After which a call does not end."""

# Of all types, and right for few arguments.
VALUES: list[Any] = [
    *(None, True, 0, -1, 3, 10**30, 1.5, float("nan"), float("inf"), 1j, "a", "", b"a", [], (), {}, set(), [0], (0, 0)),
    *([[0]] * 3, [None] * 3, object(), str, len, torch.tensor(1), torch.ones(3), torch.ones(0), torch.ones(3, 2, 8, 6)),
    *(torch.ones(3, 1, 4, 3), torch.full((3, 1, 4, 3), torch.nan), torch.ones(3) > 0, torch.ones(3, 2, 8, 6) + 0j),
    *(torch.ones(2, device="meta"), torch.ones(3, 2, 8, 6).to_sparse(), torch.nn.ReLU(), range(3), slice(0, 1)),
]


class DoesNotEnd(BaseException):
    """A call took too long; only the campaign catches it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what does not end by itself."""

    def end(*_: Any) -> None:
        raise DoesNotEnd

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


Trial = Callable[[random.Random], str]
"""Tries one thing, and says what came of it: "right", "refused", "wrong: ..." or "confusing: ..."."""


def tried(what: str, trial: Trial, times: int, seed: int, seconds: int = SECONDS) -> dict[str, str]:
    """A row of the table; what is wrong, confusing or does not end is printed at once."""
    outcomes = Counter[str]()
    for number in range(times):
        try:
            with limited(seconds):
                outcome = trial(random.Random(f"{seed} {what} {number}"))
        except DoesNotEnd:
            outcome = "hanging"
        except Exception as error:
            outcome = f"wrong: {error!r}"
        kind = outcome.partition(":")[0]
        if kind not in ("right", "refused"):
            print(f"{what}, number {number}: {outcome}", flush=True)
        outcomes[kind] += 1
    row = {"tried": what, "times": str(times)}
    row |= {kind: str(outcomes[kind]) for kind in ("right", "refused", "wrong", "confusing", "hanging")}
    print(markdown([row]), flush=True)
    return row


# Runs that are killed, and the records that they leave.


def evaluate(out: Path) -> None:
    """The command, in a process of its own."""
    from captum_unioncam.cli.main import main

    settle()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        raise SystemExit(main([*EVALUATE, *PASSES, "--out", str(out)]))


def ended(out: Path, after: float | None = None) -> int | None:
    """How the command ended, which is killed after so many seconds."""
    process = FORKS.Process(target=evaluate, args=(out,))
    process.start()
    try:
        process.join(4 * SECONDS if after is None else after)
    finally:
        process.kill()
        process.join()
    return process.exitcode


def records_in(folder: Path) -> list[Record]:
    """All records, with their seconds set to 0: these differ from run to run."""
    found = (replace(each, values={**each.values, "seconds": 0.0}) for each in read_records(folder))
    return sorted(found, key=lambda each: str(each.key))


def killed(whole: list[Record], longest: float) -> Trial:
    """Runs that are killed one to four times are finished like one that never was."""

    def trial(chance: random.Random) -> str:
        with tempfile.TemporaryDirectory() as name:
            for _ in range(chance.randint(1, 4)):
                ended(Path(name), chance.uniform(0, longest))
            code = ended(Path(name))
            return "right" if code == 0 and records_in(Path(name)) == whole else f"wrong: ended with {code}"

    return trial


def damaged(content: bytes, whole: list[Record]) -> Trial:
    """Of a damaged file, records are read as they were written, or not at all."""

    def trial(chance: random.Random) -> str:
        line = bytearray(content)
        start = chance.randrange(len(line))
        end = min(len(line), start + chance.choice([1, 1, 4, 64, 1024]))
        match chance.choice(["bit", "bytes", "zeros", "cut out", "cut off", "repeated"]):
            case "bit":
                line[start] ^= 1 << chance.randrange(8)
            case "bytes":
                line[start:end] = chance.randbytes(end - start)
            case "zeros":
                line[start:end] = bytes(end - start)
            case "cut out":
                del line[start:end]
            case "cut off":
                del line[start:]
            case "repeated":
                line[end:end] = line[start:end]
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "records").mkdir()
            (Path(name) / "records" / "a.jsonl").write_bytes(line)
            try:
                found = records_in(Path(name))
            except Failure:
                return "refused"
            except Exception as error:
                return f"confusing: {error!r}"
        return "right" if all(each in whole for each in found) else "wrong: a record is another"

    return trial


# Calls that are interrupted.


def interrupted(chance: random.Random) -> str:
    """Ctrl-C before any line leaves the model as it was."""
    explain = chance.choice([interrupts.union_cam, interrupts.score_cam, interrupts.insertion])
    net = training_net()
    model = chance.choice([net, lambda x: net(x)])

    def call() -> None:
        explain(model, net)

    # The first call learns what later ones know.
    call()
    before, lines = state_of(net), interrupts.traced(call, lambda line: None)
    number = chance.randint(1, lines - 1)
    interrupts.interrupted(call, number)
    changed = [name for name, value in state_of(net).items() if value != before[name]]
    return f"wrong: {changed} after {explain.__name__}, line {number} of {lines}" if changed else "right"


# Calls with any arguments.


class TakesAnything(PooledNet):
    """Further arguments make no difference."""

    def forward(self, x: Tensor, *_more: Any) -> Tensor:
        return super().forward(x)


def fuzzed(chance: random.Random) -> str:
    """A wrong argument is named; and what is taken leaves the model as it was."""
    net = TakesAnything()
    function = chance.choice([*arguments.METHODS, *arguments.OF_MASKS, *arguments.GAMES])
    given = {"inputs": tiny_inputs(), "target": 1, "attributions": arguments.MAPS, "objects": arguments.OBJECTS}
    names = [name for name in arguments.signature_of(function) if name not in ("self", "forward_func")]
    name, value = chance.choice(names), chance.choice(VALUES)
    given = {key: value for key, value in given.items() if key in names} | {name: value}
    call = f"{function.__name__}({name}={described(value)})"
    before = state_of(net)
    try:
        if isinstance(function, type):
            function(net, net.features).attribute(**given)
        else:
            function(**({"forward_func": net} if function in arguments.OF_MASKS else {}), **given)
        outcome = "right"
    except Exception as error:
        expected = isinstance(error, (ValueError, TypeError, AssertionError))
        is_clear = expected and name in str(error).partition(";")[0]
        # Whether inputs fit a model, it says itself; a linear CAM says it of fc.
        is_the_models = name == "inputs" and networks.__file__ in places_of(error)
        is_clear = is_clear or str(error).startswith("fc: ")
        outcome = "refused" if is_clear or is_the_models else f"confusing: {call}: {error!r}"
    return outcome if state_of(net) == before else f"wrong: {call} left a change"


def places_of(error: Exception) -> set[str]:
    """The files that it went through."""
    return {frame.filename for frame in traceback.extract_tb(error.__traceback__)}


def right_arguments(chance: random.Random) -> str:
    """Maps are those of plain loops, whatever the arguments."""
    net, inputs = (
        TinyNet(seed=chance.randrange(9)),
        tiny_inputs(examples=chance.randint(1, 4), seed=chance.randrange(99)),
    )
    of_loops: dict[str, Any] = {"theta": chance.uniform(0, 100)}
    target = chance.randrange(4)
    passes = {"internal_batch_size": chance.choice([None, "auto", 1, 2, 7, 1000])}
    method = chance.choice([LayerUnionCam, LayerScoreCam])
    own = of_loops if method is LayerUnionCam else {}
    model = chance.choice([net, net.forward, lambda x: net(x), torch.nn.Sequential(net)])
    made = method(model, net.features).attribute(inputs, target, **own, **passes)
    loops = [reference.union_cam(net, net.features, example, target, **of_loops) for example in inputs.split(1)]
    expected = torch.cat([each.attribution if method is LayerUnionCam else each.region for each in loops])
    right = made.shape == expected.shape and torch.allclose(made, expected, rtol=0, atol=1e-9)
    return "right" if right else f"wrong: {method.__name__}, {of_loops | passes}, target {target}"


# Threads.


def shared(chance: random.Random) -> str:
    """Threads that share a model get what each alone gets."""
    what = chance.choice(list(threads.WORK))
    net, work = threads.slow_net(train=chance.random() < 0.5), threads.WORK[what]
    inputs = [tiny_inputs(seed=chance.randrange(99)) for _ in range(threads.THREADS)]
    expected = [work(net, net, x) for x in inputs]
    before = state_of(net)
    results = threads.in_threads(lambda number: work(net, net, inputs[number]))
    right = all(same(result, right) for result, right in zip(results, expected, strict=True))
    return "right" if right and state_of(net) == before else f"wrong: {what}"


def main(
    kills: Annotated[int, typer.Option(help="Runs of evaluate, each killed one to four times.")] = 30,
    damages: Annotated[int, typer.Option(help="Damaged files of records.")] = 6000,
    stops: Annotated[int, typer.Option(help="Calls interrupted before one of their lines.")] = 2900,
    calls: Annotated[int, typer.Option(help="Calls with an argument of any kind, and as many with right ones.")] = 1600,
    thread_calls: Annotated[int, typer.Option(help="Calls in several threads at once, on one model.")] = 400,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
) -> None:
    """Tries all of it."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        ended(Path(name) / "warm")
        start = time.monotonic()
        ended(Path(name) / "whole")
        seconds = time.monotonic() - start
        whole = records_in(Path(name) / "whole")
        (file,) = (Path(name) / "whole" / "records").iterdir()
        content = file.read_bytes()
        assert len(whole) == 8 * len(METHODS)
        rows.append(tried("evaluate killed, and finished", killed(whole, seconds), kills, seed, 20 * SECONDS))
    rows.append(tried("records damaged, and read", damaged(content, whole), damages, seed))
    rows.append(tried("Ctrl-C before a line", interrupted, stops, seed))
    rows.append(tried("an argument of any kind", fuzzed, calls, seed))
    rows.append(tried("right arguments", right_arguments, calls, seed))
    rows.append(tried("a model shared by threads", shared, thread_calls, seed))
    print(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
