"""Methods over a data set: resumed after any end, shared by processes, whatever images, methods and disks do.

Runs are compared record by record, all but the seconds. On one thread, in passes of a fixed size and under
``use_deterministic_algorithms`` they are the same to the last digit.
"""

import contextlib
import errno
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_unioncam import demo, methods
from captum_unioncam.cli.main import main
from captum_unioncam.datasets.open import open_data_set
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.evaluation import distributed
from captum_unioncam.evaluation import run as evaluation_run
from captum_unioncam.evaluation.records import FIRST_METRICS, read_records
from captum_unioncam.evaluation.run import Evaluation, evaluate
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics import table
from captum_unioncam.models.preprocessing import Preprocessing
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.models.weights import fingerprint
from captum_unioncam.models.zoo import preprocessing_of
from captum_unioncam.system.errors import Failure, WrongArgument
from tests.datasets.test_data_sets import add_voc_picture, corners

OWN_CODE = """
import os, signal, time, torch
from captum_unioncam import demo, methods

if "SETTLED" in os.environ:
    torch.use_deterministic_algorithms(True)

def mortal(model, layer, settings):
    "GradCAM that takes its time, and kills its process at the second call where torchrun is to start it anew."
    grad_cam, calls = methods.create("grad_cam", model, layer), []
    def attribute(*arguments):
        calls.append(1)
        time.sleep(float(os.environ.get("PAUSE", 0)))
        restarts = [os.environ.get(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "MAX_RESTARTS")]
        if restarts == ["0", "1"] and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return grad_cam(*arguments)
    return attribute

def of_rank():
    "The demo network for the paper's preprocessing, with other weights in every process."
    model = torch.nn.Sequential(torch.nn.AvgPool2d(2), demo.load_model())
    with torch.no_grad():
        next(model.parameters()).add_(int(os.environ.get("RANK", 0)))
    return model
"""
OWN_MODEL = ["--model", "own_code:of_rank", "--classes", "classes.json"]
METHODS = ("grad_cam", "gradient_shap", "own_code:mortal")
PASSES = ["--device", "cpu", "--steps", "2", "--batch-size", "8"]
OUT = Path("out")
IMAGES = [f"JPEGImages/{index:06d}.jpg" for index in range(6)]
BROKEN_PICTURE, BROKEN_ANNOTATION = IMAGES[3], IMAGES[4]
SECONDS = 300
"""After which something hangs."""

# Processes that have imported all that is slow to import before they are forked off.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["captum_unioncam.cli.main", "captum_unioncam.evaluation.run", "torchvision.datasets"])


