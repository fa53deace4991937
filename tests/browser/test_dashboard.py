"""The dashboard in a real browser on a running stack: every panel against the truth, live, through failures, for everybody."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from ingest.replay.command import replay_files
from ingest.replay.sender import Pace
from ingest.synthetic.generator import Spec, generate_events
from tests.browser.chromium import Visit, visited
from tests.conftest import adclick
from tests.product import COUNTS, PATIENCE, SPAN_MS, Product, wait_until

MEASURES = ("impressions", "clicks", "conversions", "spend_micros", "late_events", "late_clicks")
HUGE, HUGE_ADVERTISER, HUGE_EVENTS, HUGE_COST = 900_001, 9_001, 9_008, 10**12
"""A campaign whose spend, in micros, no double can hold."""
HOSTILE = "<img src=x onerror=alert(1)> \u202e🦊 & Söhne"
_STATE_MS = 20_000 * PATIENCE


@pytest.fixture(scope="module")
def product(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A stack that has counted a day of events and reconciled yesterday, with a directory. Needs the browser, and starts it first."""
    work = tmp_path_factory.mktemp("browser")
    end = now_ms() // MINUTE_MS * MINUTE_MS
    spec = Spec(
        events=30_000, seed=21, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=40, late=0.02, malformed=0.01
    )
    events = generate_events(spec)
    product = Product(Folder(work / "stack"), events, spec.start_ms, [])
    file = work / "events.ndjson"
    file.write_bytes(b"\n".join(events.lines.to_list()) + b"\n")
    try:
        product.up()
        replay_files(product.app, [file], Pace())
        wait_until(product.caught_up, 120, "all is ingested")
        counted = int(sum(events.truth.counts.select(f"stream_{count}" for count in COUNTS).sum().row(0)))
        wait_until(lambda: product.shows(counted), 20, "all is shown")
        yesterday = iso(end - DAY_MS)[:10]
        where = ("--date", yesterday, "--dir", str(product.folder.path))
        # Until the watermark is stored the day counts as open.
        wait_until(lambda: adclick("reconcile", *where).returncode in (0, 3), 60, "yesterday is reconciled")
        put(product, "advertisers/1", {"name": HOSTILE, "timezone": "UTC"})
        put(product, "advertisers/2", {"name": "Half an hour", "timezone": "Asia/Kolkata"})
        put(
            product,
            "campaigns/1",
            {"name": HOSTILE, "advertiser_id": 1, "budget": "daily", "budget_micros": 5_000_000_000},
        )
        yield product
    finally:
        adclick("down", "--dir", str(product.folder.path))


def answers(product: Product) -> bool:
    """Whether the router answers."""
    try:
        return http(product, "GET", "/healthz").status_code == 200
    except httpx.TransportError:
        return False


def put(product: Product, entry: str, body: dict[str, Any]) -> None:
    """Write an entry of the directory."""
    response = http(product, "PUT", f"/v1/{entry}", json=body)
    assert response.status_code == 200, response.text


def http(product: Product, method: str, path: str, **request: Any) -> httpx.Response:
    """A request with the installation's own key."""
    settings = product.settings
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    return httpx.request(method, settings.http + path, headers=headers, trust_env=False, timeout=60, **request)


@contextmanager
def opened(browser: Browser, product: Product, fragment: str, key: str = "", **context: Any) -> Iterator[Visit]:
    """The dashboard, opened by a link with a key. It must complain about nothing, and request nothing from elsewhere."""
    settings = product.settings
    with visited(browser, **context) as visit:
        key = key or settings.api_key.get_secret_value()
        visit.page.goto(f"{settings.http}/#key={key}&{fragment}")
        expect(visit.page.get_by_role("navigation")).to_be_visible(timeout=_STATE_MS)
        yield visit
        assert all(url.startswith((settings.http, "blob:", "data:")) for url in visit.requests)


def truth(product: Product, view: str, *conditions: pl.Expr, by: str | None = None) -> Any:
    """The sums of MEASURES that must come out: one row, or {value: row} by a dimension."""
    frame = product.events.truth.counts.filter(*conditions)
    sums = [pl.col(f"{view}_{m}").sum().alias(m) for m in MEASURES]
    if by is None:
        return frame.select(sums).row(0, named=True)
    rows = frame.group_by(by).agg(sums).filter(pl.any_horizontal(pl.col(m) > 0 for m in MEASURES))
    return {row[by]: row for row in rows.iter_rows(named=True)}


