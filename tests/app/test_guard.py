"""What the page's server refuses, and what it keeps."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from captum_unioncam import demo

pytest.importorskip("gradio")

import gradio as gr
import httpx
from gradio.data_classes import FileData

from captum_unioncam.app import folder as folders
from captum_unioncam.app import guard, page
from captum_unioncam.app import workbench as bench
from captum_unioncam.app.workbench import Question, Workbench
from captum_unioncam.system.errors import Failure
from tests.browser import TIMEOUT

SETTINGS = ["demo", "predicted", [], None, 10, "score", "exact"]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bench, "_CURVE_STEPS", 2)
        monkeypatch.setattr(page, "_LONGEST_QUEUE", 5)
        with page.served(Workbench()) as address:
            assert os.environ["GRADIO_TEMP_DIR"] != before.get("GRADIO_TEMP_DIR")
            with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
                yield client
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
            assert os.environ.get(name) == before.get(name)


def upload(client, path, **arguments):
    return client.post("gradio_api/upload", files={"files": Path(path).open("rb")}, **arguments)


def picture(client, tmp_path):
    """An uploaded one, as the page names it."""
    demo.load_picture().save(tmp_path / "a.png")
    return {"path": upload(client, tmp_path / "a.png").json()[0], "meta": {"_type": "gradio.FileData"}}


def explain_event(client):
    return next(event["id"] for event in client.get("config").json()["dependencies"] if len(event["inputs"]) == 8)


def join(client, data, visitor, event):
    return client.post("gradio_api/queue/join", json={"data": data, "fn_index": event, "session_hash": visitor})


def answer(client, data, visitor):
    """What the server answers: whether there are maps, and the sentence otherwise."""
    assert join(client, data, visitor, explain_event(client)).status_code == 200
    return heard(client, visitor)


def heard(client, visitor):
    """What a visitor who has joined is answered."""
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": visitor}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}") if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message["success"], message["output"].get("error")


EVIL = "http://evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example", "Origin": EVIL}, 400),
        ({"Host": "evil.example"}, 400),
        ({"Host": "[::1"}, 400),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, 200),
        # A link from elsewhere.
        ({"Sec-Fetch-Site": "cross-site"}, 200),
    ],
)
def test_only_its_own_page_may_ask(client, headers, status):
    got = client.get("config", headers=headers)
    assert got.status_code == status
    assert ("access-control-allow-origin" in got.headers) == (status == 200 and "Origin" in headers)
    assert got.headers["x-frame-options"] == "SAMEORIGIN"
    assert got.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("headers", [{"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_other_sites_cannot_upload(client, tmp_path, headers):
    (tmp_path / "a.png").write_bytes(b"x")
    assert upload(client, tmp_path / "a.png", headers=headers).status_code == 403
    preflight = client.options("gradio_api/upload", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers


def kept():
    return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()}


def test_an_upload_is_one_file_of_limited_size(client):
    before = kept()
    many = [("files", (f"{i}.png", bytes(100))) for i in range(60)]
    assert client.post("gradio_api/upload", files=many).status_code == 413
    large = (bytes(2**20) for _ in range(25))
    start = b'--mark\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=mark"}
    got = client.post("gradio_api/upload", content=(part for part in (start, *large)), headers=form)
    assert got.status_code == 413
    assert kept() == before


def test_the_oldest_uploads_are_deleted(tmp_path):
    names = [tmp_path / str(i) / "a.png" for i in range(6)]
    for name in names:
        name.parent.mkdir()
        name.write_bytes(bytes(10))
        time.sleep(0.02)
    folders.keep_newest(tmp_path, 1000, 4, {names[0]})
    assert [name.exists() for name in names] == [True, False, True, True, True, True]
    folders.keep_newest(tmp_path, 29, 100, {names[0]})
    assert [name.exists() for name in names] == [True, False, False, False, True, True]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, {"path": 5}),
        (0, [1]),
        (0, "x"),
        (1, ["demo"]),
        (1, None),
        (2, [1]),
        (2, None),
        (3, None),
        (3, [["a"]]),
        (4, 5),
        (5, "x"),
        (5, None),
        (5, True),
        (6, None),
        (6, {}),
        (7, "best"),
        (7, [1]),
    ],
)
def test_what_no_control_sends_is_refused_in_a_sentence(client, tmp_path, capfd, place, value):
    data = [picture(client, tmp_path), *SETTINGS]
    data[place] = value
    succeeded, sentence = answer(client, data, f"wrong {place} {value}")
    assert not succeeded
    assert sentence.endswith(("; reload the page.", ": give score or softmax."))
    assert capfd.readouterr().err == ""


def test_files_of_this_machine_are_not_read(client, tmp_path):
    demo.load_picture().save(tmp_path / "secret.png")
    secret, inside = tmp_path / "secret.png", os.environ["GRADIO_TEMP_DIR"]
    for path in (secret, os.path.relpath(secret), f"{inside}/../{secret}"):
        succeeded, sentence = answer(client, [{"path": str(path), "orig_name": "a.png"}, *SETTINGS], f"thief {path}")
        assert not succeeded
        assert sentence.endswith("the image is gone; reload the page.")


def test_a_request_that_the_page_does_not_send_leaves_no_traceback(client, capfd):
    start = b'--mark\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--mark--\r\n'
    form = {"content-type": "multipart/form-data; boundary=mark"}
    assert client.post("gradio_api/upload", content=start, headers=form).status_code == 400
    assert join(client, [], "numbers", 99).status_code == 400
    assert client.post("gradio_api/call/explain", json={"data": []}).status_code == 404
    assert client.post("gradio_api/queue/join", content=bytes(2**20 + 1)).status_code == 413
    assert capfd.readouterr().err == ""


def test_a_full_queue_is_told_and_what_nobody_waits_for_is_dropped(client, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "_PATIENCE", 1.0)
    answers, finished = Workbench.answers, []

    def counted(*arguments, **named):
        yield from answers(*arguments, **named)
        finished.append(arguments)

    monkeypatch.setattr(Workbench, "answers", counted)
    data = [picture(client, tmp_path), *SETTINGS]
    slow = [*data[:3], ["occlusion", "score_cam"], *data[4:]]
    event = explain_event(client)
    codes = [join(client, slow, f"gone {i}", event).status_code for i in range(12)]
    assert codes[0] == 200
    assert codes[-1] == 503
    end = time.monotonic() + TIMEOUT / 1000
    while join(client, data, "next", event).status_code == 503 and time.monotonic() < end:
        time.sleep(0.2)
    assert heard(client, "next") == (True, None)
    # Of those that were let in and left, the first may be done before it is known.
    assert len(finished) < codes.count(200)


def test_only_what_is_not_queued_is_run_past_the_queue(client, tmp_path):
    data = [picture(client, tmp_path), *SETTINGS]
    events = client.get("config").json()["dependencies"]
    codes = {}
    for event in events:
        if event["backend_fn"]:
            request = {"data": data, "fn_index": event["id"], "session_hash": "hasty"}
            codes.setdefault(event["queue"], set()).add(client.post("gradio_api/run/predict", json=request).status_code)
    assert codes == {True: {404}, False: {200}}


def test_a_visitor_who_does_not_listen_cannot_stop():
    listeners = guard.Listeners()
    listeners.ask("me")
    listeners.stop("me")
    assert listeners.is_waiting("me")
    with listeners.listening("me"):
        listeners.stop("me")
        assert listeners.is_stopped("me")
        assert not listeners.is_waiting("me")
        listeners.ask("me")
        assert listeners.is_waiting("me")
        listeners.stop("me")
    # What is kept of a visitor ends with its connection.
    assert not listeners.is_stopped("me")


def test_an_answer_that_nobody_waits_for_is_not_finished():
    workbench, asked = Workbench(), []

    def is_wanted():
        asked.append(None)
        return len(asked) < 3

    with pytest.raises(Failure, match="nobody waits"):
        list(workbench.answers("a.png", demo.load_picture(), Question(methods=("occlusion",)), is_wanted))


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_MOST_PIXELS", 5000)
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (100, 60)).save(tmp_path / "stored.png")
    with pytest.raises(gr.Error, match=r"large\.png: has .* million pixels, more than"):
        page._Handlers(Workbench(), guard.Listeners()).check(
            FileData(path=str(tmp_path / "stored.png"), orig_name="large.png")
        )
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_folders_of_killed_runs_are_removed_and_those_of_running_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "gettempdir", lambda: str(tmp_path))
    program = (
        "import time\nfrom captum_unioncam.app.folder import temporary_folder\n"
        "with temporary_folder() as folder:\n    print(folder, flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    left = Path(process.stdout.readline().strip())
    foreign = tmp_path / "captum-unioncam-other"
    foreign.mkdir()
    with folders.temporary_folder() as own:
        assert own.is_dir()
        assert left.is_dir()
    process.kill()
    process.communicate()
    with folders.temporary_folder():
        assert not left.exists()
        assert foreign.is_dir()
