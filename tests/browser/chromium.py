"""The browser of the tests: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCH = "BROWSER_TESTS"
"""With the value `required`, as continuous integration sets it, a missing browser is a failure."""


def find_browser() -> str:
    """The path of an installed browser. Skips the test where there is none, unless the switch requires one."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        advice = f"no browser among {', '.join(NAMES)}; on Debian: apt-get install chromium"
        if os.environ.get(SWITCH) == "required":
            pytest.fail(advice)
        pytest.skip(f"{advice} ({SWITCH}=required makes this a failure)")
    return path


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser."""
    path = find_browser()
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        # It draws in software, and must not take the cores from the stores that it shows.
        script = Path(folder, "chromium")
        script.write_text(f'#!/bin/sh\nexec nice -n 10 "{path}" "$@"\n')
        script.chmod(0o700)
        # Tests may run as root, for whom Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=script, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page, and what it did besides showing something: messages on its console, errors, addresses that it requested."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def screenshot(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=True)


@contextmanager
def visited(
    browser: Browser, *, width: int = 1280, dark: bool = False, zone: str = "Europe/Berlin", locale: str = "en-US"
) -> Iterator[Visit]:
    """A page in a context of its own: no cookies, no storage, no cache of others."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", timezone_id=zone, locale=locale,
        accept_downloads=True, reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    visit = Visit(page)
    page.on("console", lambda m: visit.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda request: visit.requests.append(request.url))
    try:
        yield visit
    finally:
        context.close()