def digits(text: str) -> int:
    """The integer that is shown, with or without separators."""
    return int(re.sub(r"\D", "", text))


def money(micros: int) -> str:
    """Micros as the page shows them: whole cents, halves away from zero."""
    cents = (micros + 5_000) // 10_000
    return f"${cents // 100:,}.{cents % 100:02d}"


def micros(amount: int) -> str:
    """An amount as bills show it: to the last micro."""
    return f"${amount // 10**6:,}.{amount % 10**6:06d}"


def cells(table: Locator) -> list[list[str]]:
    """The texts of a table's body."""
    rows: list[list[str]] = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return rows


def yesterday_of(product: Product) -> int:
    """The start of the day that was reconciled."""
    return (product.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS


@pytest.mark.parametrize(("range_", "view"), [("yesterday", "batch"), ("today", "stream")])
def test_every_panel_shows_the_truth(
    browser: Browser, product: Product, range_: str, view: str, tmp_path: Path
) -> None:
    start = yesterday_of(product) + (0 if view == "batch" else DAY_MS)
    mine = [pl.col("advertiser_id") == 1, pl.col("minute_ms") >= start, pl.col("minute_ms") < start + DAY_MS]
    with opened(browser, product, f"advertiser=1&zone=UTC&range={range_}&grain=hour") as visit:
        page = visit.page
        whole = truth(product, view, *mine)
        for measure in MEASURES[:3]:
            expect(page.locator(f"[data-measure={measure}]")).to_have_text(f"{whole[measure]:,}", timeout=_STATE_MS)
        expect(page.locator("[data-measure=spend_micros]")).to_have_text(money(whole["spend_micros"]))
        for kind in ("clicks", "events"):
            expect(page.locator(f"[data-late={kind}]")).to_have_text(f"{whole[f'late_{kind}']:,}")

        # Each event of the generator has a user of its own, but for a few in a thousand.
        users = page.locator("[data-measure=users]")
        expect(users).to_have_text(re.compile(r"\d"), timeout=_STATE_MS)
        assert digits(users.inner_text()) == pytest.approx(sum(whole[m] for m in MEASURES[:3]), rel=0.06)

        hours = truth(product, view, *mine, by="minute_ms")
        page.get_by_text("The same as a table").click()
        by_hour: dict[int, dict[str, int]] = {}
        for minute, row in hours.items():
            sums = by_hour.setdefault(minute // HOUR_MS * HOUR_MS, dict.fromkeys(MEASURES, 0))
            for measure in MEASURES:
                sums[measure] += row[measure]
        shown = cells(page.get_by_role("region", name="All figures by hour").locator("table"))
        numbers = {
            start + n * HOUR_MS: (digits(row[1]), digits(row[2]), digits(row[4]), row[6]) for n, row in enumerate(shown)
        }
        assert {hour: values for hour, values in numbers.items() if any(values[:3])} == {
            hour: (*(row[m] for m in MEASURES[:3]), money(row["spend_micros"])) for hour, row in by_hour.items()
        }
        finality = {row[-1] for row in shown}
        assert finality <= ({"reconciled"} if view == "batch" else {"open", "closed", "corrected"})

        for tab, dimension in (
            ("Countries", "country"),
            ("Devices", "device"),
            ("Publishers", "publisher_id"),
            ("Campaigns", "campaign_id"),
        ):
            page.get_by_role("button", name=tab, exact=True).click()
            table = page.get_by_role("region", name=f"{tab} in this range").locator("table")
            expect(table.locator("tbody tr").first).to_be_visible(timeout=_STATE_MS)
            expected = truth(product, view, *mine, by=dimension)
            best = sorted(expected.values(), key=lambda row: row["spend_micros"], reverse=True)[:50]
            titles, rows = table.locator("thead th").all_inner_texts(), cells(table)
            for title, measure in (("Impressions", "impressions"), ("Clicks", "clicks")):
                # Groups that had events in the period before alone are shown with 0.
                numbers_shown = sorted(n for n in (digits(row[titles.index(title)]) for row in rows) if n)
                assert numbers_shown == sorted(row[measure] for row in best if row[measure]), (tab, title)
            assert rows, tab

        if view == "batch":
            one_answer_everywhere(page, product, start, whole, tmp_path)
        assert visit.complaints == []


def one_answer_everywhere(page: Page, product: Product, start: int, whole: dict[str, int], folder: Path) -> None:
    """The figures, their export, and the same question by hand carry one answer id, and the same sums to the last digit."""
    answer_id = page.locator(".answer").inner_text().removeprefix("answer ").strip()
    with page.expect_download() as download, page.expect_response(lambda r: "format=csv" in r.url) as response:
        page.get_by_role("button", name="Export CSV").first.click()
    assert response.value.headers["x-adclick-answer-id"] == answer_id
    file = folder / "export.csv"
    download.value.save_as(file)
    rows = list(csv.DictReader(file.open()))
    assert {m: sum(int(row[m]) for row in rows) for m in MEASURES} == whole
    parameters = {
        "advertiser_id": "1",
        "start": iso(start),
        "end": iso(start + DAY_MS),
        "granularity": "hour",
        "totals": "true",
    }
    document = http(product, "GET", "/v1/metrics", params=parameters).json()
    assert {m: document["totals"][m] for m in MEASURES} == whole


def test_amounts_beyond_2_to_the_53_are_exact(browser: Browser, product: Product) -> None:
    at = now_ms()
    send(product, [event(at - 1, cost_micros=HUGE_COST) for _ in range(HUGE_EVENTS)] + [event(at, cost_micros=1)])
    spend = HUGE_EVENTS * HUGE_COST + 1
    assert float(spend) != spend
    with opened(browser, product, f"advertiser={HUGE_ADVERTISER}&zone=UTC&range=24h") as visit:
        expect(visit.page.locator("[data-measure=clicks]")).to_have_text(f"{HUGE_EVENTS + 1:,}", timeout=_STATE_MS)
        expect(visit.page.locator("[data-measure=spend_micros]")).to_have_text(money(spend))
        expect(visit.page.locator("[data-measure=spend_micros]")).to_have_attribute(
            "title", micros(spend).removeprefix("$").replace(",", "")
        )


def event(at_ms: int, **fields: Any) -> dict[str, Any]:
    """A click of the campaign that is too large for a double."""
    return {
        "event_id": uuid.uuid4().hex, "event_type": "click", "event_time": at_ms, "campaign_id": HUGE, "ad_id": 1, "advertiser_id": HUGE_ADVERTISER,
        "publisher_id": 1, "country": "DE", "device": "mobile", "cost_micros": 0,
    } | fields  # fmt: skip


def send(product: Product, events: list[dict[str, Any]]) -> None:
    """Produce events, and wait until Kafka has them."""
    producer = EventProducer(product.settings.kafka_connection)
    producer.send(
        product.settings.topic(EVENTS),
        [str(e["event_id"]).encode() for e in events],
        [json.dumps(e).encode() for e in events],
    )
    assert producer.flush(30) == 0


def test_numbers_move_within_two_seconds_of_their_events(browser: Browser, product: Product) -> None:
    fields = {"campaign_id": HUGE + 1, "advertiser_id": HUGE_ADVERTISER + 1}
    send(product, [event(now_ms(), **fields)])
    with opened(browser, product, f"advertiser={HUGE_ADVERTISER + 1}&zone=UTC&range=live") as visit:
        clicks = visit.page.locator("[data-measure=clicks]")
        expect(clicks).to_have_text("1", timeout=_STATE_MS)
        expect(visit.page.locator(".live.live")).to_be_visible(timeout=_STATE_MS)
        waits = []
        for count in (2, 3, 4):
            send(product, [event(now_ms(), **fields)])
            began = time.monotonic()
            expect(clicks).to_have_text(str(count), timeout=2_000 * PATIENCE)
            waits.append(time.monotonic() - began)
        print(f"events were shown after {', '.join(f'{wait:.2f}' for wait in waits)} s")
        assert min(waits) < 2 * PATIENCE


@contextmanager
def stopped(product: Product, name: str) -> Iterator[None]:
    """A process that does not answer for as long as the block lasts."""
    process = product.folder.processes()[name]
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("backend", ["redis", "clickhouse"])
def test_a_store_that_is_away_is_said_beside_the_numbers(browser: Browser, product: Product, backend: str) -> None:
    with opened(browser, product, "advertiser=1&zone=UTC&range=24h&grain=hour&compare=none") as visit:
        page = visit.page
        expect(page.locator("[data-measure=clicks]")).not_to_have_text("–", timeout=_STATE_MS)
        with stopped(product, backend):
            said = page.locator(".warnings, .stale, .problem, .live.behind").first
            expect(said).to_be_visible(timeout=30_000 * PATIENCE)
        expect(page.locator(".live.live")).to_be_visible(timeout=60_000 * PATIENCE)
        expect(page.locator(".warnings, .stale, .problem")).to_have_count(0, timeout=60_000 * PATIENCE)


def test_a_router_that_restarts_is_said_and_recovered_from(browser: Browser, product: Product) -> None:
    with opened(browser, product, "advertiser=1&zone=UTC&range=live") as visit:
        expect(visit.page.locator(".live.live")).to_be_visible(timeout=_STATE_MS)
        product.kill("query-0")
        expect(visit.page.locator(".live.behind")).to_be_visible(timeout=_STATE_MS)
        wait_until(lambda: answers(product), 60, "the router is back")
        expect(visit.page.locator(".live.live")).to_be_visible(timeout=60_000 * PATIENCE)


def test_a_revoked_key_is_said_and_shows_nothing_more(browser: Browser, product: Product) -> None:
    created = http(product, "POST", "/v1/keys", json={"name": "to be revoked", "advertisers": [1]}).json()
    with opened(browser, product, "advertiser=1&zone=UTC&range=live", key=created["key"]) as visit:
        expect(visit.page.locator("[data-measure=clicks]")).to_be_visible(timeout=_STATE_MS)
        assert http(product, "DELETE", f"/v1/keys/{created['id']}").status_code < 300
        expect(visit.page.get_by_label("Key or token")).to_be_visible(timeout=30_000 * PATIENCE)
        expect(visit.page.locator("[data-measure=clicks]")).to_have_count(0)


def test_a_tenants_link_shows_nothing_of_another(browser: Browser, product: Product) -> None:
    link = adclick("share", "--advertiser", "2", "--expires", "1h", "--dir", str(product.folder.path)).stdout.strip()
    assert re.fullmatch(r"http://\S+/#(token|key)=\S+", link)
    key = link.partition("=")[2].partition("&")[0]
    others = product.events.truth.counts.filter(pl.col("advertiser_id") != 2)["campaign_id"].unique().to_list()
    with opened(browser, product, "zone=UTC&range=24h", key=key) as visit:
        page = visit.page
        expect(page.get_by_role("combobox", name="Advertiser")).to_have_value("2", timeout=_STATE_MS)
        expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Overview", "Bills", "Statements"])
        table = page.get_by_role("region", name="Campaigns in this range").locator("table")
        expect(table.locator("tbody tr").first).to_be_visible(timeout=_STATE_MS)
        shown = {digits(row[0].split("\n")[-1]) for row in cells(table)}
        assert shown and not shown & set(others)
        page.goto(page.url.replace("advertiser=2", "advertiser=1"))
        expect(page.locator(".problem").first).to_be_visible(timeout=_STATE_MS)
        assert HOSTILE[:8] not in page.locator("body").inner_text()
        page.goto(page.url.split("#")[0] + "#view=pipeline")
        expect(page.get_by_role("heading", name="Pipeline")).to_have_count(0)


VIEWS = ("overview", "bill", "statement", "pipeline", "dead-letters", "keys")


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_violates_a_rule_of_accessibility(browser: Browser, product: Product, view: str) -> None:
    date = iso(yesterday_of(product))[:10]
    with opened(browser, product, f"view={view}&advertiser=1&zone=UTC&date={date}") as visit:
        expect(visit.page.locator(".loading")).to_have_count(0, timeout=_STATE_MS)
        # Of the dark page only colors differ.
        for width, scheme, rules in ((1280, "light", None), (1280, "dark", ["color-contrast"]), (390, "light", None)):
            visit.page.set_viewport_size({"width": width, "height": 900})
            visit.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            options = {"runOnly": {"type": "rule", "values": rules}} if rules else None
            report = Axe().run(visit.page, options=options).response
            violations = [(v["id"], [n["html"][:160] for n in v["nodes"]][:3]) for v in report["violations"]]
            assert violations == [], (width, scheme)
            assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
        assert visit.complaints == []


def test_the_keyboard_is_enough(browser: Browser, product: Product) -> None:
    with opened(browser, product, "advertiser=1&zone=UTC&range=24h") as visit:
        page = visit.page
        row = page.get_by_role("region", name="Campaigns in this range").locator("tbody button").first
        expect(row).to_be_visible(timeout=_STATE_MS)
        tab_to(page, page.get_by_role("combobox", name="Range"))
        page.keyboard.press("ArrowUp")
        expect(page.get_by_role("combobox", name="Range")).to_have_value("yesterday")
        page.keyboard.press("Enter")
        row = page.get_by_role("region", name="Campaigns in this range").locator("tbody button").first
        expect(page.get_by_role("heading", name="Yesterday")).to_be_visible(timeout=_STATE_MS)
        expect(row).to_be_visible(timeout=_STATE_MS)
        tab_to(page, row)
        page.keyboard.press("Enter")
        expect(page.get_by_role("list", name="Filters")).to_contain_text("Campaign")
        button = page.get_by_role("button", name="Export CSV").first
        tab_to(page, button)
        with page.expect_download():
            page.keyboard.press("Enter")


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until an element has the focus, which must be visible there."""
    for _ in range(400):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            assert target.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
            return
    raise AssertionError("Tab does not reach it")


def test_a_bill_is_explained_to_the_last_digit(browser: Browser, product: Product) -> None:
    start = yesterday_of(product)
    mine = [pl.col("advertiser_id") == 1, pl.col("minute_ms") >= start, pl.col("minute_ms") < start + DAY_MS]
    shown, billed = truth(product, "stream", *mine), truth(product, "batch", *mine)
    date = iso(start)[:10]
    with opened(browser, product, f"view=bill&advertiser=1&date={date}") as visit:
        table = visit.page.get_by_role("table", name="From shown to billed")
        expect(table).to_be_visible(timeout=_STATE_MS)
        rows = cells(table)
        assert [digits(cell) for cell in rows[0][1:4]] == [shown[m] for m in MEASURES[:3]]
        assert [digits(cell) for cell in rows[-1][1:4]] == [billed[m] for m in MEASURES[:3]]
        assert (rows[0][4], rows[-1][4]) == (micros(shown["spend_micros"]), micros(billed["spend_micros"]))
        expect(visit.page.locator("[data-late=counted]")).to_have_text(f"{billed['late_clicks']:,}")
        # All that the stream has not counted here came too late for it.
        expect(visit.page.locator("[data-late=added]")).to_have_text(f"{billed['clicks'] - shown['clicks']:,}")
        for column in range(1, 5):
            assert sum(digits(row[column]) for row in rows[:-1]) == digits(rows[-1][column])
    with opened(browser, product, f"view=statement&advertiser=1&month={date[:7]}") as visit:
        table = visit.page.get_by_role("region", name="Days of the month").locator("table")
        expect(table).to_be_visible(timeout=_STATE_MS)
        day = next(row for row in cells(table) if row[0] == date)
        assert [digits(cell) for cell in day[1:4]] == [billed[m] for m in MEASURES[:3]]
        assert day[4] == money(billed["spend_micros"])
        assert day[5] == "reconciled"


def test_a_budget_stands_beside_what_is_spent_of_it(browser: Browser, product: Product) -> None:
    start = yesterday_of(product) + DAY_MS
    mine = [pl.col("campaign_id") == 1, pl.col("minute_ms") >= start]
    spent = truth(product, "stream", *mine)["spend_micros"]
    document = http(product, "GET", "/v1/budgets", params={"advertiser_id": "1"}).json()
    (budget,) = document["data"]
    assert (budget["campaign_id"], budget["spent_micros"], budget["state"]) == (1, spent, "on-track")
    assert (budget["start"], budget["end"]) == (iso(start), iso(start + DAY_MS))
    assert budget["share"] == pytest.approx(spent / 5e9, abs=5e-5)
    with opened(browser, product, "advertiser=1&zone=UTC&range=today&search=1") as visit:
        table = visit.page.get_by_role("region", name="Campaigns in this range").locator("table")
        row = table.locator("tbody tr", has=visit.page.get_by_text(HOSTILE[:8])).first
        expect(row).to_contain_text(f"{budget['share']:.2%}", timeout=_STATE_MS)
        expect(row).to_contain_text("$5,000.00")


def test_half_hour_days_say_where_they_are_cut(browser: Browser, product: Product) -> None:
    with opened(browser, product, "advertiser=2&range=7d&grain=day") as visit:
        page = visit.page
        expect(page.get_by_role("combobox", name="Time zone")).to_contain_text(
            "Asia/Kolkata (advertiser)", timeout=_STATE_MS
        )
        expect(page.locator(".warnings").first).to_contain_text("Asia/Kolkata", timeout=_STATE_MS)
        assert page.locator("[data-measure=impressions]").inner_text() != "–"
