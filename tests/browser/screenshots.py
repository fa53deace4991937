"""`make screenshots`: pictures of each view of the dashboard, of the demo's data, for the pages under docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import Browser, expect

from infra.clock import DAY_MS, iso, now_ms
from tests.browser.chromium import launched, visited
from tests.conftest import adclick

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
# Name of the picture, what the address says, width, and whether dark.
SHOTS = [
    ("overview", "advertiser=1&range=24h", 1280, False),
    ("overview-dark", "advertiser=1&range=24h&measure=clicks&second=ctr&dimension=country", 1280, True),
    ("overview-phone", "advertiser=1&range=24h", 390, False),
    ("live", "advertiser=1&range=live", 1280, False),
    ("bill", "view=bill&advertiser=1&date={yesterday}", 1280, False),
    ("statement", "view=statement&advertiser=1", 1280, False),
    ("pipeline", "view=pipeline", 1280, False),
    ("dead-letters", "view=dead-letters", 1280, False),
    ("keys", "view=keys", 1280, False),
]
_LONGEST = 1500
_WAIT_MS = 60_000


def main(words: list[str]) -> int:
    """Run the demo, take the pictures, and stop its stack. With words: the address of a router that runs, and an admin key of it."""
    if words:
        _take_all(f"{words[0]}/#key={words[1]}")
        return 0
    print("running the demo (a minute or two)", file=sys.stderr)
    result = adclick("demo", "--events", "300000", "--keep")
    link = re.search(r"http://\S+/#key=\S+", result.stdout + result.stderr)
    folder = re.search(r"adclick down --dir (\S+)", result.stdout + result.stderr)
    if result.returncode or link is None or folder is None:
        print(result.stderr[-2000:], file=sys.stderr)
        return 1
    try:
        adclick("keys", "create", "--name", "Acme reporting", "--advertisers", "1", "--dir", folder[1])
        _take_all(link[0])
    finally:
        adclick("down", "--dir", folder[1])
    return 0


def _take_all(link: str) -> None:
    with launched() as browser:
        for shot in SHOTS:
            _take(browser, link, *shot)


def _take(browser: Browser, link: str, name: str, fragment: str, width: int, dark: bool) -> None:
    yesterday = iso(now_ms() - DAY_MS)[:10]
    with visited(browser, width=width, dark=dark, zone="UTC") as visit:
        page = visit.page
        page.goto(f"{link}&{fragment.format(yesterday=yesterday)}")
        expect(page.get_by_role("navigation")).to_be_visible(timeout=_WAIT_MS)
        expect(page.locator(".loading")).to_have_count(0, timeout=_WAIT_MS)
        # Long enough for the stream to be connected and for charts to be drawn.
        page.wait_for_timeout(3_000)
        height = min(_LONGEST, page.evaluate("document.documentElement.scrollHeight"))
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(
            path=PICTURES / f"{name}.png", full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height}
        )
        print(f"{name}.png", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
