"""`adclick plan`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from infra.cli import declare
from infra.cli.app import App
from infra.cli.quantities import count_of, duration_ms
from infra.errors import UsageError
from infra.planning.constants import load_constants
from infra.planning.costs import CostItem, cost_items, events_of_month
from infra.planning.model import DAY_S, HOUR_S, Demand, Sizing
from infra.planning.prices import EXAMPLES, Prices, load_prices
from infra.planning.traffic import Traffic

_MOST_EVENTS, _MOST_CAMPAIGNS = 1e9, 10_000_000
_DIMENSIONS = ("ads", "publishers", "countries", "devices")


class _Number(click.FloatRange):
    """A number within bounds; "nan", which no bound refuses, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


@declare.command(
    "plan",
    "adclick plan --events-per-second 2.3M --campaigns 100k --horizon 1h --retention 7d --replicas 3",
)
@click.option("--events-per-second", "rate", required=True, metavar="N", help="On average of a day, like 50k or 2.3M.")
@click.option("--campaigns", default="1k", show_default=True, metavar="N", help="With events.")
@click.option("--peak", type=_Number(1, 100), default=1.6, show_default=True, help="The busiest time ÷ the average.")
@click.option("--horizon", metavar="D", help="Within which copies are caught.  [default: the setting]")
@click.option("--retention", metavar="D", help="Of ad-events in Kafka.  [default: the setting]")
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True, help="Of each topic.")
@click.option(
    "--archive", "archived", default="90d", show_default=True, metavar="D", help="How long events are archived."
)
@click.option("--night", default="4h", show_default=True, metavar="D", help="How long the nightly run may take.")
@click.option(
    "--answers-per-second",
    "answers",
    type=_Number(0, 1e6),
    default=100,
    show_default=True,
    help="Of minutes, over HTTP.",
)
@click.option(
    "--utilization",
    type=_Number(0.05, 1),
    default=0.6,
    show_default=True,
    help="How busy a core may be in the busiest time.",
)
@click.option(
    "--core-speed",
    type=_Number(0.05, 20),
    default=1.0,
    show_default=True,
    help="A core ÷ the one that was measured: docs/planning.md.",
)
@click.option("--near-replicas", is_flag=True, help="Ingest reads from its own zone (client.rack).")
@click.option(
    "--prices",
    "price_file",
    type=click.Path(path_type=Path),
    default=EXAMPLES,
    help="TOML file of prices.  [default: examples]",
)
def plan(
    app: App,
    rate: str,
    campaigns: str,
    horizon: str | None,
    retention: str | None,
    archived: str,
    night: str,
    price_file: Path,
    **options: Any,
) -> None:
    """Print what an installation of a given load needs, and what it costs in a month.

    It is computed from measurements of each part. Prices are examples unless a file names yours.
    """
    settings, constants = app.settings, load_constants()
    demand = Demand(
        events_per_s=_count("--events-per-second", rate, _MOST_EVENTS),
        campaigns=int(_count("--campaigns", campaigns, _MOST_CAMPAIGNS)),
        peak=options["peak"],
        horizon_s=_seconds(horizon, settings.dedup_horizon_s),
        retention_s=_seconds(retention, settings.events_retention_s),
        replicas=options["replicas"],
        archive_days=duration_ms(archived) / 1000 / DAY_S,
        stage_retention_s=settings.blocks_retention_s,
        hot_hours=settings.hot_hours,
        flush_s=settings.flush_ms / 1000,
        answers_per_s=options["answers"],
        core_speed=options["core_speed"],
        utilization=options["utilization"],
        night_hours=duration_ms(night) / 1000 / HOUR_S,
        near_replicas=options["near_replicas"],
    )
    if demand.retention_s < 3 * demand.horizon_s:
        raise UsageError("--retention is shorter than three times --horizon", hint="ids are rebuilt from ad-events")
    shape = constants.assumption
    dimensions = tuple((int(shape(name)), shape(f"{name}_skew")) for name in _DIMENSIONS)
    sizing = Sizing(demand, Traffic(demand.campaigns, shape("campaigns_skew"), dimensions), constants)
    prices = load_prices(price_file)
    if app.json:
        app.data(report_of(sizing, prices) | {"prices": str(price_file) if price_file != EXAMPLES else "examples"})
    else:
        _print(app, sizing, prices, "" if price_file != EXAMPLES else ", by example prices")


