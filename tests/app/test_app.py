import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from html import escape, unescape
from pathlib import Path
from signal import SIGTERM, getsignal
from threading import Thread, get_ident
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from captum_unioncam import demo
from captum_unioncam.cli.main import main
from captum_unioncam.evaluation.explain import Explainer, Settings
from captum_unioncam.methods import registry
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure, WrongArgument

try:
    import gradio as gr
except ModuleNotFoundError:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip("gradio is missing: pip install gradio", allow_module_level=True)

import httpx
from gradio.data_classes import FileData

from captum_unioncam.app import page
from captum_unioncam.app import workbench as bench
from captum_unioncam.app.guard import Listeners
from captum_unioncam.app.workbench import Question, Stopped, Workbench
from captum_unioncam.report.images import sheet
from captum_unioncam.report.panels import png
from tests.browser import TIMEOUT

pytest_plugins = ("tests.browser",)

PREDICTED = "predicted"
# A name that HTML, Python, and the templates of Gradio's HTML would each read in another way.
NASTY = "a'b {{value}} ${value} <img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def workbench():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bench, "_CURVE_STEPS", 2)
        # It takes longer than all else, and one test has the real one.
        monkeypatch.setattr(bench, "png", lambda _: b"")
        yield Workbench()


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """The name of a file in the working folder, as wide as no example is."""
    monkeypatch.chdir(tmp_path)
    image = demo.generate(1, seed=11)[0][0]
    pixels = (image * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((150, 120)).save(NASTY)
    return NASTY


def answers(workbench, name, question, **how):
    with Image.open(name) as picture:
        yield from workbench.answers(name, picture.convert("RGB"), question, **how)


def ask(workbench, name, question):
    *_, answer = answers(workbench, name, question)
    return answer


def figures(page):
    """What the page shows: the caption, the source of the image, and whether it is marked, of each figure."""
    found = re.findall(r"<figure(.*?)>.*?<img[^>]*? src=\"(.*?)\".*?<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    return [(words(caption), image, "selected" in attributes) for attributes, image, caption in found]


def words(html):
    return " ".join(unescape(re.sub("<.*?>", "", html)).split())


QUESTIONS = {
    "defaults": Question(),
    "all given": Question("demo", "features.7", "3", 85.0, "softmax", ("grad_cam",), "balanced"),
    "fast": Question(quality="fast"),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_the_code_makes_the_map_that_is_shown(workbench, photo, question):
    answer = ask(workbench, photo, question)
    namespace = {}
    exec(answer.code, namespace)
    torch.testing.assert_close(namespace["attr"], answer.explanation.map)
    shown = [image for _, image, is_marked in figures(answer.page()) if is_marked]
    assert shown == [sheet(answer.explanation.map, (112, 112))]
    assert "demo model knows only 8 drawn shapes" in answer.page()


@pytest.mark.parametrize("number", [0, 3])
def test_the_code_makes_embedded_pictures_itself(workbench, tmp_path, number, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = bench.embedded_pictures()[number][1]
    picture.save("embedded.png")
    answer = ask(workbench, "embedded.png", Question())
    Path("embedded.png").unlink()
    namespace = {}
    exec(answer.code, namespace)
    assert namespace["picture"] == picture
    assert "demo model knows" not in answer.page()
    torch.testing.assert_close(namespace["attr"], answer.explanation.map)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_the_page_says_what_the_explainer_says(workbench, photo, question):
    arguments = {"theta": question.theta, "channel_weights": question.channel_weights}
    settings = Settings(layer=question.layer, **arguments).of_quality(question.quality, torch.device("cpu"))
    explainer = Explainer(settings)
    with Image.open(photo) as picture:
        expected = next(explainer.explain(picture.convert("RGB"), None if question.target is None else 3))
    page = ask(workbench, photo, question).page()
    captions = [caption for caption, _, _ in figures(page)]
    for name, beta in expected.betas.items():
        mark = " - selected" if name == expected.choice else ""
        (caption,) = (caption for caption in captions if caption.startswith(f"{name} ("))
        assert caption.endswith(f"{mark} beta = {beta:.2f}")
    assert f"<h2>{expected.class_name}, confidence {expected.confidence:.2f}</h2>" in page
    assert sum(is_marked for _, _, is_marked in figures(page)) == 1


def test_methods_are_compared_by_map_and_metrics(workbench, photo):
    answer = ask(workbench, photo, Question(methods=("grad_cam", "union_cam", "saliency")))
    compared = ["union_cam", "grad_cam", "saliency"]
    page = answer.page()
    assert [caption for caption, _, _ in figures(page)][-3:-1] == ["grad_cam", "saliency"]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page, re.DOTALL)
    assert [name for name, _ in rows] == compared
    for name, cells in rows:
        judged = answer.comparison.judgements[name]
        numbers = [float(words(number)) for number in re.findall("<td>(.*?)</td>", cells)]
        metrics = ("drop", "increase", "insertion", "deletion", "seconds")
        assert numbers == pytest.approx([judged.values[metric] for metric in metrics], abs=6e-3)
    # The table of metrics says what is shown, and how.
    for metric in (metric for metric in all_metrics().values() if not metric.on_request):
        assert (f">{metric.name}\u00a0{metric.arrow}</th>" in page) != metric.needs_objects
        assert (f"<li>{metric.name} {metric.arrow}: {escape(metric.description)}" in page) != metric.needs_objects


def test_a_method_that_fails_keeps_no_other_from_being_shown(workbench, photo, monkeypatch):
    def broken(model, layer, settings):
        def attribute(inputs, target, baselines):
            raise KeyError("not <today>")

        return attribute

    monkeypatch.setitem(registry._registered, "broken", broken)
    page = ask(workbench, photo, Question(methods=("broken", "grad_cam"))).page()
    assert [caption for caption, _, _ in figures(page)][-2] == "grad_cam"
    assert re.search(r"<strong>broken</strong> failed: .*not &lt;today&gt;", page)


def counted_rows(workbench):
    """The number of images in each pass of the demo model from now on."""
    rows = []
    workbench.subject("demo").model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    return rows


def test_results_come_as_they_are_ready_quick_ones_first(photo, monkeypatch):
    monkeypatch.setattr(bench, "_CURVE_STEPS", 2)
    workbench = Workbench()
    rows, passed, seen = counted_rows(workbench), [], []
    for answer in answers(workbench, photo, Question(methods=("score_cam", "grad_cam"))):
        seen.append(answer)
        passed.append(sum(rows))
    steps = ["grad_cam", "preview of union_cam", "union_cam", "score_cam", "grad_cam", ""]
    assert [answer.computing for answer in seen] == steps
    # The class, and then its gradient: no masked pass yet.
    assert passed[1] < 10
    known = [set(answer.results) for answer in seen]
    assert known == [
        set(),
        {"grad_cam"},
        *[{"grad_cam", "union_cam"}] * 2,
        *[{"grad_cam", "union_cam", "score_cam"}] * 2,
    ]
    assert [answer.is_preview for answer in seen] == [False, False, True, False, False, False]
    assert [len(answer.comparison.judgements) for answer in seen] == [0, 0, 0, 1, 2, 3]
    for answer, channels in ((seen[2], 32), (seen[3], None)):
        with Image.open(photo) as picture:
            explained = next(Explainer(Settings(max_channels=channels)).explain(picture.convert("RGB")))
        torch.testing.assert_close(answer.explanation.map, explained.map)
    assert "preview" in seen[2].page()
    assert "preview" not in seen[3].page()


def test_no_picture_is_shown_twice(workbench, photo):
    page = ask(workbench, photo, Question(methods=("score_cam", "denoised_grad_cam", "grad_cam"))).page()
    shown = figures(page)
    assert len({image for _, image, _ in shown}) == len(shown) == 6
    assert [caption.partition(" also ")[2] for caption, _, _ in shown] == [
        "",
        "denoised_grad_cam",
        "score_cam",
        "",
        "",
        "",
    ]


def test_the_most_probable_classes_are_told(workbench, photo):
    answer = ask(workbench, photo, Question(target="3"))
    subject = ExplainedModel("demo", device="cpu")
    with Image.open(photo) as picture:
        confidences = subject.confidences(subject.input_and_baseline(subject.shown(picture.convert("RGB")))[0])[0]
    expected = sorted(range(8), key=lambda index: -confidences[index])[:5]
    assert list(answer.classes) == expected
    for index, (name, confidence) in answer.classes.items():
        assert name == demo.CLASS_NAMES[index]
        assert confidence == pytest.approx(confidences[index].item(), abs=1e-6)


def test_downloads_hold_what_is_shown(workbench, photo, monkeypatch):
    monkeypatch.setattr(bench, "png", png)
    *earlier, answer = answers(workbench, photo, Question(methods=("grad_cam",)))
    found = re.findall(r'<a download="(.*?)" href="data:(.*?);base64,(.*?)"', answer.page())
    files = {kind: (name, io.BytesIO(base64.b64decode(content))) for name, kind, content in found}
    assert np.array_equal(np.load(files["application/octet-stream"][1]), answer.explanation.map[0, 0].numpy())
    table = pd.read_csv(files["text/csv"][1]).set_index("method")
    for method, judged in answer.comparison.judgements.items():
        for metric, value in judged.values.items():
            assert table.loc[method, metric] == pytest.approx(value)
    with Image.open(files["image/png"][1]) as picture:
        assert picture.width > 2 * picture.height
    stem = f"a-b-value-value-img-src-x-onerror-alert-1-{answer.comparison.class_name}"
    assert [name for name, _ in files.values()] == [f"{stem}.png", f"{stem}-union_cam.npy", f"{stem}.csv"]
    assert not any("download=" in each.page() for each in earlier)


@pytest.mark.parametrize("seen", [0, 2, 4])
def test_stop_stops_the_passes_and_keeps_what_is_there(photo, seen):
    workbench, listeners = Workbench(), Listeners()
    handlers, rows = page._Handlers(workbench, listeners), counted_rows(workbench)
    file, mine = uploaded(Path(photo).absolute()), SimpleNamespace(session_hash="me")
    listeners.ask("me")
    with listeners.listening("me"):
        asked = file, "demo", PREDICTED, ["occlusion", "grad_cam"], None, 10, "score", "exact", mine
        shown = handlers.explain(*asked)
        for _ in range(2 + seen):
            kept = next(shown)
        assert kept[-1]["visible"] is True
        # Another visitor's changes nothing.
        handlers.stop(SimpleNamespace(session_hash="other"))
        assert listeners.is_waiting("me")
        handlers.stop(mine)
        before = len(rows)
        *_, (status, bars, result, _, stop) = shown
        assert len(rows) == before
        assert status.startswith("Stopped before ")
        assert stop["visible"] is False
        assert bars == kept[1]
        assert [image for _, image, _ in figures(result)] == [image for _, image, _ in figures(kept[2])]
        # The next question is answered.
        listeners.ask("me")
        assert next(handlers.explain(*asked))[-1]["visible"] is True


def test_a_pass_that_runs_is_the_last_after_stop(photo):
    workbench, listeners = Workbench(), Listeners()
    rows, model = counted_rows(workbench), workbench.subject("demo").model
    with listeners.listening("me"):
        model.register_forward_hook(lambda *_: listeners.stop("me") if len(rows) == 20 else None)
        with pytest.raises(Stopped):
            list(
                answers(
                    workbench, photo, Question(methods=("occlusion",)), is_wanted=lambda: listeners.is_waiting("me")
                )
            )
    assert len(rows) == 20


def test_bars_tell_the_time_left_and_are_where_to_stop():
    progress, checked = gr.Progress(), []
    page._watch(progress, lambda: checked.append(None))
    known = {"n": 25, "elapsed": 5.0, "prefix": "UnionCAM"}
    bar = SimpleNamespace(_tqdm=SimpleNamespace(format_dict=known), length=100, index=25, desc=None)
    progress.iterables.append(bar)
    progress.update(25)
    assert bar.desc == "UnionCAM: 5 s left"
    # Bars without an end, as of a generator, have no time left.
    progress.iterables.append(SimpleNamespace(_tqdm=SimpleNamespace(), length=None, index=0, desc="methods"))
    progress.update(1)
    assert progress.iterables[-1].desc == "methods"
    assert len(checked) == 2


def tiny_vision_transformer():
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 56, num_layers=1, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=3)


def tiny_swin_transformer():
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=3)


@pytest.mark.parametrize(
    ("model", "last", "first"),
    [
        ("demo", "features.15", "features.0"),
        ("tests.app.test_app:tiny_vision_transformer", "encoder.layers.encoder_layer_0.ln_1", "conv_proj"),
        ("tests.app.test_app:tiny_swin_transformer", "permute", "features.0.0"),
    ],
)
def test_the_layers_to_choose_from_are_those_that_can_be_explained(model, last, first):
    names = ExplainedModel(model, device="cpu").spatial_layers()
    explained = []
    for name, _ in ExplainedModel(model, device="cpu", layer=first).model.named_modules():
        with suppress(WrongArgument):
            explained += [ExplainedModel(model, device="cpu", layer=name).layer_name] if name else []
    assert sorted(names) == sorted(explained)
    assert names.index(last) < names.index(first)


def test_a_model_is_loaded_once(monkeypatch, photo):
    loaded = []

    def counted(name, *args, **kwargs):
        loaded.append(name)
        return ExplainedModel(name, *args, **kwargs)

    monkeypatch.setattr(bench, "ExplainedModel", counted)
    monkeypatch.setattr(bench, "_CURVE_STEPS", 2)
    workbench = Workbench()
    for theta, layer in ((10.0, None), (50.0, "features.15"), (50.0, "features.7"), (50.0, None)):
        answer = ask(workbench, photo, Question(theta=theta, layer=layer))
        settings = answer.explanation.settings
        assert (settings.theta, settings.layer) == (theta, layer or "features.15")
    assert loaded == ["demo"]


def small_swin():
    from torchvision.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    return SwinTransformer([4, 4], 8, [1, 1], [1, 2], [7, 7], num_classes=3)


def test_layers_of_a_transformer_are_explained_one_after_the_other(photo, monkeypatch):
    monkeypatch.setattr(bench, "_CURVE_STEPS", 2)
    name = f"{__name__}:small_swin"
    workbench = Workbench(name, device="cpu")
    maps = {}
    # Behind each, a layer is put that has maps.
    for layer in (None, "features.3", "features.3.0", "features.1", "features.3.0"):
        answer = ask(workbench, photo, Question(name, layer))
        fresh = Explainer(Settings(name, layer=layer, device="cpu"))
        with Image.open(photo) as picture:
            expected = next(fresh.explain(picture.convert("RGB"), answer.explanation.class_index))
        assert answer.explanation.settings.layer == expected.settings.layer
        torch.testing.assert_close(answer.explanation.map, expected.map)
        maps[expected.settings.layer] = expected.map
    assert len(maps) == 4


def test_closing_stops_what_is_running(photo):
    workbench = Workbench()
    model = workbench.subject("demo").model
    passes = []

    def close_at_the_second(*_):
        passes.append(None)
        if len(passes) == 2:
            Thread(target=workbench.close).start()

    model.register_forward_hook(close_at_the_second)
    with pytest.raises(Failure, match="the page is closed"):
        ask(workbench, photo, Question(methods=("occlusion",)))
    # It waits for what is running, and nothing is.
    workbench.close()


# What visitors get wrong.


def explain(workbench, file, model="demo", target=PREDICTED, compared=(), layer=None, theta=10, quality="exact"):
    listeners, mine = Listeners(), SimpleNamespace(session_hash="me")
    handlers = page._Handlers(workbench, listeners)
    with listeners.listening("me"):
        *_, last = handlers.explain(file, model, target, list(compared), layer, theta, "score", quality, mine)
    return last


def uploaded(path, name=None):
    return FileData(path=str(path), orig_name=name or Path(path).name)


def test_a_handler_answers_with_the_page_and_the_code(workbench, photo):
    status, bars, page, code, stop = explain(workbench, uploaded(Path(photo).absolute(), NASTY))
    assert len(figures(page)) == 5
    assert re.fullmatch(r"Done in \d+\.\d s\.", status)
    assert len(bars) == 5
    assert stop["visible"] is False
    assert "a&#39;b {{value}} ${value} &lt;img" in page
    assert repr(NASTY) in code["value"]
    assert code["visible"] is True


MARKER = "imported.txt"
WRONG = {
    "no image": ({"file": None}, "there is no image; drop one, or take an example."),
    "another model": ({"model": "own:function"}, "there is no network 'own:function'; choose one of the list."),
    "another method": (
        {"compared": ["own:function"]},
        f"there is no method 'own:function'; give some of {', '.join(registry.names())}.",
    ),
    "another layer": ({"layer": "nowhere"}, "Layer: the model has no layer 'nowhere'."),
    "a layer without space": ({"layer": "classifier"}, "Layer classifier: has (1, 8) as output; give a layer"),
    "another class": ({"target": "8"}, "Class 8: there are the classes 0 to 7."),
    "another quality": ({"quality": "best"}, "Quality best: give exact, balanced, fast."),
    "theta": ({"theta": 101}, "UnionCAM: ValueError: theta: got 101"),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_asked_for_wrongly_is_told_in_a_sentence(workbench, photo, monkeypatch, arguments, sentence):
    Path("own.py").write_text(f"open({MARKER!r}, 'w')\ndef function(*_): pass")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(gr.Error) as caught:
        explain(workbench, **{"file": uploaded(Path(photo).absolute()), **arguments})
    assert unescape(caught.value.message).startswith(sentence)
    assert caught.value.print_exception is False
    # Modules are imported for whoever starts the command, not for its visitors.
    assert not Path(MARKER).exists()


def test_a_file_that_is_no_picture_is_refused_without_telling_where_it_lies(workbench, tmp_path):
    stored = tmp_path / "stored.jpg"
    stored.write_text("no image")
    for call in (page._Handlers(workbench, Listeners()).check, lambda file: explain(workbench, file)):
        with pytest.raises(gr.Error) as caught:
            call(uploaded(stored, "<b>holiday.jpg"))
        assert caught.value.message == (
            "&lt;b&gt;holiday.jpg: is not an image in a known format; convert it to JPEG or PNG."
        )


def test_weights_that_cannot_be_downloaded_leave_nothing_to_choose(workbench, monkeypatch):
    from torchvision import models

    def no_network(*_args, **_kwargs):
        raise OSError("no network")

    warnings = []
    monkeypatch.setattr(models, "get_model", no_network)
    monkeypatch.setattr(gr, "Warning", lambda message, duration: warnings.append(message))
    layer, target = page._Handlers(workbench, Listeners()).choose("resnet18")
    assert (layer["choices"], layer["value"]) == ([], None)
    assert (target["choices"], target["value"]) == ([("the most probable", PREDICTED)], PREDICTED)
    assert len(warnings) == 1
    assert warnings[0].startswith("Network resnet18: cannot download https://")


def test_large_pictures_are_opened_in_one_thread(tmp_path, monkeypatch):
    """The C library keeps freed memory for each thread that had it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    opened, limit = [], Image.MAX_IMAGE_PIXELS
    real = page.open_picture
    monkeypatch.setattr(page, "open_picture", lambda path: opened.append(get_ident()) or real(path))
    visitors = [Thread(target=page._opened, args=(FileData(path=str(tmp_path / "a.png")),)) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(opened) == 3
    assert len({*opened}) == 1
    assert limit == Image.MAX_IMAGE_PIXELS


def test_another_model_brings_its_layers_and_classes(workbench):
    layer, target = page._Handlers(workbench, Listeners()).choose("demo")
    assert layer["value"] == "features.15"
    assert "features.7" in layer["choices"]
    assert target["choices"][1:3] == [(f"{demo.CLASS_NAMES[0]} (0)", "0"), (f"{demo.CLASS_NAMES[1]} (1)", "1")]


def test_a_bar_chooses_its_class_of_the_network_that_is_chosen(workbench):
    choose_class = page._Handlers(workbench, Listeners()).choose_class
    name = workbench.subject("demo").classifier.class_name(3)
    assert choose_class(SimpleNamespace(value=f"{name} (3)"), "demo") == "3"
    for value in ("lamp (3)", f"{name} (2)", f"{name} (8)", name, "", None):
        with pytest.raises(gr.Error, match="is a class of another network; press Explain for those of demo"):
            choose_class(SimpleNamespace(value=value), "demo")


def test_weights_are_for_the_model_that_they_are_given_for(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    from torchvision import models

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = models.get_model("squeezenet1_1", weights=None, num_classes=3)
    save_file(model.state_dict(), "own.safetensors")
    workbench = Workbench("squeezenet1_1", "own.safetensors")
    assert workbench.subject("squeezenet1_1").classes == 3
    assert workbench.subject("demo").classes == len(demo.CLASS_NAMES)


# The command.


def run(capsys, *arguments):
    code = main(["app", *arguments])
    # Without what it says that it waits for.
    return code, [line for line in capsys.readouterr().err.splitlines() if not line.endswith("...")]


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "captum_unioncam.app.page")
    assert run(capsys) == (
        1,
        ["Error: gradio is missing; install what the command needs with: pip install 'captum-unioncam[app]'"],
    )


def test_a_model_that_cannot_be_loaded_is_not_served(capsys):
    code, errors = run(capsys, "--weights", "none.safetensors")
    assert (code, errors) == (1, ["Error: --weights none.safetensors: does not exist; check the path."])


def test_a_port_that_is_taken_is_told(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, errors = run(capsys, "--port", str(port))
    assert code == 1
    assert len(errors) == 1
    assert errors[0].startswith(f"Error: cannot listen at 127.0.0.1, port {port}: ")
    assert errors[0].endswith("; give another --host or --port.")


def test_a_host_that_is_not_there_is_told(capsys):
    code, errors = run(capsys, "--host", "0.0.0.0.0")
    assert code == 1
    assert len(errors) == 1
    assert errors[0].startswith("Error: cannot listen at 0.0.0.0.0: ")


def test_the_command_says_what_it_waits_for_and_opens_the_page(capsys, monkeypatch):
    qualities = []

    @contextmanager
    def served(workbench, *_):
        with gr.Blocks():
            qualities.append(page._setting_controls({"choices": []}, workbench.quality)[-1].value)
        yield "http://127.0.0.1:7860/"

    def ctrl_c(_):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(page, "served", served)
    monkeypatch.setattr("captum_unioncam.cli.serve.sleep", ctrl_c)
    monkeypatch.setattr("typer.launch", opened.append)
    assert main(["app", "--open", "--quality", "fast"]) == 0
    out, err = capsys.readouterr()
    assert out == "http://127.0.0.1:7860/ (Ctrl-C ends it)\n"
    assert err == "loading PyTorch and Gradio ...\nloading demo, and computing the example of the first screen ...\n"
    assert opened == ["http://127.0.0.1:7860/"]
    assert qualities == ["fast"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the command serves the page; afterwards SIGTERM has to end it cleanly, as Ctrl-C does."""
    folder = tmp_path_factory.mktemp("served")
    program = "import sys; from captum_unioncam.cli.main import main; sys.exit(main(['app']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "GRADIO_TEMP_DIR": "", "PYTHONUNBUFFERED": "1"},
    )
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
        assert match, line or process.stderr.read()
        yield match[1]
        process.send_signal(SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output.strip()) == (0, "")
        # Gradio writes of files that it refuses to read.
        assert set(re.findall(r"^[\w.]+(?:Error|Interrupt)\b", errors, re.M)) <= {"gradio.exceptions.InvalidPathError"}
        # Uploaded images included; Gradio makes an empty folder when it is imported.
        assert [path for path in folder.rglob("*") if path.is_file()] == []
    finally:
        process.kill()
        process.communicate()


@contextmanager
def visit(chromium, address, width=1280):
    """A page on which nothing may go wrong, and which may ask for nothing but itself."""
    context = chromium.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(TIMEOUT)
    page, problems = context.new_page(), []
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on(
        "request",
        lambda request: request.url.startswith((address, "data:", "blob:")) or problems.append(request.url),
    )
    try:
        page.goto(address)
        page.get_by_role("button", name="Explain").wait_for()
        yield page
        assert problems == []
    finally:
        context.close()


def upload(page, file):
    """Takes away the image that is there, and gives another."""
    remove_button(page).click()
    page.locator("input[type=file]").first.set_input_files(file)


def remove_button(page):
    """It is there as long as an image is."""
    return page.get_by_role("button", name="Remove Image")


def wait_for_the_end(page):
    page.locator(".status").get_by_text(re.compile("Done in")).wait_for()


def test_a_visitor_uploads_a_picture_and_sees_its_maps(chromium, address, photo):
    from playwright.sync_api import expect

    with visit(chromium, address, width=390) as page:
        upload(page, photo)
        remove_button(page).wait_for()
        page.get_by_label("Compare with").press("Backspace")
        page.get_by_role("button", name="Explain").click()
        wait_for_the_end(page)
        # The region map is Score-CAM's. The page draws them when it has told that it is done.
        page.wait_for_function(f"document.querySelectorAll('.unioncam img').length === {1 + 3 + 1 + 1}")
        assert NASTY in page.locator(".unioncam p").first.inner_text()
        assert page.locator("figure.selected").count() == 1
        assert len(re.findall(r"beta = -?\d\.\d\d", page.locator(".unioncam").inner_text())) == 3
        page.wait_for_function(
            "[...document.querySelectorAll('.unioncam img:not(.raw)')].every(image => image.naturalWidth === 112)"
        )
        expect(page.locator(".unioncam tbody tr")).to_have_count(3)
        # Gradio loads the editor when there is code to show.
        page.locator(".cm-line").first.wait_for()
        assert f"Path({NASTY!r})" in page.locator(".cm-content").inner_text().replace("\n", "")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_first_screen_shows_an_example_to_play_with(chromium, address, tmp_path):
    from playwright.sync_api import expect

    with visit(chromium, address) as page:
        page.locator(".status").get_by_text("A worked example").wait_for()
        maps = page.locator(".unioncam .over img")
        assert maps.count() >= 5
        opacities = "images => images.map(image => getComputedStyle(image).opacity)"
        assert set(maps.evaluate_all(opacities)) == {"0.6"}
        page.get_by_label("number input for Opacity of the maps").fill("0.9")
        page.keyboard.press("Tab")
        page.wait_for_function("getComputedStyle(document.querySelector('.over img')).opacity === '0.9'")
        assert set(maps.evaluate_all(opacities)) == {"0.9"}
        # The editor is loaded last, and moves what is around it: a click could miss.
        page.locator(".cm-line").first.wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="UnionCAM's map (npy)").evaluate("link => link.click()")
        download.value.save_as(tmp_path / "map.npy")
        assert np.load(tmp_path / "map.npy").shape == (7, 7)
        # Its class is the first; the second is explained when its bar is clicked.
        bar = page.get_by_role("button", name=re.compile(r"\(\d\)")).nth(1)
        chosen = re.search(r"(\S+) \(\d\)", bar.inner_text())
        bar.click()
        wait_for_the_end(page)
        expect(page.locator(".unioncam h2")).to_have_text(re.compile(f"^{chosen[1]}, confidence "))
        assert page.get_by_role("combobox", name="Class to explain").input_value() == chosen[0]
        assert maps.first.evaluate("image => getComputedStyle(image).opacity") == "0.9"


