"""What `adclick plan` computes, beside generated events, arithmetic by hand, and the schema that it plans for."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cli import main
from infra.planning.constants import Assumption, load_constants
from infra.planning.costs import cost_items
from infra.planning.model import KEPT_DAYS, REGISTERS, Demand, Sizing
from infra.planning.prices import load_prices
from infra.planning.traffic import Traffic
from ingest.synthetic.generator import DIMENSIONS, Spec, generate_events
from stream.reach import registers

ROOT = Path(__file__).parents[2]
SHAPE = ((10, 0.8), (50, 1.0), (20, 1.0), (5, 1.2))
DEMAND = Demand(
    events_per_s=50_000, campaigns=10_000, horizon_s=3_600, retention_s=7 * 86_400, replicas=3, peak=1.6, archive_days=90,
    stage_retention_s=3 * 86_400, hot_hours=24, flush_s=0.5, answers_per_s=100, core_speed=1.0, utilization=0.6,
    night_hours=4, near_replicas=False,
)  # fmt: skip


def sizing_of(demand: Demand) -> Sizing:
    return Sizing(demand, Traffic(demand.campaigns, 1.1, SHAPE), load_constants())


def monthly(demand: Demand) -> float:
    return sum(item.monthly for item in cost_items(sizing_of(demand), load_prices()))


@pytest.mark.parametrize(("campaigns", "events"), [(100, 100_000), (1_000, 200_000), (50_000, 100_000)])
def test_rows_and_cells_are_those_of_generated_events(campaigns: int, events: int) -> None:
    spec = Spec(
        events=events, start_ms=1_800_000_000_000, span_ms=60_000, campaigns=campaigns, duplicates=0.0, late=0.0,
        malformed=0.0, future=0.0,
    )  # fmt: skip
    counts = generate_events(spec).truth.counts
    traffic = Traffic(campaigns, 1.1, SHAPE)
    assert traffic.rows(events) == pytest.approx(counts.select(DIMENSIONS).n_unique(), rel=0.01)
    assert traffic.cells(events) == pytest.approx(counts["campaign_id"].n_unique(), rel=0.02)


def test_what_grows_with_events_alone_doubles_with_them() -> None:
    one, two = sizing_of(DEMAND), sizing_of(replace(DEMAND, events_per_s=2 * DEMAND.events_per_s))
    assert two.ids == 2 * one.ids
    for name in ("kafka, ad-events", "archive"):
        assert two.disks_gb[name] == pytest.approx(2 * one.disks_gb[name])
    # A combination that has occurred is no new row.
    assert one.hot_bytes < two.hot_bytes < 2 * one.hot_bytes
    assert one.busy_cores["ingest"] < two.busy_cores["ingest"] < 2 * one.busy_cores["ingest"]


def test_sizes_are_products_that_can_be_worked_out_by_hand() -> None:
    sizing, constants = sizing_of(DEMAND), load_constants()
    free = constants.assumed["disk_headroom"].value
    sent = constants.written["ad_events"]
    week = 50_000 * 604_800 * (sent.event + sent.spread * math.log(10_000)) * 3
    assert sizing.disks_gb["kafka, ad-events"] == pytest.approx(week * free / 1e9)
    ids = 2 * 3_600 * 80_000 * constants.size["redis_id_bytes"].value * 2
    assert sizing.memory_gb["redis, ids"] == pytest.approx(ids * constants.assumed["redis_headroom"].value / 1e9)
    # Three zones: a client's server is elsewhere two times in three, and each further replica is elsewhere.
    carried = sizing.network_bytes_per_s
    local = replace(DEMAND, near_replicas=True)
    assert sizing.zone_bytes_per_s - sizing_of(local).zone_bytes_per_s == pytest.approx(
        carried["kafka to ingest"] * 2 / 3
    )


_BIGGER = {
    "events_per_s": 1e6, "campaigns": 1_000_000, "horizon_s": 86_400.0, "retention_s": 90 * 86_400.0, "replicas": 9, "peak": 10.0,
    "archive_days": 1_000.0, "stage_retention_s": 30 * 86_400.0, "hot_hours": 72.0, "answers_per_s": 1e5,
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(_BIGGER)), st.floats(0, 1), st.floats(0, 1), st.integers(1, 500_000))
def test_more_of_anything_never_costs_less(name: str, share: float, further: float, rate: int) -> None:
    demand = replace(DEMAND, events_per_s=rate)
    least, most = getattr(demand, name), max(getattr(demand, name), _BIGGER[name])
    low = least + share * (most - least)
    high = low + further * (most - low)
    kind = type(getattr(DEMAND, name))
    costs = [monthly(replace(demand, **{name: kind(value)})) for value in (low, high)]
    assert costs[0] <= costs[1] * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 5), st.floats(0.3, 5))
def test_faster_cores_are_never_more(one: float, other: float) -> None:
    slow, fast = sorted((one, other))
    cores = [sum(sizing_of(replace(DEMAND, core_speed=speed)).cores.values()) for speed in (slow, fast)]
    assert cores[1] <= cores[0] * (1 + 1e-9)


def test_every_constant_has_a_source_that_exists() -> None:
    constants = load_constants()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    costs = [*constants.cpu.values(), *constants.written.values(), *constants.stored.values()]
    for source in {cost.source for cost in costs} | {size.source for size in constants.size.values()}:
        if source.startswith("make "):
            assert source.split()[1] in targets
        else:
            page, heading = source.split(", ")
            assert f"\n## {heading}\n" in (ROOT / page).read_text()
    assert all(isinstance(entry, Assumption) and entry.why for entry in constants.assumed.values())


def test_what_clickhouse_keeps_is_what_its_tables_say() -> None:
    statements = "\n".join(file.read_text() for file in sorted((ROOT / "infra" / "clickhouse").glob("*.sql")))
    for table, days in KEPT_DAYS.items():
        last = re.findall(rf"ALTER TABLE {{database}}\.{table} MODIFY TTL (.*?);", statements, re.S)[-1]
        assert re.findall(r"INTERVAL (\d+) DAY(?! TO)", last) == [str(days)]
    assert REGISTERS == registers.REGISTERS


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--events-per-second", "fast"], 2, "not a number above 0: fast"),
        (["--events-per-second", "0"], 2, "not a number above 0"),
        (["--events-per-second", "2.3G"], 2, "like 800, 100k or 2.3M"),
        (["--events-per-second", "5000M"], 2, "from 1 to 1,000,000,000"),
        (["--events-per-second", "1k", "--campaigns", "0.2"], 2, "--campaigns is 0.2"),
        (["--events-per-second", "1k", "--retention", "week"], 2, "not a duration: week"),
        (["--events-per-second", "1k", "--horizon", "3d"], 2, "--retention is shorter than three times --horizon"),
        (["--events-per-second", "1k", "--replicas", "0"], 2, "--replicas"),
        (["--events-per-second", "1k", "--peak", "nan"], 2, "--peak"),
        (["--events-per-second", "1k", "--core-speed", "0"], 2, "--core-speed"),
        (["--events-per-second", "1k", "--core-speed", "0.05", "--utilization", "0.05"], 1, "a core is too slow"),
        ([], 2, "--events-per-second"),
        (["--events-per-second", "1k", "--prices", "nowhere.toml"], 1, "nowhere.toml: No such file"),
        (["--events-per-second", "1k", "--prices", "broken.toml"], 1, "broken.toml is not TOML"),
        (["--events-per-second", "1k", "--prices", "negative.toml"], 1, "core_hour is -1"),
        (["--events-per-second", "1k", "--prices", "text.toml"], 1, "text.toml: Expected `float`"),
        (["--events-per-second", "1k", "--prices", "few.toml"], 1, "missing required field `currency`"),
        (["--events-per-second", "1k", "--prices", "more.toml"], 1, "no price is called gpu_hour"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: list[str], code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    examples = (ROOT / "infra" / "planning" / "prices.toml").read_text()
    for name, text in {
        "broken": "core_hour = ", "negative": examples.replace("core_hour = 0.04", "core_hour = -1"),
        "text": examples.replace("core_hour = 0.04", 'core_hour = "a"'), "few": "core_hour = 1", "more": f"{examples}\ngpu_hour = 1",
    }.items():  # fmt: skip
        Path(f"{name}.toml").write_text(text)
    monkeypatch.setattr("sys.argv", ["adclick", "plan", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    output = capsys.readouterr()
    assert (ended.value.code, output.out) == (code, "")
    assert expected in output.err and len(output.err.splitlines()) == 1


def test_the_bill_adds_up_and_follows_the_price_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("core_hour", "memory_gb_month", "ssd_gb_month", "object_gb_month", "zone_gb")
    bills = []
    for dearest in (None, *names):
        prices = "".join(f"{name} = {1e9 if name == dearest else 1.0}\n" for name in names)
        Path("prices.toml").write_text(f'currency = "EUR"\n{prices}')
        words = ["plan", "--events-per-second", "2.3M", "--campaigns", "100k", "--prices", "prices.toml", "--json"]
        monkeypatch.setattr("sys.argv", ["adclick", *words])
        with pytest.raises(SystemExit):
            main.main()
        bills.append(json.loads(capsys.readouterr().out)["cost"])
    plain = bills[0]
    assert plain["currency"] == "EUR"
    assert plain["monthly"] == pytest.approx(sum(item["monthly"] for item in plain["items"]), abs=0.2)
    assert plain["per_million_events"] == pytest.approx(plain["monthly"] / (2.3 * 730 * 3_600), rel=1e-3)
    kinds = ("cores", "memory", "disk", "object store", "network")
    for kind, bill in zip(kinds, bills[1:], strict=True):
        assert bill["largest"]["kind"] == kind
        assert bill["largest"]["monthly"] == max(item["monthly"] for item in bill["items"])
