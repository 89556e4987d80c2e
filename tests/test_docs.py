"""The documentation: its code runs, its site builds without a warning, and its pages need nothing from elsewhere."""

import contextlib
import doctest
import functools
import importlib.util
import io
import os
import pkgutil
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import captum_unioncam
from captum_unioncam import demo, evaluation, scorers
from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics import table
from tests.attr import OWN
from tests.blocks import blocks, commands, run_commands, run_python
from tests.methods.test_methods import GRAD_CAM, TORCHCAM, TORCHCAM_FAILING

pytest_plugins = ("tests.blocks", "tests.browser")

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"
PAGES = sorted(DOCS.glob("*.md"))
COMMANDS = [lines for page in PAGES for lines in commands(page)]

ASSETS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)")
STYLE_ASSETS = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"') ]+)")


def by_name(path):
    return path.stem


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_block_is_of_a_kind_that_is_run_or_shown(page):
    assert {block.language for block in blocks(page)} <= {"bash", "python", "source", "text"}
    assert not any(block.mark for block in blocks(page))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))], ids=by_name
)
@pytest.mark.usefixtures("working_folder")
def test_python_blocks(page):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_python(page, {})
    if page.stem == "troubleshooting":
        said = " ".join(printed.getvalue().split())
        shown = [" ".join(block.text.split()) for block in blocks(page) if block.language == "text"]
        assert shown
        assert [text for text in shown if text not in said] == []


def public_objects():
    """What the API page lists, and the methods that it lists of it, by name."""
    listed = re.findall(r"^::: (\S+)(?:\n +options:\n +members: \[(.*)\])?", (DOCS / "api.md").read_text(), re.M)
    for name, members in listed:
        for full_name in (name, *(f"{name}.{member}" for member in members.split(", ") if member)):
            yield full_name, pkgutil.resolve_name(full_name)


def test_the_page_lists_all_that_is_public():
    listed = {name for name, _ in public_objects()}
    assert [name for name in captum_unioncam.__all__ if f"captum_unioncam.{name}" not in listed] == []


def test_the_page_of_methods_lists_each_with_its_class():
    page = (DOCS / "methods.md").read_text()
    named = {
        name: type_
        for names, type_ in re.findall(r"^\| (`.*?`) \| .*?`(\w+)`", page, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    ours = {name: cls.__name__ for name, cls in OWN.items()} | {"rise": "Rise", "grad_cam": "LayerGradCam"}
    assert named == ours


def test_every_cam_of_torchcam_and_grad_cam_is_said_to_be_here_or_not():
    page = (DOCS / "coming_from.md").read_text()
    of_torchcam, of_grad_cam = page.split("## From torchcam")[1].split("## From grad-cam")
    assert [name for name in (*TORCHCAM, *TORCHCAM_FAILING) if f"`{name}`" not in of_torchcam] == []
    assert [name for name in GRAD_CAM if f"`{name}`" not in of_grad_cam] == []


EXAMPLES = {
    name: code
    for name, found in public_objects()
    if (code := "".join(example.source for example in doctest.DocTestParser().get_examples(found.__doc__ or "")))
}


def networks_of_tasks():
    """Small networks that are called as those of segmentation, detection, classification and CLIP are."""
    layers = OrderedDict(layer3=nn.Conv2d(3, 4, 3, 8, 1), relu=nn.ReLU(), layer4=nn.Conv2d(4, 4, 3, 2, 1))

    class Task(nn.Sequential):
        def __init__(self, outputs, answer):
            super().__init__(
                layers | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(4, outputs)}
            )
            self.backbone = SimpleNamespace(layer4=self.layer4, body=SimpleNamespace(layer4=self.layer4))
            self.answer = answer

        def forward(self, images):
            return self.answer(super().forward(images))

    def places(logits):
        """The class 15 everywhere."""
        return {"out": (logits + 9 * torch.eye(21)[15])[..., None, None].expand(-1, -1, 7, 7)}

    def boxes(logits):
        box = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
        return [{"boxes": box, "scores": one.sigmoid(), "labels": torch.tensor([3])} for one in logits]

    embedder = Task(16, lambda embeddings: embeddings)
    embedder.get_image_features = embedder.forward
    embedder.get_text_features = lambda **tokens: torch.ones(1, 16)
    return {
        "SegmentationTarget": {"model": Task(21, places)},
        "DetectionTarget": {"detector": Task(1, boxes)},
        "PairTarget": {"model": Task(300, lambda logits: logits)},
        "EmbeddingTarget": {"clip": embedder, "tokens": {}, "layer": embedder.layer4},
    }


@pytest.fixture
def example_names(monkeypatch, tmp_path):
    """What the docstrings' examples take for granted: networks with such layers, pictures, labels and a map."""
    import captum
    from captum.attr import LayerAttribution
    from torchvision.models import SwinTransformer, VisionTransformer, vgg

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})
    monkeypatch.setattr("captum_unioncam.metrics.table._metrics", dict(table._metrics))
    torch.manual_seed(0)
    of_vgg16 = [4, 4, "M", 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M"]
    parts = {"features": vgg.make_layers(of_vgg16), "layer3": nn.Conv2d(4, 4, 1), "layer4": nn.Conv2d(4, 4, 1)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8))
    model = nn.Sequential(OrderedDict(parts, head=head)).eval()
    images, labels = torch.rand(4, 3, 112, 112), torch.arange(4)

    def names(example):
        if example.endswith("evaluation.load"):
            (tmp_path / "evaluation" / "records").mkdir(parents=True)
            (tmp_path / "evaluation" / "settings.json").write_text('{"metrics": ["drop"]}')
            record = Record("a.png", 0, "star", "grad_cam", confidence=0.5, values={"drop": 0.25})
            (tmp_path / "evaluation" / "records" / "one.jsonl").write_bytes(record.line())
            return {"load": evaluation.load}
        if example.endswith("channels_last_to_maps"):
            return {"model": SwinTransformer([4, 4], 8, [1, 1], [1, 2], [7, 7], num_classes=3).eval()}
        if example.endswith("tokens_to_maps"):
            return {"model": VisionTransformer(224, 16, 1, 2, 12, 16, num_classes=3).eval()}
        if example.endswith("LayerVitReciproCam.attribute"):
            return {"model": VisionTransformer(112, 16, 2, 2, 12, 16, num_classes=8).eval()}
        if ".targets." in example:
            return networks_of_tasks()[example.rpartition(".")[2]]
        return {"model": model, "layer": model.layer4, "attr": torch.rand(4, 1, 7, 7)}

    package = {name: getattr(captum_unioncam, name) for name in captum_unioncam.__all__}
    names_of_modules = ("metrics", "methods", "demo", "evaluation.sanity", "quantus", "targets")
    modules = [importlib.import_module(f"captum_unioncam.{name}") for name in names_of_modules]
    package |= {name: value for module in modules for name, value in vars(module).items() if name[0] != "_"}
    shared = {"torch": torch, "captum": captum, "LayerAttribution": LayerAttribution, "demo": demo, "scorers": scorers}
    return lambda example: {**package, **shared, "images": images, "labels": labels, **names(example)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name, example_names):
    exec(compile(EXAMPLES[name], name, "exec"), example_names(name))