def _count(option: str, text: str, most: float) -> float:
    count = count_of(text)
    if not 1 <= count <= most:
        raise UsageError(f"{option} is {text}", hint=f"from 1 to {most:,.0f}")
    return count


def _seconds(text: str | None, default: float) -> float:
    return default if text is None else duration_ms(text) / 1000


def report_of(sizing: Sizing, prices: Prices) -> dict[str, Any]:
    """The plan as a JSON document; sizes in GB of 10⁹ bytes."""
    items = cost_items(sizing, prices)
    monthly = sum(item.monthly for item in items)
    largest = max(items, key=lambda item: item.monthly)
    return {
        "events_per_second": sizing.demand.events_per_s,
        "events_per_second_at_peak": sizing.peak_rate,
        "processes": sizing.processes,
        "partitions": sizing.partitions,
        "shards": sizing.shards,
        "cores": _rounded(sizing.cores),
        "memory_gb": _rounded(sizing.memory_gb),
        "disk_gb": _rounded(sizing.disks_gb),
        "network_mb_per_second": _rounded({k: v / 1e6 for k, v in sizing.network_bytes_per_s.items()}),
        "between_zones_mb_per_second": round(sizing.zone_bytes_per_s / 1e6, 3),
        "cost": {
            "currency": prices.currency,
            "monthly": round(monthly, 2),
            "per_million_events": round(monthly / events_of_month(sizing) * 1e6, 6),
            "items": [
                {"kind": i.kind, "item": i.name, "amount": round(i.amount, 3), "unit": i.unit, "monthly": round(i.monthly, 2)}
                for i in items
            ],
            "largest": {"kind": largest.kind, "item": largest.name, "monthly": round(largest.monthly, 2), "lower_it_by": largest.lever},
        },
    }  # fmt: skip


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _print(app: App, sizing: Sizing, prices: Prices, by: str) -> None:
    report = report_of(sizing, prices)
    processes, cores, memory = report["processes"], report["cores"], report["memory_gb"]
    rows = []
    for part in dict.fromkeys([*processes, *cores]):
        gb = sum(size for name, size in memory.items() if name.split(",")[0] == part)
        disk = 0.0 if part == "archive" else sizing.disk_gb(part)
        rows.append(
            (
                part,
                processes.get(part, "by night"),
                _number(cores.get(part)),
                _number(gb or None),
                _number(disk or None),
            )
        )
    app.table(["part", "processes", "cores", "memory, GB", "disk, GB"], rows)
    click.echo()
    app.table(
        ["", ""],
        [
            ("partitions of ad-events, ad-archive", report["partitions"]),
            ("partitions of ad-blocks and what follows (shards)", report["shards"]),
            ("archive in an object store, GB", _number(report["disk_gb"]["archive"])),
            *((f"{name}, MB/s", _number(mb)) for name, mb in report["network_mb_per_second"].items()),
            ("between zones, MB/s", _number(report["between_zones_mb_per_second"])),
        ],
    )
    cost = report["cost"]
    click.echo()
    app.table(
        ["", "item", "amount", "", f"{prices.currency} a month"],
        [_cost_row(item) for item in sorted(cost_items(sizing, prices), key=lambda item: -item.monthly)],
    )
    largest = cost["largest"]
    click.echo(
        f"\n{cost['monthly']:,.0f} {prices.currency} a month{by}; {cost['per_million_events']:.4f} a million events"
    )
    click.echo(f"largest: {largest['kind']} of {largest['item']}; what lowers it: {largest['lower_it_by']}")


def _cost_row(item: CostItem) -> tuple[str, ...]:
    return item.kind, item.name, _number(item.amount), item.unit, f"{item.monthly:,.0f}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or not value else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"