def test_a_visitor_stops_an_answer(chromium, address):
    with visit(chromium, address) as page:
        choose(page, "Compare with", "occlusion")
        page.keyboard.press("Tab")
        stop = page.get_by_role("button", name="Stop")
        assert not stop.is_visible()
        page.get_by_role("button", name="Explain").click()
        page.locator(".status").get_by_text("Computing").wait_for()
        stop.click()
        page.locator(".status").get_by_text("Stopped before").wait_for()
        stop.wait_for(state="hidden")
        assert page.locator("th", has_text="occlusion").count() == 0


def choose(page, label, option):
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_each_control_does_what_its_label_says(chromium, address, workbench):
    from playwright.sync_api import expect

    picture = bench.embedded_pictures()[2][1]
    question = Question("demo", "features.7", "3", 85.0, "softmax", ("saliency",))
    *_, expected = workbench.answers("", picture, question)
    with visit(chromium, address) as page:
        page.locator(".gallery-item").nth(2).click()
        page.locator("img[src*='embedded-3']:not(.gallery-item *)").first.wait_for()
        choose(page, "Class to explain", f"{demo.CLASS_NAMES[3]} (3)")
        for _ in range(3):
            page.get_by_label("Compare with").press("Backspace")
        choose(page, "Compare with", "saliency")
        page.keyboard.press("Tab")
        page.get_by_text("Settings of UnionCAM").click()
        choose(page, "Layer", "features.7")
        page.get_by_label("number input for Theta").fill("85")
        page.get_by_label("softmax", exact=True).check()
        page.get_by_role("button", name="Explain").click()
        wait_for_the_end(page)
        # The page draws the answer when it has told that it is done.
        expect(page.locator(".unioncam tbody th")).to_have_text(["union_cam_softmax", "saliency"])
        assert page.locator(".unioncam h2").inner_text().startswith(f"{demo.CLASS_NAMES[3]}, confidence ")
        assert page.locator(".unioncam p").first.inner_text().startswith("demo, layer features.7; ")
        betas = re.findall(r"beta = (-?\d\.\d\d)", page.locator(".unioncam").inner_text())
        # Rounded to two decimals.
        assert [float(beta) for beta in betas] == pytest.approx(list(expected.explanation.betas.values()), abs=6e-3)
        lines = [line or "\n" for line in expected.code.splitlines()]
        # Gradio loads the editor when there is code to show.
        expect(page.locator(".cm-line")).to_have_count(len(lines))
        assert page.locator(".cm-line").all_inner_texts() == lines


