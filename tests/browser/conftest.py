"""The browser, started once for the tests of this package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import launched
from tests.product import PATIENCE

expect.set_options(timeout=5_000 * PATIENCE)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless browser. It ends with the package: while it runs there is an event loop, and other tests start theirs."""
    with launched() as browser:
        yield browser
