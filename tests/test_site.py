"""The documentation's site: it builds without a warning, needs nothing from elsewhere, and can be read in a browser."""

import functools
import html
import importlib.util
import os
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest_plugins = ("tests.browser",)

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"
PAGES = sorted(
    path.relative_to(DOCS).with_suffix("").as_posix() for path in (*DOCS.glob("*.md"), *DOCS.glob("notebooks/*.ipynb"))
)
WITHOUT_PICTURE = {"api"}
"""The page of signatures."""
WIDTH = 88
SCREENS = [(width, color_scheme) for width in (1280, 390) for color_scheme in ("light", "dark")]
WITH_ALL_SCREENS = {"index", "method", "methods", "numbers", "notebooks/quantus"}
"""A page of code, one of equations, one of a wide table, and a notebook."""
SCHEMES = {"light": "default", "dark": "slate"}

ASSETS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)")
STYLE_ASSETS = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"') ]+)")

TOO_FAINT = """() => {
    const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
    const backgrounds = new Map([[null, [255, 255, 255]]]);
    const background = element => {
        if (!backgrounds.has(element)) {
            const color = channels(getComputedStyle(element).backgroundColor);
            backgrounds.set(element, over(color.length ? color : [0, 0, 0, 0], background(element.parentElement)));
        }
        return backgrounds.get(element);
    };
    const luminance = color => {
        const [r, g, b] = color.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const shown = [...document.querySelectorAll(".md-content *, .md-nav *")].filter(element =>
        element.checkVisibility() && !element.closest(".headerlink, .md-icon, nav.md-source")
        && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    return shown.map(element => {
        const under = background(element), style = getComputedStyle(element);
        const [dark, light] = [luminance(over(channels(style.color), under)), luminance(under)].sort((a, b) => a - b);
        const large = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
        return [(light + 0.05) / (dark + 0.05), large, element.className, element.textContent.trim().slice(0, 30)];
    }).filter(([contrast, least]) => contrast < least);
}"""
# Blocks with tokens are code; a notebook's outputs have none.
WIDEST_CODE = """() => [...document.querySelectorAll(".highlight pre:has(.n, .p)")]
    .flatMap(block => block.innerText.split("\\n")).reduce((a, b) => b.length > a.length ? b : a, "")"""
FONTS_LOADED = """() => document.fonts.ready.then(() =>
    [...document.fonts].filter(font => font.status === "loaded").map(font => font.family.replaceAll('"', "")))"""


def build(config, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", config, "-d", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; without mkdocs tests fail where CI=true, and are skipped elsewhere."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python", "nbconvert", "latex2mathml", "ruff"):
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


def test_the_table_of_measurements_has_the_numbers_of_the_results(site):
    text = html.unescape(re.sub(r"<[^>]+>", " ", (site / "which_method.html").read_text())).replace("\xa0", " ")
    results = REPOSITORY / "benchmarks" / "results"
    for file, table, method in (
        ("speed-methods", "## mobilenet_v2", "grad_cam"),
        ("faithfulness-sample-64ch-bfloat16", "### Average drop", "cam"),
        ("faithfulness-demo-64ch", "### Pointing games", "eigen_cam"),
    ):
        of_table = (results / f"{file}.md").read_text().partition(table)[2]
        line = re.search(rf"^\| `{method}` \| (.*?) \|", of_table, re.MULTILINE)
        number = re.escape(line[1].partition(" (")[0])
        assert re.search(rf"\b{method}\s[^a-z]*{number}", text), line[0]


@pytest.fixture(scope="module")
def hooks(site):
    specification = importlib.util.spec_from_file_location("docs_hooks", CONFIG.parent / "hooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("captum_unioncam.attr.union_cam.unites", "unites"),
        ("captum_unioncam.attr.union_cam.unite\nno such line", "0 lines begin with 'no such line'"),
    ],
)
def test_the_build_fails_where_the_source_has_gone(block, problem, hooks):
    from mkdocs.exceptions import PluginError

    page = SimpleNamespace(file=SimpleNamespace(src_uri="method.md"))
    with pytest.raises(PluginError, match=problem):
        hooks.on_page_markdown(f"```source\n{block}\n```", page=page)


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


@pytest.mark.parametrize("name", PAGES)
def test_pages_in_a_browser(name, address, open_page):
    """On a desktop and on a phone, light and dark; most pages on a light desktop and on a dark phone only."""
    page = open_page(f"{address}/{name}.html")
    for width, color_scheme in SCREENS if name in WITH_ALL_SCREENS else SCREENS[::3]:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=color_scheme)
        # The theme's script follows.
        page.wait_for_function(f"document.body.dataset.mdColorScheme === '{SCHEMES[color_scheme]}'")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, color_scheme)
        assert page.evaluate(TOO_FAINT) == [], (width, color_scheme)
    assert page.locator("h1").count() == 1
    assert len(page.evaluate(WIDEST_CODE)) <= WIDTH
    assert ("Docs Math" in page.evaluate(FONTS_LOADED)) == (page.locator("math").count() > 0)
    assert name in WITHOUT_PICTURE or page.locator("article img").count() > 0
    # They are loaded as they come into view.
    page.evaluate("document.querySelectorAll('article img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.querySelectorAll('article img')].every(image => image.naturalWidth > 0)")


def test_search_finds_a_page(address, open_page):
    page = open_page(f"{address}/index.html")
    field = page.get_by_role("textbox", name="Search")
    field.click()
    field.press_sequentially("blank map")
    found = page.locator(".md-search-result__link").first
    found.wait_for()
    assert "troubleshooting" in found.get_attribute("href")
