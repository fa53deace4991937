"""The dashboard's own logic, in a browser, on made-up answers: exact integers, ranges in time zones, hostile names, keys."""

from __future__ import annotations

import datetime as dt
import json
import random
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Route, expect

from infra.clock import iso
from infra.settings import resolve
from query.api.app import create_app
from query.dashboard.assets import Assets
from query.question import Retention, parse_question
from tests.browser.chromium import Visit, visited
from tests.ports import unused_port
from tests.product import PATIENCE

KEY = "adk_0123456789_a-key-that-nobody-may-see"
HOUR_MS = 3_600_000
HOSTILE = {
    1: '<img src=x onerror="window.pwned=1">',
    2: "</script><script>window.pwned=2</script>",
    3: "\u202egnp.live\u202c and \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    4: "🦊👩‍👩‍👧‍👦 e\u0301 \u0000 {{constructor}} ${window.pwned=3}",
    5: "x" * 10_000,
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a router without any store serves the page."""
    port = unused_port()
    nowhere = f"127.0.0.1:{unused_port()}"
    settings = resolve(None).settings.model_copy(
        update={
            "kafka": nowhere,
            "redis": f"redis://{nowhere}/0",
            "clickhouse": f"http://{nowhere}",
            "access_log": "off",
        }
    )
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.started
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(30)


def answers(path: str, parameters: dict[str, list[str]]) -> Any:
    """Made-up answers of the HTTP interface."""
    if path == "/v1/access":
        return {
            "key": "k", "name": "tests", "admin": True, "advertisers": None, "campaigns": None, "currency": "USD",
            "may_act_on_alerts": True,
        }  # fmt: skip
    if path == "/v1/advertisers":
        return {
            "data": [{"id": n, "name": name, "timezone": "Asia/Kolkata"} for n, name in HOSTILE.items()],
            "next_cursor": None,
        }
    if path == "/v1/alerts":
        number = int(parameters["advertiser_id"][0])
        return {"data": [alert(n, number) for n in (1, 2, 4)] if number < 2 else [], "rows": 3, "next_cursor": None}
    if path == "/v1/trending":
        factors = {
            "score": 3.61,
            "volume": 240,
            "usual": 60.0,
            "growth": 4.0,
            "users": 0.98,
            "users_known": True,
            "sources": 0.95,
            "recency": 0.95,
        }
        quiet: dict[str, Any] = factors | {"score": 0.9, "growth": 1.0, "volume": 60, "users_known": False}
        names = list(HOSTILE.items())
        rows = [
            {"campaign_id": n, "name": name, **(quiet if at else factors)} for at, (n, name) in enumerate(names[:2])
        ]
        return {"data": rows, "rows": len(rows), "computed_at": "2026-11-29T10:00:02Z", "warnings": []}
    if path in ("/v1/campaigns", "/v1/budgets", "/v1/anomalies", "/v1/mutes", "/v1/alerts/summary"):
        return {"data": [], "rows": 0, "next_cursor": None}
    if path != "/v1/metrics":
        return None
    huge = 2**53 + 1
    measures = {
        "impressions": 3 * huge,
        "clicks": huge,
        "conversions": 7,
        "spend_micros": huge * 10**6 + 1,
        "late_events": 0,
        "late_clicks": 0,
    }
    ratios = {"ctr": 0.3333, "cvr": 0.0, "cpc_micros": 10**6, "cpm_micros": 333_333_333}
    row = {**measures, **ratios, "finality": "closed"}
    if "users" in parameters:
        row |= {"users": 54_321, "frequency": 1.25}
    group_by = parameters.get("group_by", [""])[0]
    if group_by == "country":
        rows = [{"time": "2026-11-29T00:00:00Z", "country": code, **row} for code in ("DE", "ZZ")]
    elif group_by:
        name_of = f"{group_by.removesuffix('_id')}_name"
        rows = [{"time": "2026-11-29T00:00:00Z", group_by: n, name_of: name, **row} for n, name in HOSTILE.items()]
    else:
        rows = [{"time": parameters["start"][0], **row}]
    return {
        "data": rows, "rows": len(rows), "next_cursor": None, "currency": "USD", "finality": "closed", "totals": row,
        "answer_id": "0123456789abcdef", "watermark": "2026-11-29T10:02:11.000Z", "statistics": {"tiers": []},
        "warnings": ["<b>a warning</b>"], **({"users_standard_error": 0.0115} if "users" in parameters else {}),
    }  # fmt: skip


def alert(number: int, advertiser: int, **fields: Any) -> dict[str, Any]:
    """A made-up alert whose summary is hostile."""
    opened = dt.datetime.now(dt.UTC) - dt.timedelta(hours=3 + number)
    return {
        "id": f"al_{number}", "version": 1, "kind": "spend-spike", "severity": "critical" if number == 1 else "warning", "state": "open",
        "campaign_id": number if advertiser else 0, "advertiser_id": advertiser, "opened": opened.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "ended": None, "summary": HOSTILE[number], "detail": {}, "updated": "2026-11-29T10:00:00Z", "acknowledged": None,
        "muted_until": None,
    } | fields  # fmt: skip


def pretend(page: Page) -> None:
    """Answer the page's requests under /v1 with made-up answers."""

    def answer(route: Route) -> None:
        url = urlsplit(route.request.url)
        if url.path == "/v1/stream":
            route.fulfill(status=200, content_type="text/event-stream", body=": nothing yet\n\n")
            return
        document = answers(url.path, parse_qs(url.query))
        if document is None:
            route.fulfill(status=404, content_type="application/problem+json", body='{"detail": "not here"}')
        else:
            route.fulfill(status=200, content_type="application/json", body=json.dumps(document))

    page.route("**/v1/**", answer)


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """A page of the dashboard whose answers are made up."""
    with visited(browser) as visit:
        pretend(visit.page)
        visit.page.goto(f"{address}#key={KEY}&advertiser=1")
        expect(visit.page.locator("[data-measure=clicks]")).to_be_visible(timeout=60_000)
        yield visit


def wait_until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait until something is so, while the page goes on."""
    deadline = time.monotonic() + 5 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def call(page: Page, module: str, expression: str, argument: Any) -> Any:
    """The value of an expression over `m`, a module of the page, and `x`, the argument."""
    scripts = page.evaluate("[...document.scripts].map(s => s.src)")
    base = next(script for script in scripts if script.endswith("main.js"))
    source = (
        f"async ([base, x]) => {{ const m = await import(base.replace('main.js', '{module}')); return {expression}; }}"
    )
    return page.evaluate(source, [base, argument])


def test_integers_of_any_size_survive_parsing(visit: Visit) -> None:
    rng = random.Random(7)
    values: list[Any] = [0, -1, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 10**40, 0.1, 1e300]
    values += [0.023000000000000003, *(rng.randrange(10 ** rng.randrange(1, 30)) for _ in range(200))]
    texts = ['a "9007199254740993" b', "\\9007199254740993", '"9007199254740993,', "[9007199254740993]", "\u2028", ""]
    document = {"values": values, "texts": texts, "nested": [{"k,9007199254740993": [{"v": v} for v in values]}]}
    expression = "JSON.stringify(m.parseExact(x), (_, v) => typeof v === 'bigint' ? `big:${v}` : v)"
    shown = call(visit.page, "exact.js", expression, json.dumps(document))

    def as_parsed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: as_parsed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [as_parsed(v) for v in value]
        return f"big:{value}" if isinstance(value, int) and abs(value) > 2**53 - 1 else value

    assert json.loads(shown) == as_parsed(document)


def test_ratios_of_summed_rows_are_rounded_as_the_router_rounds_them(visit: Visit) -> None:
    rng = random.Random(8)
    rows = []
    for _ in range(300):
        impressions = rng.randrange(10 ** rng.randrange(1, 22))
        clicks = rng.randrange(impressions + 1)
        measures = (impressions, clicks, rng.randrange(clicks + 1), rng.randrange(10 ** rng.randrange(1, 22)))
        rows.append(
            dict(zip(("impressions", "clicks", "conversions", "spend_micros"), map(str, measures), strict=True))
        )
    rows += [dict.fromkeys(("impressions", "clicks", "conversions", "spend_micros"), "0")]
    expression = "x.map(row => JSON.stringify(m.ratios(Object.fromEntries(Object.entries(row).map(([k, v]) => [k, BigInt(v)]))), (_, v) => typeof v === 'bigint' ? v.toString() : v))"
    shown = [json.loads(text) for text in call(visit.page, "exact.js", expression, rows)]

    def rounded(part: int, whole: int, scale: int) -> int | None:
        return None if whole == 0 else int(Fraction(part * scale, whole) + Fraction(1, 2))

    for row, ratios in zip(rows, shown, strict=True):
        impressions, clicks, conversions, spend = (
            int(row[m]) for m in ("impressions", "clicks", "conversions", "spend_micros")
        )
        expected = {
            "ctr": rounded(clicks, impressions, 10_000),
            "cvr": rounded(conversions, clicks, 10_000),
            "cpc_micros": rounded(spend, clicks, 1),
            "cpm_micros": rounded(spend, impressions, 1000),
        }
        for name, value in expected.items():
            if value is None:
                assert ratios[name] is None
            elif name in ("ctr", "cvr"):
                assert float(ratios[name]) == value / 10_000
            else:
                assert int(ratios[name]) == value


ZONES = [
    "UTC",
    "Asia/Kolkata",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Pacific/Apia",
    "Asia/Kathmandu",
]


def test_local_days_begin_where_the_zone_says(visit: Visit) -> None:
    rng = random.Random(9)
    moments = [
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=rng.randrange(2 * 525_600)) for _ in range(150)
    ]
    # The days of clock changes: of 23, 25 and 23.5 hours, and one that begins at 01:00.
    moments += [
        dt.datetime(2026, m, d, h, 30, tzinfo=dt.UTC)
        for m, d in ((3, 29), (10, 25), (4, 5), (10, 4), (9, 6), (3, 8), (11, 1))
        for h in (0, 5, 12, 22)
    ]
    cases = [(int(at.timestamp() * 1000), zone) for at in moments for zone in ZONES]
    shown = call(
        visit.page,
        "ranges.js",
        "x.map(([ms, zone]) => [m.startOfDay(ms, zone), m.startOfDay(ms, zone, 1), m.isoDate(ms, zone)])",
        cases,
    )

    def start_of(date: dt.date, zone: zoneinfo.ZoneInfo) -> int:
        """The first moment of a local date: by going through its minutes."""
        moment = dt.datetime.combine(date, dt.time(), zone).astimezone(dt.UTC) - dt.timedelta(hours=2)
        while moment.astimezone(zone).date() < date:
            moment += dt.timedelta(minutes=30)
        return int(moment.timestamp() * 1000)

    for (ms, name), (start, following, date) in zip(cases, shown, strict=True):
        zone = zoneinfo.ZoneInfo(name)
        local = dt.datetime.fromtimestamp(ms / 1000, zone).date()
        assert date == local.isoformat(), (ms, name)
        assert start == start_of(local, zone), (ms, name)
        assert following == start_of(local + dt.timedelta(days=1), zone), (ms, name)


def test_a_day_of_23_hours_has_23_buckets(visit: Visit) -> None:
    now = int(dt.datetime(2026, 3, 30, 10, tzinfo=dt.UTC).timestamp() * 1000)
    chosen = {"range": "yesterday", "grain": "hour", "from": "", "to": ""}
    shown = call(visit.page, "ranges.js", "m.resolveRange(x[0], 'Europe/Berlin', x[1])", [chosen, now])
    assert (shown["end"] - shown["start"]) // HOUR_MS == 23


def test_events_of_a_stream_are_taken_whatever_ends_their_lines_and_wherever_it_is_cut(visit: Visit) -> None:
    text = """: ping\n\nid: a1\ndata: [{"time": "t1",\ndata:  "clicks": 9007199254740993}]\n\nid: a2\ndata: [{"time": "t2"}]\n\n"""
    read = """(async () => {
      const rows = [];
      const stream = new m.LiveStream((some) => rows.push(...some.map((row) => `${row.time} ${row.clicks}`)), () => {});
      const parts = x.map((part) => new TextEncoder().encode(part));
      const body = new ReadableStream({ start: (c) => { parts.forEach((part) => c.enqueue(part)); c.close(); } });
      const real = window.fetch;
      window.fetch = async () => new Response(body);
      try { await stream.read({}, new AbortController().signal); } finally { window.fetch = real; }
      return [rows, stream.lastId];
    })()"""
    for ending in ("\n", "\r\n", "\r"):
        for size in (1, 7, 1000):
            whole = text.replace("\n", ending)
            parts = [whole[at : at + size] for at in range(0, len(whole), size)]
            rows = call(visit.page, "live.js", f"await {read}", parts)
            assert rows == [["t1 9007199254740993", "t2 undefined"], "a2"], (ending, size)


def test_a_day_is_asked_for_by_what_is_retained_of_the_day_before_as_well(visit: Visit) -> None:
    midnight = dt.datetime(2026, 11, 18, 18, 30, tzinfo=dt.UTC).timestamp() * 1000  # in Kolkata; 21:30 in Moscow
    cases = [("today", "Asia/Kolkata", 12), ("yesterday", "Asia/Kolkata", 12), ("7d", "Asia/Kolkata", 12), ("live", "Asia/Kolkata", 12),
             ("today", "Europe/Moscow", 3), ("yesterday", "Europe/Moscow", 3), ("24h", "Europe/Moscow", 3)]  # fmt: skip
    asked = [[{"range": name, "grain": "auto"}, zone, midnight + hours * HOUR_MS] for name, zone, hours in cases]
    shown = call(visit.page, "ranges.js", "x.map(one => m.resolveRange(...one).grain)", asked)
    assert shown == ["day", "day", "day", "minute", "hour", "hour", "hour"]


def test_ranges_are_those_that_were_chosen(visit: Visit) -> None:
    expected = [
        # Asked for as a whole month, it is compared with the month before; only what has begun is shown.
        ({"range": "mtd"}, (11, 1), (12, 1)),
        ({"range": "custom", "from": "2026-11-10", "to": "2026-11-12"}, (11, 10), (11, 13)),
        ({"range": "custom", "from": "2026-11-12", "to": "2026-11-10"}, (11, 10), (11, 13)),
        ({"range": "custom", "to": "2026-11-12"}, (11, 6), (11, 13)),
        ({"range": "custom", "from": "someday", "to": "2026-11-12", "grain": "week"}, (11, 6), (11, 13)),
        ({"range": "custom", "from": "2026-12-10"}, (12, 10), (12, 11)),
    ]
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    now = int(dt.datetime(2026, 11, 18, 10, 12, tzinfo=zone).timestamp() * 1000)
    chosen = [{"grain": "auto", **params} for params, *_ in expected]
    ranges = call(visit.page, "ranges.js", "x[0].map(p => m.resolveRange(p, 'Europe/Berlin', x[1]))", [chosen, now])
    for (params, *days), shown in zip(expected, ranges, strict=True):
        moments = [dt.datetime.fromtimestamp(shown[border] / 1000, zone) for border in ("start", "end")]
        assert moments == [dt.datetime(2026, *day, tzinfo=zone) for day in days], params
    rows = [{"time": "2026-11-18T10:00:00+01:00"}, {"time": "2026-11-18T11:00:00+01:00"}]
    assert call(visit.page, "ranges.js", "m.begun(...x)", [rows, now]) == rows[:1]


def test_an_address_that_no_page_wrote_is_taken_as_far_as_it_goes(visit: Visit) -> None:
    visit.page.evaluate(
        "location.hash = 'advertiser=1&filters=x&toString=y&grain=week&zone=Mars/Base&range=2w&by=-constructor&view=__proto__'"
    )
    visit.page.wait_for_timeout(300)
    expect(visit.page.locator("[data-measure=clicks]")).to_be_visible()
    expect(visit.page.locator("[role=alert]")).to_have_count(0)


def test_the_page_is_printed_dark_on_white_and_whole(visit: Visit) -> None:
    visit.page.locator(".theme select").select_option("dark")
    visit.page.emulate_media(media="print", color_scheme="dark")
    style = "e => { const s = getComputedStyle(e); return [s.color, s.overflowX, s.textOverflow === 'clip' || s.whiteSpace]; }"
    color, *_ = visit.page.locator("thead th").first.evaluate(style)
    assert max(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) < 128, color
    axis = visit.page.locator("ad-chart").first.evaluate("chart => chart.colors['--ink-soft']")
    assert max(map(int, axis.removeprefix("rgb(").removesuffix(")").split(","))) < 128, axis
    assert visit.page.locator(".scroll").last.evaluate(style)[1] == "visible"
    name = visit.page.locator("tbody .name", has_text="xxxx").first
    assert name.evaluate("e => e.scrollWidth <= e.clientWidth"), "a name is cut off"


def test_integers_beyond_2_to_the_53_are_shown_to_the_last_digit(visit: Visit) -> None:
    expect(visit.page.locator("[data-measure=clicks]")).to_have_text(f"{2**53 + 1:,}")
    expect(visit.page.locator("[data-measure=impressions]")).to_have_text(f"{3 * (2**53 + 1):,}")
    expect(visit.page.locator("[data-measure=spend_micros]")).to_have_text(f"${2**53 + 1:,}.00")


def test_hostile_names_are_text(visit: Visit) -> None:
    page = visit.page
    names = page.get_by_role("region", name="Campaigns in this range").locator(".name")
    expect(names).to_have_count(len(HOSTILE))
    assert set(names.all_text_contents()) == set(HOSTILE.values())
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script, main b:has-text('a warning')").count() == 0
    # A name of ten thousand characters does not widen the page.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.complaints == []


def test_a_key_leaves_the_address_and_no_request_carries_it_there(visit: Visit, address: str) -> None:
    page = visit.page
    assert "key" not in page.url
    assert all(KEY not in url and url.startswith((address, "blob:", "data:")) for url in visit.requests)
    assert page.evaluate("[sessionStorage.length, localStorage.getItem('adclick.key')]") == [1, None]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Key or token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.get_by_label("Key or token").fill(KEY)
    page.get_by_label("Keep it in this browser").check()
    page.get_by_role("button", name="Open the dashboard").click()
    expect(page.locator("[data-measure=clicks]")).to_be_visible()
    assert page.evaluate("localStorage.getItem('adclick.key')") == KEY
    page.get_by_role("button", name="Sign out").click()
    assert page.evaluate("localStorage.getItem('adclick.key')") is None


def test_a_view_is_shared_by_its_address(visit: Visit, browser: Browser) -> None:
    page = visit.page
    page.get_by_role("combobox", name="Range").select_option("7d")
    page.get_by_role("button", name="Countries").click()
    page.get_by_role("combobox", name="Show").select_option("clicks")
    shared = page.url
    with visited(browser) as other:
        pretend(other.page)
        other.page.goto(shared)
        other.page.get_by_label("Key or token").fill(KEY)
        other.page.get_by_role("button", name="Open the dashboard").click()
        expect(other.page.get_by_role("combobox", name="Range")).to_have_value("7d")
        expect(other.page.get_by_role("combobox", name="Show")).to_have_value("clicks")
        expect(other.page.get_by_role("heading", name="Countries")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("combobox", name="Show")).to_have_value("spend_micros")


def test_the_page_weighs_less_than_350_kilobytes() -> None:
    assets = Assets.load()
    weight = sum(len(asset.encoded.get("gzip", asset.body)) for asset in (assets.page, *assets.files.values()))
    assert weight < 350_000


def test_nothing_of_the_question_before_is_shown_for_one_that_cannot_be_answered(visit: Visit) -> None:
    page = visit.page
    refuse(page, "**/v1/metrics?*", 503, "ClickHouse is away")
    page.get_by_role("combobox", name="Range").select_option("30d")
    expect(page.get_by_text("ClickHouse is away").first).to_be_visible()
    expect(page.locator("[data-measure=clicks]")).to_have_count(0)


def test_old_numbers_say_of_when_they_are(visit: Visit) -> None:
    page = visit.page
    ask, peek = (
        "m.ask('probe', 'v1/access', {}, 1)",
        "(({value, valueAt, at, error}) => ({value, valueAt, at, error}))(m.peek('probe'))",
    )
    call(page, "store.js", ask, None)
    wait_until(page, lambda: call(page, "store.js", peek, None)["value"] is not None)
    page.wait_for_timeout(300)
    refuse(page, "**/v1/access", 503, "away")
    call(page, "store.js", ask, None)
    wait_until(page, lambda: call(page, "store.js", peek, None)["error"] is not None)
    entry = call(page, "store.js", peek, None)
    assert entry["value"]["key"] == "k"
    assert entry["at"] - entry["valueAt"] >= 250


@pytest.mark.parametrize("range_", ["today", "yesterday", "24h", "7d"])
def test_ranges_of_a_half_hour_zone_begin_at_its_own_hours_and_can_be_answered(visit: Visit, range_: str) -> None:
    now = int(dt.datetime(2026, 11, 29, 10, 10, tzinfo=dt.UTC).timestamp() * 1000)
    chosen = {"range": range_, "grain": "auto", "from": "", "to": ""}
    shown = call(visit.page, "ranges.js", "m.resolveRange(x[0], 'Asia/Kolkata', x[1])", [chosen, now])
    zone = zoneinfo.ZoneInfo("Asia/Kolkata")
    local = dt.datetime.fromtimestamp(shown["start"] / 1000, zone)
    assert local.minute == 0 and (range_ == "24h" or local.hour == 0)
    parameters = {"advertiser_id": "1", "timezone": zone.key, "granularity": shown["grain"]}
    parameters |= {name: iso(shown[name]) for name in ("start", "end")}
    question = parse_question(list(parameters.items()), now, Retention(24 * HOUR_MS, 30 * 24 * HOUR_MS))
    assert (question.bucket(question.start_ms), question.grain) == (shown["start"], shown["grain"])


def test_integers_of_any_size_survive_writing(visit: Visit) -> None:
    document = {"ids": ["9007199254740993", "9223372036854775807", "3"], "name": 'a "9007199254740993"'}
    written = call(visit.page, "exact.js", "m.writeExact({...x, ids: x.ids.map(BigInt)})", document)
    assert json.loads(written) == document | {"ids": [2**53 + 1, 2**63 - 1, 3]}


def test_a_stream_that_ends_at_once_is_opened_less_and_less_often(visit: Visit) -> None:
    page = visit.page
    page.wait_for_timeout(4_000)
    assert sum("/v1/stream" in url for url in visit.requests) <= 5


def test_an_export_that_is_refused_says_so(visit: Visit) -> None:
    page = visit.page
    refuse(page, "**/v1/metrics?*format=csv*", 401, "the request has no valid key")
    page.get_by_role("button", name="Export CSV").first.click()
    expect(page.get_by_role("alert")).to_contain_text("the request has no valid key")


def test_a_link_with_another_key_shows_nothing_of_the_former_one(visit: Visit) -> None:
    page = visit.page
    asked = len([url for url in visit.requests if url.endswith("/v1/access")])
    page.evaluate(f"location.hash = 'token={KEY}-of-another&advertiser=1'")
    wait_until(page, lambda: len([url for url in visit.requests if url.endswith("/v1/access")]) > asked)
    expect(page.locator("[data-measure=clicks]")).to_be_visible()


def test_of_several_runs_of_a_day_the_bill_shows_the_current_one(visit: Visit) -> None:
    page = visit.page
    date = (dt.datetime.now(dt.UTC) - dt.timedelta(days=2)).date().isoformat()
    runs = [
        {"date": date, "run_id": run_id, "published_at": f"{date}T04:00:00Z", "current": current, "drift": drift}
        for run_id, current, drift in (("new", True, 0.25), ("old", False, 0.0001))
    ]
    document = json.dumps({"data": runs, "rows": 2})
    page.route("**/v1/reconciliations?*", lambda route: route.fulfill(content_type="application/json", body=document))
    page.get_by_role("navigation").get_by_role("link", name="Bills").click()
    expect(page.locator(".calendar .sealed")).to_contain_text("drift 25.00%")


def test_a_statement_shows_its_warnings(visit: Visit) -> None:
    page = visit.page
    nothing = dict.fromkeys(("impressions", "clicks", "conversions", "spend_micros"), 0)
    statement = {
        "advertiser_id": 1, "name": "a", "month": "2026-11", "timezone": "UTC", "currency": "USD", "status": "open",
        "issue": None, "digest": "d", "issued_at": None, "days": [], "campaigns": [], "total": nothing, "differences": [],
        "previous_issue": None, "waiting_for": ["2026-11-05"], "warnings": ["minutes are missing"],
    }  # fmt: skip
    page.route(
        "**/v1/statements?*",
        lambda route: route.fulfill(content_type="application/json", body=json.dumps(statement)),
    )
    page.get_by_role("link", name="Statements").click()
    expect(page.locator(".paper")).to_contain_text("Minutes are missing")
    expect(page.locator(".paper")).to_contain_text("2026-11-05")


def act_on_alerts(page: Page, answers: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Let alerts be acknowledged and muted, as `answers` then has them; returns what is requested: method, path, body."""
    requests: list[tuple[str, str, Any]] = []

    def answer(route: Route) -> None:
        method, path = route.request.method, urlsplit(route.request.url).path
        if method != "GET":
            requests.append((method, path, route.request.post_data_json))
        route.fulfill(content_type="application/json", body=json.dumps(answers.get(path, {"data": [], "rows": 0})))

    page.route("**/v1/alerts**", answer)
    page.route("**/v1/alerts/**", answer)
    page.route("**/v1/mutes**", answer)
    page.route("**/v1/mutes/**", answer)
    return requests


def test_alerts_are_text_and_are_acknowledged_muted_and_heard_again(visit: Visit) -> None:
    page = visit.page
    panel = page.get_by_role("region", name="Alerts")
    expect(panel.locator(".summary")).to_have_text([HOSTILE[1], HOSTILE[2], HOSTILE[4]])
    expect(panel.locator("li").first).to_contain_text("critical")
    expect(panel.locator("li").first).to_contain_text("since")
    answers: dict[str, Any] = {"/v1/alerts": {"data": [alert(1, 1), alert(2, 1)], "rows": 2}}
    requests = act_on_alerts(page, answers)
    seen = {"version": 1, "by": "key k", "at": "2026-11-29T10:00:00Z"}
    answers["/v1/alerts"] = {"data": [alert(1, 1, acknowledged=seen), alert(2, 1)], "rows": 2}
    panel.locator("li").first.get_by_role("button", name="Acknowledge").click()
    expect(panel.locator("li").first).to_contain_text("acknowledged by key k")
    expect(panel.locator("li").first.get_by_role("button", name="Acknowledge")).to_have_count(0)
    assert requests == [("POST", "/v1/alerts/al_1/acknowledge", {"version": 1})]
    until = "2099-12-01T00:00:00Z"
    answers["/v1/alerts"] = {
        "data": [alert(1, 1, muted_until=until), alert(2, 1, state="closed", ended="2026-11-29T10:00:00Z")]
    }
    mute = {
        "id": "mu_1",
        "kind": "spend-spike",
        "advertiser_id": 1,
        "campaign_id": 1,
        "until": until,
        "by": "key k",
        "at": until,
    }
    answers["/v1/mutes"] = {"data": [mute], "rows": 1}
    panel.locator("li").first.get_by_role("button", name="Mute for a week").click()
    expect(panel.get_by_text("Muted: 1")).to_be_visible()
    method, path, body = requests[1]
    assert (method, path) == ("PUT", "/v1/mutes")
    ends = dt.datetime.fromisoformat(body.pop("until"))
    assert body == {"kind": "spend-spike", "advertiser_id": 1, "campaign_id": 1}
    assert abs(ends - dt.datetime.now(dt.UTC) - dt.timedelta(days=7)) < dt.timedelta(minutes=5)
    panel.get_by_text("Muted: 1").click()
    answers["/v1/alerts"] = answers["/v1/mutes"] = {"data": [], "rows": 0}
    panel.get_by_role("button", name="End this mute").click()
    expect(panel).to_have_count(0)
    assert requests[2][:2] == ("DELETE", "/v1/mutes/mu_1")
    assert page.evaluate("window.pwned") is None
    assert visit.complaints == []


def test_an_alert_that_holds_is_a_band_on_the_chart(visit: Visit) -> None:
    page = visit.page
    bands = "document.querySelector('ad-chart')._model.bands.map(b => [b.critical, b.text])"
    wait_until(page, lambda: len(page.evaluate(bands)) == 3)
    assert page.evaluate(bands)[0] == [True, HOSTILE[1]]
    page.locator("ad-chart").press("Home")
    expect(page.locator(".chart-tip")).to_be_visible()
    page.get_by_role("combobox", name="Advertiser").select_option("2")
    expect(page.get_by_role("region", name="Alerts")).to_have_count(0)
    wait_until(page, lambda: page.evaluate(bands) == [])


def test_users_stand_beside_the_figures_and_campaigns_and_a_filter_that_they_are_not_counted_by_says_so(
    visit: Visit,
) -> None:
    page = visit.page
    expect(page.locator("[data-measure=users]")).to_have_text("54,321")
    expect(page.locator("[data-measure=frequency]")).to_have_text("1.25")
    expect(page.get_by_text("within 2.3 % in 95 of 100 cases")).to_be_visible()
    table = page.get_by_role("region", name="Campaigns in this range")
    expect(table.get_by_role("columnheader", name="Users", exact=True)).to_be_visible()
    page.evaluate("location.hash = '#advertiser=1&filter=country:DE'")
    expect(page.get_by_text("Users are not counted by country")).to_be_visible()
    expect(page.locator("[data-measure=users]")).to_have_count(0)
    expect(table.get_by_role("columnheader", name="Users", exact=True)).to_have_count(0)


def test_campaigns_that_trend_are_listed_and_steady_ones_are_not(visit: Visit) -> None:
    rows = visit.page.get_by_role("region", name="Campaigns that trend").locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text(next(iter(HOSTILE.values()))[:20])
    expect(rows.first).to_contain_text("×4")
    rows.first.get_by_role("button").click()
    expect(visit.page.get_by_role("list", name="Filters")).to_contain_text("Campaign")


def test_operators_see_their_alerts_beside_the_pipeline_and_readers_have_no_buttons(visit: Visit) -> None:
    page = visit.page
    panel = page.get_by_role("region", name="Alerts")
    # The overview has as many of its advertiser's.
    with page.expect_request(lambda request: "/v1/alerts?" in request.url and "advertiser_id=0" in request.url):
        page.get_by_role("link", name="Pipeline").click()
    expect(panel.locator("li")).to_have_count(3)
    expect(panel.get_by_role("button", name="Mute for a day")).to_have_count(3)
    reader = json.dumps(
        {
            "key": "k",
            "admin": True,
            "advertisers": [1],
            "campaigns": None,
            "currency": "USD",
            "may_act_on_alerts": False,
        }
    )
    page.route("**/v1/access", lambda route: route.fulfill(content_type="application/json", body=reader))
    page.evaluate(f"location.hash = 'token={KEY}-of-another&advertiser=1&view=pipeline'")
    expect(panel).to_have_count(0)
    page.get_by_role("link", name="Overview").click()
    expect(panel.locator("li")).to_have_count(3)
    expect(panel.get_by_role("button", name="Mute for a day")).to_have_count(0)


def refuse(page: Page, pattern: str, status: int, detail: str) -> None:
    """Answer requests from now on with a problem document."""
    body = json.dumps({"type": "refused", "detail": detail})
    page.route(pattern, lambda route: route.fulfill(status=status, content_type="application/problem+json", body=body))