def test_a_visitor_is_told_what_is_wrong_with_a_file(chromium, address, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    with visit(chromium, address) as page:
        told = page.locator(".toast-body")
        upload(page, tmp_path / "text.jpg")
        told.get_by_text("text.jpg: is not an image in a known format; convert it to JPEG or PNG.").wait_for()
        # The page takes the file away when it has told what is wrong with it.
        remove_button(page).wait_for(state="hidden")
        page.get_by_role("button", name="Explain").click()
        told.get_by_text("there is no image; drop one, or take an example.").wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "large.png")
        told.get_by_text("exceed the maximum allowed size of 20").wait_for()


def ask_server(client, file):
    """What the server answers to a page that asks for an explanation of ``file``."""
    config = client.get("config").json()
    event = next(event["id"] for event in config["dependencies"] if len(event["inputs"]) == 8)
    data = [file, "demo", PREDICTED, [], None, 10, "score", "exact"]
    client.post("gradio_api/queue/join", json={"data": data, "fn_index": event, "session_hash": "mine"})
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": "mine"}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line.removeprefix("data:"))
                if message["msg"] == "process_completed":
                    return message


def test_uploaded_pictures_are_deleted_in_time_and_embedded_ones_are_not(photo, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(page, "_DELETION", (0.2, 3))
    # Before, since torch sets a variable of its own when it is loaded.
    workbench = Workbench()
    before, environment = getsignal(SIGTERM), dict(os.environ)
    with page.served(workbench) as address:
        assert getsignal(SIGTERM) != before
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
            path = Path(client.post("gradio_api/upload", files={"files": Path(photo).read_bytes()}).json()[0])
            assert path.exists()
            embedded = re.findall(r'"path":\s*"([^"]+embedded-\d\.png)"', client.get("config").text)
            assert len(set(embedded)) == len(bench.embedded_pictures())
            deadline = time.monotonic() + 20
            while path.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not path.exists()
            assert all(client.get(f"gradio_api/file={path}").status_code == 200 for path in embedded)
            file = {"path": str(path), "orig_name": NASTY, "meta": {"_type": "gradio.FileData"}}
            refused = ask_server(client, file)["output"]["error"]
            assert refused.endswith(".png: has been deleted here in the meantime; drop it again.")
    assert getsignal(SIGTERM) == before
    assert dict(os.environ) == environment


def test_the_server_gives_and_reads_no_files_but_those_uploaded(address, tmp_path):
    secret = tmp_path / "secret.png"
    demo.load_picture().save(secret)
    file = {"path": str(secret), "orig_name": "secret.png", "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        for path in (secret, Path(demo.__file__), "/etc/passwd"):
            assert client.get(f"gradio_api/file={path}").status_code in (403, 404)
        refused = ask_server(client, file)
        assert refused["success"] is False
        assert "data" not in refused["output"]
        path = client.post("gradio_api/upload", files={"files": secret.open("rb")}).json()[0]
        assert ask_server(client, {**file, "path": path})["success"] is True
        assert client.post("gradio_api/upload", files={"files": bytes(20 * 2**20 + 1)}).status_code == 413