@pytest.mark.parametrize("lines", COMMANDS, ids=lambda lines: lines[0])
def test_shell_commands(lines, working_folder):
    run_commands(lines, working_folder)


def build(config, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", config, "-d", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; without mkdocs tests fail where CI=true, and are skipped elsewhere."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python", "nbconvert", "latex2mathml"):
        try:
            __import__(module)
        except ModuleNotFoundError:
            message = f"{module} is missing: pip install 'captum-unioncam[docs]'"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
    folder = tmp_path_factory.mktemp("site")
    result = build(CONFIG, folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def test_pages_refer_to_nothing_elsewhere(site):
    html, styles = ([(path.name, path.read_text()) for path in site.rglob(f"*.{ending}")] for ending in ("html", "css"))
    assert len(html) > len(PAGES)
    assert styles
    elsewhere = [(name, asset) for name, text in html for asset in ASSETS.findall(text) + STYLE_ASSETS.findall(text)]
    elsewhere += [(name, asset) for name, text in styles for asset in STYLE_ASSETS.findall(text)]
    assert elsewhere == []


def test_equations_stand_beside_their_lines(site):
    text = (site / "method.html").read_text()
    order = [text.index(f"Eq. {number}") for number in ("1", "2", "3", "4 and 5", "6", "7", "8")]
    assert order == sorted(order)
    for begin, end in zip(order, [*order[1:], len(text)], strict=True):
        assert "<math" in text[begin:end]
        assert "captum_unioncam/" in text[begin:end]
    for path in site.rglob("*.html"):
        assert "arithmatex" not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("captum_unioncam.attr.union_cam.unites", "unites"),
        ("captum_unioncam.attr.union_cam.unite\nno such line", "0 lines begin with 'no such line'"),
    ],
)
@pytest.mark.usefixtures("site")
def test_the_build_fails_where_the_source_has_gone(block, problem):
    from mkdocs.exceptions import PluginError

    specification = importlib.util.spec_from_file_location("docs_hooks", CONFIG.parent / "hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    with pytest.raises(PluginError, match=problem):
        hooks.on_page_markdown(
            f"```source\n{block}\n```", page=SimpleNamespace(file=SimpleNamespace(src_uri="method.md"))
        )


@pytest.fixture(scope="module")
def address(site):
    """Where the pages are served: their search does not run from a file."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desktop", "dark phone"])
@pytest.mark.parametrize("name", ["index", "method", "coming_from", "api", "notebooks/first_union_cam"])
def test_pages_in_a_browser(name, width, dark, address, open_page):
    page = open_page(f"{address}/{name}.html", width, dark)
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_search_finds_a_page(address, open_page):
    page = open_page(f"{address}/index.html")
    field = page.get_by_role("textbox", name="Search")
    field.click()
    field.press_sequentially("blank map")
    found = page.locator(".md-search-result__link").first
    found.wait_for()
    assert "troubleshooting" in found.get_attribute("href")
