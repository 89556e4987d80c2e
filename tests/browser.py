"""Pages in headless Chromium: the fixture ``open_page``, for ``pytest_plugins = ("tests.browser",)``."""

from __future__ import annotations

import os
import shutil
from urllib.parse import urljoin

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


TIMEOUT = 120_000
"""Milliseconds for what a test waits for: other tests may keep the machine busy."""


# Not for the whole session: Playwright keeps an event loop running meanwhile.
@pytest.fixture(scope="module")
def chromium():
    """Chromium or Chrome, driven by Playwright; without it tests fail where CI=true, and are skipped elsewhere."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ModuleNotFoundError:
        _missing("playwright is missing: pip install playwright")
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        _missing(f"no browser is there: install one of {', '.join(_BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        expect.set_options(timeout=TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """``open_page(address, width=1280, dark=False)`` opens a file or a URL and returns Playwright's page.

    The test fails if the page complains on the console, raises, asks for anything but itself (a URL: for anything from
    another server), or has an image without pixels.
    """
    contexts, problems = [], []

    def open_page(address, width=1280, dark=False):
        url = address if isinstance(address, str) else address.as_uri()
        own = urljoin(url, "/") if isinstance(address, str) else url
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:200]}"))
        page.on("request", lambda request: request.url.startswith((own, "data:")) or problems.append(request.url))
        page.goto(url, wait_until="load")
        empty = page.locator("img").evaluate_all(
            "images => images.filter(image => !image.naturalWidth).map(image => image.alt)"
        )
        problems.extend(f"no pixels: {description}" for description in empty)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, problems


def _missing(message):
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
