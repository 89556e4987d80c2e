"""The page's image in the documentation, by headless Chromium.

``python -m benchmarks.app_picture`` writes ``docs/app.png``, of the first screen on a desktop. With a folder as
argument, it writes the whole page there, on a desktop and on a phone, light and dark.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from captum_unioncam.app.page import served
from captum_unioncam.app.workbench import Workbench

DOCS = Path(__file__).parent.parent / "docs"
BROWSERS = "chromium", "chromium-browser", "google-chrome"
SIZES = {"desktop": (1280, 1120), "phone": (390, 844)}


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium or Chrome, driven by Playwright."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def picture(chromium: Any, address: str, size: str, color_scheme: str, file: Path, whole: bool = True) -> None:
    """Writes an image of the page."""
    width, height = SIZES[size]
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=color_scheme)
    page.goto(address)
    page.locator(".unioncam img").last.wait_for()
    page.wait_for_function("[...document.images].every(image => image.naturalWidth > 0)")
    page.locator(".cm-line").first.wait_for()
    page.screenshot(path=file, full_page=whole, animations="disabled")
    page.close()


def main(arguments: list[str]) -> None:
    with served(Workbench()) as address, browser() as chromium:
        if not arguments:
            picture(chromium, address, "desktop", "light", DOCS / "app.png", whole=False)
            return
        for size in SIZES:
            for color_scheme in ("light", "dark"):
                picture(chromium, address, size, color_scheme, Path(arguments[0]) / f"{size}-{color_scheme}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