def settle():
    # The network is tiny: several threads would mostly wait for one another.
    torch.set_num_threads(1)
    # Then passes are run as given, and not as was fastest so far, which rounds differently.
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="module", autouse=True)
def settled():
    threads = torch.get_num_threads()
    settle()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pascal VOC's layout: six images, two of them of two classes, one broken, and one with a broken annotation.

    With each method there are 8 records, 2 of them failures.
    """
    folder = tmp_path_factory.mktemp("data")
    demo.write_voc(folder, 6, seed=3)
    voc = folder / "VOCdevkit" / "VOC2007"
    (voc / BROKEN_PICTURE).write_bytes(b"no image")
    (voc / "Annotations" / "000004.xml").write_text("<annotation>")
    (folder / "own_code.py").write_text(OWN_CODE)
    return folder


@pytest.fixture(autouse=True)
def beside_the_data(data, tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    (tmp_path / "classes.json").write_text(json.dumps({name: i for i, name in enumerate(demo.CLASS_NAMES)}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})


@pytest.fixture(scope="module")
def unbroken_folder(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(data)
        # Another file's tests may have theirs.
        monkeypatch.delitem(sys.modules, "own_code", raising=False)
        assert main(command(data, out)) == 0
    return out


@pytest.fixture(scope="module")
def unbroken(unbroken_folder):
    """The records of one process that nothing stops."""
    return records_in(unbroken_folder)


@pytest.fixture
def finished(unbroken_folder, beside_the_data):
    """Such an evaluation in ``OUT``."""
    shutil.copytree(unbroken_folder, OUT)


@pytest.fixture(scope="module")
def subject():
    return ExplainedModel(device="cpu")


def command(data, out=OUT, *more, method_names=METHODS):
    how = ["--model", "demo", *PASSES, "--workers", 0]
    parts = ["evaluate", data, "--out", out, "--methods", ",".join(method_names), *how, *more]
    return [str(part) for part in parts]


def run(capsys, *arguments, **more):
    capsys.readouterr()
    code = main(command(*arguments, **more))
    out, err = capsys.readouterr()
    # Some images have another size than the demo's, which a note says.
    return code, out.splitlines(), [line for line in err.splitlines() if not line.startswith("Note: ")]


def errors_of(err):
    """The lines on stderr that are not of the progress bar."""
    lines = [part for line in err for part in line.split("\r")]
    return [line for line in lines if line and not line.startswith("records:")]


def lines_in(out):
    """The whole lines of an evaluation's files of records."""
    return [line for path in out.glob("records/*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]


def records_in(out):
    """What each record says, by what it is of: read by the test's own means; there is only one of each."""
    found = {}
    for line in lines_in(out):
        record = json.loads(line)
        del record["crc"]
        key = record["image"], record.get("target"), record["method"]
        assert key not in found
        assert ("values" in record) != ("error" in record)
        if "values" in record:
            record["values"].pop("seconds")
        found[key] = record
    return found


def of_methods(records, *method_names):
    return {key: record for key, record in records.items() if key[2] in method_names}


# Other processes.


def in_fork(arguments, environment, log):
    """The command as a process of its own."""
    os.environ.update(environment)
    # A fork server's processes would start their own workers by another, which has imported nothing.
    multiprocessing.set_start_method("fork", force=True)
    settle()
    for number, stream in enumerate(("out", "err"), start=1):
        os.dup2(os.open(f"{log}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    sys.exit(main(arguments))


def start(arguments, log, **environment):
    # Slow enough to be killed halfway.
    environment = {"PAUSE": "0.1", **environment}
    process = FORKS.Process(target=in_fork, args=(arguments, environment, str(log)))
    process.start()
    return process


def start_together(count, arguments, logs):
    """Processes of one evaluation, as torchrun starts them."""
    logs.mkdir(exist_ok=True)
    return [
        start(arguments, logs / str(rank), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        for rank in range(count)
    ]


def exit_codes(processes):
    end = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    hanging = [process for process in processes if process.exitcode is None]
    for process in hanging:
        process.kill()
    assert not hanging
    return [process.exitcode for process in processes]


def children_of(process_id):
    """The processes that it has started; none where the system has no such file."""
    path = Path(f"/proc/{process_id}/task/{process_id}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_running(process_id):
    """Not what has ended, and waits for its parent to ask."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_when(written, processes, out):
    """Kills all processes once there are so many records."""
    end = time.monotonic() + SECONDS
    while len(lines_in(out)) < written and time.monotonic() < end:
        time.sleep(0.001)
    workers = [worker for process in processes for worker in children_of(process.pid)]
    for process in processes:
        process.kill()
    codes = exit_codes(processes)
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.01)
    assert [worker for worker in workers if is_running(worker)] == []
    # Of several, one may have had little to do.
    assert set(codes) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in codes


# Killed and started again.


def test_an_unbroken_run_has_a_record_of_each_image_class_and_method(data, unbroken):
    objects = {name: 2 if index % 3 == 2 else 1 for index, name in enumerate(IMAGES)}
    assert Counter(image for image, _, _ in unbroken) == {name: n * len(METHODS) for name, n in objects.items()}
    assert {method for _, _, method in unbroken} == set(METHODS)
    classes = open_data_set(str(data), demo.CLASS_NAMES, 8)
    for (image, target, _), record in unbroken.items():
        if image == BROKEN_ANNOTATION:
            assert target is None
            assert record.keys() == {"image", "method", "error"}
            assert "000004.xml: is not an annotation" in record["error"]
            continue
        assert target in classes.targets(image)
        assert record["target_name"] == demo.CLASS_NAMES[target]
        if image == BROKEN_PICTURE:
            assert record.keys() == {"image", "target", "target_name", "method", "error"}
            assert "000003.jpg: is not an image in a known format" in record["error"]
        else:
            assert record["values"].keys() == {"drop", "increase", "insertion", "deletion", "pointing", "energy"}
            assert len(record["curves"]["insertion"]) == len(record["curves"]["deletion"]) == 3
            assert 0 <= record["values"]["energy"] <= 1


def test_a_run_killed_again_and_again_ends_with_the_records_of_an_unbroken_one(capsys, data, unbroken, tmp_path):
    for number, written in enumerate((1, 2, 7, 15)):
        process = start(command(data, OUT, "--workers", 1), tmp_path / str(number))
        kill_when(written, [process], OUT)
        assert written <= len(lines_in(OUT)) < len(unbroken)
        assert records_in(OUT).items() <= unbroken.items()
    before = len(lines_in(OUT))
    code, out, _ = run(capsys, data)
    assert code == 0
    assert out[-1].startswith(f"{len(unbroken) - before} new records ")
    assert records_in(OUT) == unbroken


def test_a_run_killed_before_its_first_record_leaves_nothing_in_the_way(capsys, data, unbroken, tmp_path):
    OUT.mkdir()
    process = start(command(data), tmp_path / "log")
    end = time.monotonic() + SECONDS
    while not (OUT / "records").exists() and time.monotonic() < end:
        time.sleep(0.0005)
    kill_when(0, [process], OUT)
    assert run(capsys, data)[0] == 0
    assert records_in(OUT) == unbroken


@pytest.mark.parametrize("left", [0, 1, 40, -1])
def test_a_torn_last_line_is_dropped_and_its_record_made_anew(capsys, data, unbroken, finished, left):
    (path,) = OUT.glob("records/*.jsonl")
    content = path.read_bytes()
    kept, last = content[: content[:-1].rindex(b"\n") + 1], content[content[:-1].rindex(b"\n") + 1 :]
    path.write_bytes(kept + last[:left])
    code, out, _ = run(capsys, data)
    assert code == 0
    assert out[-1].startswith("1 new records of 1 images")
    assert records_in(OUT) == unbroken


def test_with_nothing_left_to_do_a_line_says_so(capsys, data, finished):
    files = sorted(OUT.rglob("*"))
    code, out, err = run(capsys, data)
    assert code == 0
    assert err == []
    assert out[-1].startswith("0 new records of 0 images in out, 0 of them failures; captum-unioncam report out ")
    assert sorted(OUT.rglob("*")) == files


def test_failures_are_counted(capsys, data):
    code, out, err = run(capsys, data)
    assert code == 0
    assert out[-1].startswith(f"{8 * len(METHODS)} new records of 6 images in out, {2 * len(METHODS)} of them fail")
    assert errors_of(err) == []


# Several processes.


def test_two_processes_make_the_records_of_one(data, unbroken, tmp_path):
    assert exit_codes(start_together(2, command(data), tmp_path / "logs")) == [0, 0]
    assert records_in(OUT) == unbroken
    files = [Counter(json.loads(line)["image"] for line in path.open()) for path in OUT.glob("records/*.jsonl")]
    assert sorted(map(len, files)) == [3, 3]
    # One process speaks for all; each counts what it did.
    first, second = ((tmp_path / "logs" / f"{rank}.out").read_text().splitlines() for rank in range(2))
    assert first[0].startswith("layer: ")
    assert len(second) == 1
    assert all(" new records of 3 images in " in lines[-1] for lines in (first, second))
    assert "records:" in (tmp_path / "logs" / "0.err").read_text()
    assert "records:" not in (tmp_path / "logs" / "1.err").read_text()


def test_processes_need_not_run_at_the_same_time(capsys, data, unbroken, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert run(capsys, data)[0] == 0
        shared = IMAGES[1::2] if rank == 1 else IMAGES
        assert records_in(OUT) == {key: record for key, record in unbroken.items() if key[0] in shared}


def test_another_number_of_processes_goes_on_where_killed_ones_were(capsys, data, unbroken, tmp_path):
    for number, (count, written) in enumerate(((2, 3), (3, 6))):
        kill_when(written, start_together(count, command(data), tmp_path / f"logs {number}"), OUT)
        assert records_in(OUT).items() < unbroken.items()
    assert exit_codes(start_together(3, command(data), tmp_path / "logs")) == [0, 0, 0]
    assert records_in(OUT) == unbroken
    # More processes than there are images left.
    assert exit_codes(start_together(2, command(data), tmp_path / "more logs")) == [0, 0]
    assert run(capsys, data)[1][-1].startswith("0 new records")


def test_processes_with_different_weights_are_refused(data, tmp_path):
    arguments = command(data, OUT, *OWN_MODEL, method_names=["grad_cam"])
    codes = exit_codes(start_together(3, arguments, tmp_path / "logs"))
    # Whichever came first goes on.
    assert sorted(codes) == [0, 2, 2]
    for rank, code in enumerate(codes):
        if code == 2:
            (line,) = (tmp_path / "logs" / f"{rank}.err").read_text().splitlines()
            assert line.startswith("Error: out holds an evaluation with other settings: model_sha256 ")
    assert {image for image, _, _ in records_in(OUT)} == set(IMAGES[codes.index(0) :: 3])


def test_no_process_waits_for_one_that_cannot_begin(data, unbroken, finished, tmp_path):
    assert exit_codes(start_together(2, command(data, OUT, "--theta", 20), tmp_path / "logs")) == [2, 2]
    for rank in range(2):
        (line,) = (tmp_path / "logs" / f"{rank}.err").read_text().splitlines()
        assert ": theta 10.0 there, 20.0 now; give the same, or another folder." in line
    assert records_in(OUT) == unbroken


def torchrun(arguments, *options):
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options),
            *("-m", "captum_unioncam", *arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SETTLED": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_two_processes_of_torchrun_started_again_where_killed_make_the_records_of_one(data, unbroken):
    done = torchrun(command(data, OUT, "--workers", 1), "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
    # Two processes that were killed, or one that was and one stopped by torchrun, and the two that finished.
    assert 3 <= len(list(OUT.glob("records/*.jsonl"))) <= 4
    assert records_in(OUT) == unbroken


def test_a_process_under_torchrun_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(distributed, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert distributed.local_device(None) is None
    assert taken == []
    for rank, device in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert distributed.local_device(None) == distributed.local_device("cuda") == device
        assert taken[-1] == int(device[-1])
        assert distributed.local_device("cuda:7") == "cuda:7"
        assert distributed.local_device("cpu") == "cpu"
        # There is but one.
        assert distributed.local_device("mps") == "mps"
    monkeypatch.setattr(distributed, "default_device", lambda: torch.device("cpu"))
    assert distributed.local_device(None) is None


def test_processes_that_share_a_gpu_are_told_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.shared_gpus("cuda:0") is None
    for processes, rank, device, line in (
        ("2", "0", "cuda:0", None),
        ("3", "0", "cuda:0", "3 processes share 2 GPUs here; --nproc-per-node 2 is faster."),
        ("3", "1", "cuda:1", None),
        ("3", "0", "cpu", None),
        ("3", "0", None, None),
        ("3", "0", "mps", None),
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert distributed.shared_gpus(device) == line


@pytest.mark.parametrize(
    ("environment", "wrong"),
    [
        *(
            ({"RANK": text, "WORLD_SIZE": "2"}, "RANK")
            for text in ("abc", "", "-1", "2", "5", "1.5", "\u0661", "9" * 5000)
        ),
        *(({"RANK": "0", "WORLD_SIZE": text}, "WORLD_SIZE") for text in ("abc", "", "0", "-1", "1_0", " 2")),
        ({"RANK": "1"}, "RANK"),
    ],
)
def test_ranks_that_are_none_are_wrong_arguments(capsys, pictures, monkeypatch, environment, wrong):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, pictures, OUT, method_names=["saliency"])
    assert code == 2
    (line,) = errors_of(err)
    assert line.startswith(f"Error: {wrong}=")
    assert not (OUT / "records").exists() or not list((OUT / "records").iterdir())


@pytest.mark.parametrize("text", ["abc", "", "-1"])
def test_a_local_rank_that_is_none_is_a_wrong_argument(monkeypatch, text):
    monkeypatch.setattr(distributed, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", text)
    with pytest.raises(WrongArgument, match="LOCAL_RANK="):
        distributed.local_device(None)


# Full and read-only disks.


def test_a_full_disk_ends_the_run_in_one_line_and_loses_no_record(capsys, data, unbroken):
    resource = pytest.importorskip("resource", reason="Windows has none")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        code, _, err = run(capsys, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one_line_about_the_disk(code, err, os.strerror(errno.EFBIG))
    (path,) = OUT.glob("records/*.jsonl")
    assert path.read_bytes().endswith(b"\n")
    assert 2 <= len(records_in(OUT)) < len(unbroken)
    assert records_in(OUT).items() < unbroken.items()
    assert run(capsys, data)[0] == 0
    assert records_in(OUT) == unbroken


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 KB, and a function that mounts it in another way."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    try:
        mount("size=12k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system takes root and Linux")
    yield folder, mount
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_small_disk_that_fills_up_or_turns_read_only(capsys, data, unbroken, small_disk):
    folder, mount = small_disk
    out = folder / "out"
    one_line_about_the_disk(*run(capsys, data, out)[::2], os.strerror(errno.ENOSPC))
    written = records_in(out)
    assert 2 <= len(written) < len(unbroken)
    assert written.items() < unbroken.items()

    mount("remount,size=1m,ro")
    code, _, err = run(capsys, data, out)
    one_line_about_the_disk(code, err, f"cannot write {out}: ")
    assert records_in(out) == written

    mount("remount,rw")
    assert run(capsys, data, out)[0] == 0
    assert records_in(out) == unbroken


def test_a_folder_that_turns_read_only_meanwhile(capsys, data, unbroken, monkeypatch):
    run(capsys, data, OUT, method_names=METHODS[:1])
    written = records_in(OUT)
    open_file = os.open

    def read_only(path, flags, *more, **named):
        if flags & os.O_CREAT and "records" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open_file(path, flags, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        code, _, err = run(capsys, data)
    one_line_about_the_disk(code, err, os.strerror(errno.EROFS))
    assert records_in(OUT) == written
    assert run(capsys, data)[0] == 0
    assert records_in(OUT) == unbroken


def test_a_folder_that_cannot_be_made(capsys, data):
    Path("file").write_text("a file")
    code, _, err = run(capsys, data, "file/out")
    one_line_about_the_disk(code, err, "cannot write file/out: Not a directory")


def one_line_about_the_disk(code, err, reason):
    (line,) = errors_of(err)
    assert code == 1
    assert line.startswith("Error: cannot write ")
    assert reason in line


# Other settings.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    state = demo.load_model().state_dict()
    name = next(iter(state))
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    save_file({**state, name: state[name] * 1.001}, path)
    return path


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--theta", "20"], ["theta 10.0 there, 20.0 now"]),
        (["--seed", "1"], ["seed 0 there, 1 now"]),
        (["--limit", "3"], ["images 6 there, 3 now", "images_sha256 ", "limit None there, 3 now"]),
        (["--steps", "5"], ["steps 2 there, 5 now"]),
        (["--dtype", "bfloat16"], ["dtype 'float32' there, 'bfloat16' now"]),
        (
            ["--max-channels", "2"],
            ["max_channels None there, 2 now", "channel_selection None there, 'representatives' now"],
        ),
        (["--layer", "features.2"], ["layer "]),
        (["--confidence", "sigmoid"], ["confidence 'softmax' there, 'sigmoid' now"]),
        (["--weights", "WEIGHTS"], ["model_sha256 "]),
        (OWN_MODEL, ["model 'demo' there, 'own_code:of_rank' now", "model_sha256 ", "layer "]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_other_settings_are_refused_and_named(capsys, data, unbroken, finished, weights, options, named):
    options = [str(weights) if option == "WEIGHTS" else option for option in options]
    code, _, err = run(capsys, data, OUT, *options)
    (line,) = err
    assert code == 2
    assert line.startswith("Error: out holds an evaluation with other settings: ")
    differences = line.removeprefix("Error: out holds an evaluation with other settings: ").split("; ")
    assert differences.pop() == "give the same, or another folder."
    assert len(differences) == len(named)
    assert all(map(str.startswith, differences, named))
    assert records_in(OUT) == unbroken


def test_a_folder_that_names_no_selection_of_channels_has_those_of_largest_deviation(capsys, data):
    deviation = ["--max-channels", 2, "--channel-selection", "deviation"]
    assert run(capsys, data, OUT, *deviation, method_names=["score_cam"])[0] == 0
    path = OUT / "settings.json"
    settings = json.loads(path.read_text())
    assert settings.pop("channel_selection") == "deviation"
    path.write_text(json.dumps(settings))
    assert run(capsys, data, OUT, *deviation, method_names=["score_cam"])[0] == 0
    code, _, err = run(capsys, data, OUT, "--max-channels", 2, method_names=["score_cam"])
    assert code == 2
    assert "other settings: channel_selection 'deviation' there, 'representatives' now; give" in err[0]


def test_another_preprocessing_is_refused(capsys, data):
    model = [*OWN_MODEL, "--limit", 1]
    assert run(capsys, data, OUT, *model, method_names=["grad_cam"])[0] == 0
    code, _, err = run(capsys, data, OUT, *model, "--preprocess", "paper", method_names=["grad_cam"])
    assert code == 2
    assert "other settings: preprocess 'auto' there, 'paper' now; give" in err[0]


def test_other_data_are_refused(capsys, data, finished, tmp_path):
    demo.write_voc(tmp_path, 6, seed=3)
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    # The broken annotation is not broken there.
    assert f"other settings: data {str(data)!r} there, {str(tmp_path)!r} now; images_sha256 " in err[0]


def test_data_whose_classes_have_changed_are_refused(capsys, tmp_path):
    demo.write_image_folder(tmp_path / "data", 3, seed=0)
    run(capsys, "data", OUT, method_names=["grad_cam"])
    (first, *_) = sorted((tmp_path / "data").rglob("*.png"))
    other = next(folder for folder in (tmp_path / "data").iterdir() if folder != first.parent)
    first.rename(other / first.name)
    code, _, err = run(capsys, "data", OUT, method_names=["grad_cam"])
    assert code == 2
    assert "other settings: images_sha256 " in err[0]


def test_what_only_changes_rounding_or_speed_may_differ(capsys, data, unbroken):
    run(capsys, data, OUT, method_names=METHODS[:1])
    code, _, _ = run(capsys, data, OUT, "--batch-size", 4, "--workers", 1)
    assert code == 0
    assert records_in(OUT).keys() == unbroken.keys()


def test_methods_may_be_added(capsys, data, unbroken):
    for number, expected in ((1, 8), (3, 16)):
        _, out, _ = run(capsys, data, OUT, method_names=METHODS[:number])
        assert out[-1].startswith(f"{expected} new records of 6 images")
    assert records_in(OUT) == unbroken


# Metrics.


@pytest.fixture
def own_metric(monkeypatch):
    """A metric of the test's own, listed for its time."""
    monkeypatch.setattr(table, "_metrics", dict(table._metrics))

    @table.metric("brightness", "brightness of the map", larger_is_better=True)
    def brightness(attributions):
        return attributions.flatten(1).mean(1)


def metrics_of(out):
    """Of each metric, how many records have it."""
    return Counter(name for record in records_in(out).values() for name in record.get("values", ()))


def evaluated(pictures, subject, *method_names, **more):
    return evaluate(Evaluation(str(pictures), steps=2), subject, method_names, OUT, 0, False, **more)


FIRST = dict.fromkeys(("drop", "increase", "insertion", "deletion"), 3)


def test_a_metric_of_ones_own_is_recorded(pictures, subject, own_metric):
    evaluated(pictures, subject, "saliency")
    assert metrics_of(OUT) == {**FIRST, "brightness": 3}
    assert json.loads((OUT / "settings.json").read_text())["metrics"][-1] == "brightness"
    assert all(record.values["brightness"] > 0 for record in read_records(OUT))


def test_only_the_metrics_that_are_named_are_computed_and_others_are_refused_later(pictures, subject):
    evaluated(pictures, subject, "saliency", metric_names=["increase", "drop"])
    assert metrics_of(OUT) == {"drop": 3, "increase": 3}
    # Those that the folder was begun with, unless others are asked for.
    evaluated(pictures, subject, "input_x_gradient")
    evaluated(pictures, subject, "grad_cam", metric_names=["drop", "increase", "seconds"])
    assert metrics_of(OUT) == {"drop": 9, "increase": 9}
    with pytest.raises(WrongArgument, match=r"metrics \['drop', 'increase'\] there, \['drop', 'insertion'\] now; give"):
        evaluated(pictures, subject, "saliency", metric_names=["drop", "insertion"])
    with pytest.raises(WrongArgument, match="there is no metric 'dorp'; did you mean drop"):
        evaluated(pictures, subject, "saliency", metric_names=["dorp"])


def test_a_folder_of_version_0_1_0_goes_on_with_the_metrics_that_there_were(pictures, subject, own_metric):
    """Its settings name no metrics, and its records have them beside the image."""
    evaluated(pictures, subject, "saliency", metric_names=FIRST_METRICS)
    expected = {record.key: record for record in read_records(OUT)}
    path = OUT / "settings.json"
    settings = json.loads(path.read_text())
    del settings["metrics"]
    path.write_text(json.dumps(settings))
    (path,) = OUT.glob("records/*.jsonl")
    lines = []
    for line in map(json.loads, path.read_text().splitlines()):
        del line["crc"]
        curves = {f"{name}_curve": curve for name, curve in line.pop("curves").items()}
        lines.append(json.dumps({**line.pop("values"), **curves, **line}) + "\n")
    path.write_text("".join(lines))
    assert {record.key: record for record in read_records(OUT)} == expected

    assert evaluated(pictures, subject, "saliency", "grad_cam").records == 3
    added = [record for record in read_records(OUT) if record.method == "grad_cam"]
    assert all(record.values.keys() == {*FIRST, "seconds"} for record in added)
    with pytest.raises(WrongArgument, match=r"metrics \[.*\] there, \['drop'\] now"):
        evaluated(pictures, subject, "saliency", metric_names=["drop"])


# What a record depends on.


def test_workers_make_no_difference(capsys, data, unbroken):
    for workers in (1, 2):
        assert run(capsys, data, f"out {workers}", "--workers", workers)[0] == 0
        assert records_in(Path(f"out {workers}")) == unbroken


@contextlib.contextmanager
def processes_started_by(method):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_pictures_are_read_by_workers(capsys, data, monkeypatch):
    def sample(data_set, name):
        raise Failure(f"read by {os.getpid()}")

    monkeypatch.setattr(type(open_data_set(str(data), demo.CLASS_NAMES, 8)), "sample", sample)
    with processes_started_by("fork"):
        run(capsys, data, OUT, "--workers", 2)
    readers = {record["error"] for key, record in records_in(OUT).items() if key[0] != BROKEN_ANNOTATION}
    assert len(readers) == 2
    assert f"read by {os.getpid()}" not in readers


def test_workers_may_be_started_without_a_copy_of_the_process(capsys, data, unbroken):
    """As on macOS, where all that they are given is pickled."""
    with processes_started_by("forkserver"):
        assert run(capsys, data, OUT, "--workers", 1)[0] == 0
    assert records_in(OUT) == unbroken


@pytest.mark.parametrize("model", ["demo", "resnet18", "inception_v3", "vit_b_16", "own_code:of_rank"])
def test_every_models_preprocessing_can_be_sent_to_a_worker(model):
    picture = Image.effect_noise((70, 50), 90).convert("RGB")
    preprocessing = preprocessing_of(model)
    sent = pickle.loads(pickle.dumps(preprocessing))
    assert torch.equal(sent.fit(picture), preprocessing.fit(picture))


def test_a_record_does_not_depend_on_what_else_is_evaluated(capsys, data, unbroken):
    for names in (["gradient_shap"], ["saliency", *reversed(METHODS)]):
        out = Path(f"out {len(names)}")
        assert run(capsys, data, out, method_names=names)[0] == 0
        shared = of_methods(records_in(out), *METHODS)
        assert shared == of_methods(unbroken, *names)
    few, more = Path("few"), Path("more")
    for out, limit in ((few, 2), (more, 4)):
        assert run(capsys, "demo", out, "--limit", limit, method_names=METHODS)[0] == 0
    assert len(records_in(few)) == 2 * len(METHODS)
    assert records_in(few).items() < records_in(more).items()


def test_another_seed_draws_other_random_numbers(capsys, data, unbroken):
    run(capsys, data, OUT, "--seed", 1)
    records = records_in(OUT)
    assert of_methods(records, "grad_cam") == of_methods(unbroken, "grad_cam")
    of_shap = of_methods(records, "gradient_shap")
    assert of_shap.keys() == of_methods(unbroken, "gradient_shap").keys()
    assert all("error" in record or record["map"] != unbroken[key]["map"] for key, record in of_shap.items())


def test_a_record_is_the_judgement_of_its_picture(data, subject, unbroken):
    data_set = open_data_set(str(data), demo.CLASS_NAMES, 8)
    judge = evaluation_run.Judge(subject, ["grad_cam"], MethodSettings(internal_batch_size=8), 2)
    name = "JPEGImages/000005.jpg"
    sample = data_set.sample(name)
    fit = subject.classifier.preprocessing.fit
    # The model sees 224x112 pixels as 112x112: the centre of its column x is at 2x + 1 in the image.
    across, down = 2 * torch.arange(112) + 1, (torch.arange(112) + 0.5)[:, None]
    for target, boxes in sample.boxes.items():
        ((left, top, right, bottom),) = boxes
        objects = (left <= across) & (across < right) & (top <= down) & (down < bottom)
        (outcome,) = judge.run([("grad_cam", [target])], fit(sample.picture), {target: objects}, name)
        (judged,) = outcome.judgements
        record = unbroken[name, target, "grad_cam"]
        assert record["confidence"] == pytest.approx(judged.confidence, rel=1e-5)
        assert record["values"].keys() == judged.values.keys() - {"seconds"}
        for metric, value in record["values"].items():
            assert value == pytest.approx(judged.values[metric], rel=1e-5)
        assert record["curves"].keys() == {"insertion", "deletion"}
        for metric, curve in record["curves"].items():
            assert curve == [round(value, 4) for value in judged.curves[metric]]
        # 112x112 in 7x7 blocks are 16x16.
        means = judged.attribution.reshape(16, 7, 16, 7).mean((1, 3))
        scaled = (means - means.min()) / (means.max() - means.min()) * 255
        pixels = torch.tensor(list(evaluation_run.base64.b64decode(record["map"]))).reshape(16, 16)
        assert (pixels - scaled).abs().max() <= 0.5 + 1e-4


def test_objects_out_of_the_models_sight_are_no_pointing_game(tmp_path):
    """The model sees the left half of the image, the object of one class is in the right half."""
    add_voc_picture(tmp_path, "000001", [("dog", corners(1, 1, 30, 30), 0), ("cat", corners(150, 1, 200, 90), 0)],
                    size=(224, 112))  # fmt: skip
    (tmp_path / "classes.json").write_text('{"dog": 1, "cat": 0}')
    subject = ExplainedModel(device="cpu")
    subject.classifier = replace(subject.classifier, preprocessing=Preprocessing(left_half))
    tally = evaluate(
        Evaluation(str(tmp_path), tmp_path / "classes.json", steps=1), subject, ["saliency"], OUT, 0, False
    )
    assert asdict(tally) == {"records": 2, "failures": 0, "shortages": 0, "images": 1}
    dog, cat = (records_in(OUT)["JPEGImages/000001.jpg", target, "saliency"] for target in (1, 0))
    assert dog["values"]["pointing"] in (0, 1)
    assert 0 < dog["values"]["energy"] < 1
    assert "error" not in cat
    assert not {"pointing", "energy"} & cat["values"].keys()


def left_half(picture):
    return demo_fit(picture.crop((0, 0, 112, 112)))


demo_fit = preprocessing_of("demo").fit


# Methods and devices that fail.


def brightest(shown):
    return shown.mean() > 0.5


@pytest.fixture
def pictures(tmp_path):
    """Three grey images, the second of them bright."""
    for name, grey in (("ring/a", 20), ("ring/b", 200), ("star/c", 50)):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((112, 112), 20).point(lambda value, grey=grey: value // 8 + grey).convert("RGB").save(path)
    return tmp_path / "pictures"


def register(name, attribute):
    methods.register(name, lambda model, layer, settings: attribute)


def fails_on(is_bad, error):
    """A method that raises on some images."""

    def attribute(inputs, target, baselines):
        if is_bad(inputs):
            raise error
        return inputs

    return attribute


def test_a_method_that_fails_on_an_image_is_recorded_and_the_run_goes_on(capsys, pictures):
    register("squeamish", fails_on(brightest, KeyError("too bright,\nfor me")))
    register("infinite", lambda inputs, target, baselines: inputs / (0 if brightest(inputs) else 1))
    names = ["squeamish", "saliency", "infinite"]
    code, out, err = run(capsys, pictures, OUT, method_names=names)
    assert code == 0
    assert out[-1].startswith("9 new records of 3 images in out, 2 of them failures")
    assert errors_of(err) == []
    records = records_in(OUT)
    failed = {(image, method): record["error"] for (image, _, method), record in records.items() if "error" in record}
    assert failed.keys() == {("ring/b.png", "squeamish"), ("ring/b.png", "infinite")}
    assert "KeyError: 'too bright,\\nfor me'" in failed["ring/b.png", "squeamish"]
    assert failed["ring/b.png", "infinite"].startswith("ValueError: ")
    # They are done: once more there is nothing to do.
    assert run(capsys, pictures, OUT, method_names=names)[1][-1].startswith("0 new records")


def test_failures_are_done_again_when_asked_for(capsys, pictures):
    busy = [True]
    register("busy", fails_on(lambda inputs: brightest(inputs) and busy[0], MemoryError("busy")))
    run(capsys, pictures, OUT, method_names=["busy"])
    busy[0] = False
    _, out, _ = run(capsys, pictures, OUT, "--retry-failures", method_names=["busy"])
    assert out[-1].startswith("1 new records of 1 images in out, 0 of them failures")
    assert not any(record.error for record in read_records(OUT))
    assert run(capsys, pictures, OUT, "--retry-failures", method_names=["busy"])[1][-1].startswith("0 new records")


def test_other_versions_are_refused_but_for_packages_that_were_not_there(capsys, pictures):
    run(capsys, pictures, OUT, method_names=["saliency"])
    path = OUT / "settings.json"
    settings = json.loads(path.read_text())
    del settings["versions"]["torchcam"]
    path.write_text(json.dumps(settings))
    assert run(capsys, pictures, OUT, method_names=["saliency"])[0] == 0
    settings["versions"]["captum"] = "0.0"
    path.write_text(json.dumps(settings))
    code, _, err = run(capsys, pictures, OUT, method_names=["saliency"])
    assert code == 2
    assert "captum version '0.0' there, " in err[0]


def test_other_versions_are_accepted_when_asked_for(capsys, pictures):
    run(capsys, pictures, OUT, method_names=["saliency"])
    path = OUT / "settings.json"
    settings = json.loads(path.read_text())
    settings["versions"]["torch"] = "2.0"
    path.write_text(json.dumps(settings))
    code, _, err = run(capsys, pictures, OUT, method_names=["saliency", "grad_cam"])
    assert code == 2
    assert "torch version '2.0' there, " in err[0]
    assert "--accept-other-versions" in err[0]
    code, out, _ = run(capsys, pictures, OUT, "--accept-other-versions", method_names=["saliency", "grad_cam"])
    assert (code, out[-1].split(" in ")[0]) == (0, "3 new records of 3 images")


def test_a_damaged_line_is_done_again(capsys, pictures):
    run(capsys, pictures, OUT, method_names=["saliency"])
    before = records_in(OUT)
    (path,) = OUT.glob("records/*.jsonl")
    first, second, third = path.read_bytes().splitlines(keepends=True)
    at = second.index(b'"map":"') + 9
    path.write_bytes(first + second[:at] + second[at + 4 :] + third.replace(b'"confidence":', b'"confidence":1', 1))
    assert len(list(read_records(OUT))) == 1
    assert main(["report", str(OUT)]) == 0
    capsys.readouterr()
    code, out, _ = run(capsys, pictures, OUT, method_names=["saliency"])
    assert (code, out[-1].split(" in ")[0]) == (0, "2 new records of 2 images")
    path.unlink()
    assert {key: before[key] for key in records_in(OUT)} == records_in(OUT)


def test_readers_share_no_memory(capsys, pictures, monkeypatch):
    """A container has 64 MB of it: a worker that cannot share a tensor neither sends its image nor ends."""

    def full(*_arguments, **_named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full, raising=False)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full, raising=False)
    with processes_started_by("fork"):
        code, out, _ = run(capsys, pictures, OUT, "--workers", 2, method_names=["saliency"])
    assert (code, out[-1].split(" in ")[0]) == (0, "3 new records of 3 images")


def test_readers_that_cannot_be_started_are_told_in_a_sentence(capsys, pictures, monkeypatch):
    def no_space(*_arguments, **_named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing, "Lock", no_space)
    code, _, err = run(capsys, pictures, OUT, "--workers", 1, method_names=["saliency"])
    assert code == 1
    (line,) = errors_of(err)
    assert "cannot be started ([Errno 28] No space left on device); start again with --workers 0" in line


def test_a_shortage_of_memory_is_made_good_at_the_next_start(capsys, pictures):
    short = [True]

    def attribute(inputs, target, baselines):
        if short and brightest(inputs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return inputs

    register("failing", attribute)
    code, out, _ = run(capsys, pictures, OUT, method_names=["failing"])
    assert code == 0
    assert out[-2].startswith("3 new records of 3 images in out, 0 of them failures")
    assert out[-1] == "Out of memory: 1 of them, which are done again at the next start."
    (failed,) = (record for record in read_records(OUT) if record.error)
    assert failed.error.startswith("out of memory: ")
    short.clear()
    code, out, _ = run(capsys, pictures, OUT, method_names=["failing"])
    assert (code, out[-1].split(" in ")[0]) == (0, "1 new records of 1 images")
    assert not any(record.error for record in read_records(OUT))
    assert run(capsys, pictures, OUT, method_names=["failing"])[1][-1].startswith("0 new records")


def test_a_reader_without_memory_is_no_failure_of_the_picture(capsys, pictures, monkeypatch):
    short = [True]

    def tight(path):
        if short and path.name == "b.png":
            raise MemoryError
        return open_picture(path)

    monkeypatch.setattr("captum_unioncam.datasets.folders.open_picture", tight)
    code, out, _ = run(capsys, pictures, OUT, method_names=["saliency"])
    assert (code, out[-1]) == (0, "Out of memory: 1 of them, which are done again at the next start.")
    (failed,) = (record for record in read_records(OUT) if record.error)
    assert failed.error == "out of memory: MemoryError"
    short.clear()
    assert run(capsys, pictures, OUT, method_names=["saliency"])[1][-1].startswith("1 new records of 1 images")
    assert not any(record.error for record in read_records(OUT))


def test_the_device_is_asked_when_what_failed_is_freed(capsys, pictures, monkeypatch):
    held, alive = [], []

    def attribute(inputs, target, baselines):
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise RuntimeError("CUDA error: an illegal memory access")

    def answers(_device):
        gc.collect()
        alive.append(held[-1]() is not None)
        return True

    register("failing", attribute)
    monkeypatch.setattr(evaluation_run, "_answers", answers)
    assert run(capsys, pictures, OUT, method_names=["failing"])[0] == 0
    assert alive == [False] * 3


def test_a_folder_that_is_deleted_meanwhile_is_no_success(capsys, pictures):
    def attribute(inputs, target, baselines):
        if brightest(inputs):
            shutil.rmtree(OUT)
        return inputs

    register("deleting", attribute)
    code, _, err = run(capsys, pictures, OUT, method_names=["deleting"])
    assert code == 1
    assert "was deleted meanwhile, with its records; start again" in errors_of(err)[0]


def test_a_reader_that_dies_is_told_in_a_sentence(capsys, pictures, monkeypatch):
    monkeypatch.setattr(evaluation_run._Pictures, "__getitem__", lambda pictures, index: os._exit(1))
    with processes_started_by("fork"):
        code, _, err = run(capsys, pictures, OUT, "--workers", 1, method_names=["saliency"])
    assert code == 1
    assert "has died" in errors_of(err)[0]
    assert "--workers 0" in errors_of(err)[0]


def test_weights_that_are_no_tensors_have_a_fingerprint():
    class Extra(torch.nn.Linear):
        state = 1

        def get_extra_state(self):
            return {"state": self.state}

    torch.manual_seed(0)
    model = Extra(1, 1)
    before = fingerprint(model)
    model.state = 2
    assert fingerprint(model) != before


def test_a_model_that_has_no_numbers_for_an_image_is_recorded(pictures):
    subject = ExplainedModel(device="cpu")
    handle = subject.model.register_forward_hook(
        lambda _model, inputs, output: output * float("nan") if brightest(inputs[0]) else output
    )
    tally = evaluate(Evaluation(str(pictures), steps=2), subject, ["grad_cam", "saliency"], OUT, 0, False)
    handle.remove()
    assert asdict(tally) == {"records": 6, "failures": 2, "shortages": 0, "images": 3}
    assert {record.image for record in read_records(OUT) if record.error} == {"ring/b.png"}


CUDA_ERROR = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered")


def test_a_device_that_fails_ends_the_run_and_is_no_images_failure(capsys, pictures, monkeypatch):
    ones, dead = torch.ones, []

    def attribute(inputs, target, baselines):
        if brightest(inputs):
            dead.append(True)
            raise CUDA_ERROR
        return inputs

    def on_the_device(*arguments, **named):
        if dead:
            raise CUDA_ERROR
        return ones(*arguments, **named)

    register("failing", attribute)
    monkeypatch.setattr(torch, "ones", on_the_device)
    code, _, err = run(capsys, pictures, OUT, method_names=["failing", "saliency"])
    assert code == 1
    assert errors_of(err)[0].startswith("Error: cpu has failed while failing explained ")
    assert " of ring/b.png (" in errors_of(err)[0]
    assert "device-side assert triggered); start again, which goes on where this was." in errors_of(err)[0]
    assert [record.image for record in read_records(OUT)] == ["ring/a.png"] * 2
    assert not any(record.error for record in read_records(OUT))


def test_an_error_of_a_device_that_still_answers_is_the_images(capsys, pictures):
    register("failing", fails_on(brightest, RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")))
    code, out, _ = run(capsys, pictures, OUT, method_names=["failing", "saliency"])
    assert code == 0
    assert out[-1].startswith("6 new records of 3 images in out, 1 of them failures")


def test_an_interrupted_run_keeps_its_records_and_is_no_traceback(capsys, pictures):
    register("interrupted", fails_on(brightest, KeyboardInterrupt()))
    with contextlib.suppress(KeyboardInterrupt):
        assert run(capsys, pictures, OUT, method_names=["interrupted"])[0] == 130
    assert len(records_in(OUT)) == 1
