"""Draws the boards for Grafana with Grafana's own builders: `python -m infra.monitoring.draw_boards`, or `make monitoring`.

The builders are a package for development; what is installed has the JSON alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphTresholdsStyleMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode, VariableRefresh
from grafana_foundation_sdk.models.units import (
    BytesIEC,
    BytesSI,
    CountsPerSecond,
    PercentUnit,
    RequestsPerSecond,
    Seconds,
    Short,
)

from infra.planning.costs import MONTH_HOURS
from infra.planning.model import GB
from infra.planning.prices import load_prices

FOLDER = Path(__file__).parent / "boards"
_DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_OURS = 'job="$job"'
_ROUTES = f'{_OURS}, route!~"/healthz|/readyz|/metrics"'


@dataclass(frozen=True)
class Curve:
    """An expression and the legend of its series, in Grafana's `{{label}}` form."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Chart:
    """A panel. `alarm`: the value from which on a rule alerts, drawn as a line. `is_figure`: one number instead of curves."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    description: str = ""
    alarm: float | None = None
    is_figure: bool = False


Rows = dict[str, tuple[Chart, ...]]
"""Charts by the title of their row."""


def _figure(title: str, unit: str, expression: str, description: str = "", alarm: float | None = None) -> Chart:
    return Chart(title, unit, (Curve(expression, ""),), description, alarm, is_figure=True)


def _gauge(name: str, *labels: str) -> str:
    """A metric of the pipeline, the same from every router."""
    return f"max by ({', '.join(('job', *labels))}) ({name}{{{_OURS}}})"


_PIPELINE: Rows = {
    "Now": (
        _figure("Backends away", Short, f"sum(min by (backend) (adclick_backend_up{{{_OURS}}}) == bool 0)", alarm=1),
        _figure("Watermark age", Seconds, f"job:adclick_watermark_age_seconds:min{{{_OURS}}}", "How long ago answers end.", 600),
        _figure("Stream lag", Seconds, _gauge("adclick_stream_lag_seconds"), alarm=60),
        _figure("Overload level", Short, _gauge("adclick_overload_level"), "0 normal, 1 elevated, 2 sampling, 3 critical.", 1),
        _figure("Workers that wait", Short, f"count(max by (worker) (adclick_worker_waiting{{{_OURS}}})) or vector(0)", alarm=1),
        _figure("Warnings", Short, _gauge("adclick_warnings"), "adclick status lists them.", 1),
    ),
    "Flow": (
        Chart("Messages a second", CountsPerSecond, (
            Curve(f"job:adclick_arrived_messages:rate5m{{{_OURS}}}", "arrived"),
            Curve(f"sum by (job) (job_outcome:adclick_ingest_messages:rate5m{{{_OURS}}})", "judged by ingest"),
            Curve(f"job:adclick_shown_events:rate5m{{{_OURS}}}", "shown"),
            Curve(f"job:adclick_archived_messages:rate5m{{{_OURS}}}", "archived"),
        ), "Shown are first occurrences alone: without copies and dead letters."),
        Chart("Messages by outcome", CountsPerSecond, (
            Curve(f"job_outcome:adclick_ingest_messages:rate5m{{{_OURS}}}", "{{outcome}}"),
        )),
        Chart("Messages judged, by worker", CountsPerSecond, (
            Curve(f"max by (job, worker) (sum by (job, instance, worker) (rate(adclick_ingest_messages_total{{{_OURS}}}[5m])))", "{{worker}}"),
        ), "Workers of very different rates have partitions of very different rates."),
        Chart("Messages to read", Short, (Curve(f"job_topic:adclick_lag_messages:sum{{{_OURS}}}", "{{topic}}"),)),
        Chart("Messages to read, the longest partitions", Short, (
            Curve(f"topk(8, {_gauge('adclick_lag_messages', 'topic', 'partition')})", "{{topic}}/{{partition}}"),
        )),
        Chart("Dead letters, share", PercentUnit, (Curve(f"job:adclick_dead_letters:ratio_rate5m{{{_OURS}}}", "share"),), alarm=0.01),
        Chart("Dead letters, by reason", CountsPerSecond, (
            Curve(f"max by (job, reason) (sum by (job, instance, reason) (rate(adclick_dead_letters_total{{{_OURS}}}[5m])))", "{{reason}}"),
        ), "adclick dead-letters list --reason REASON shows them."),
        Chart("Age of what is shown", Seconds, (
            Curve(f"job:adclick_watermark_age_seconds:min{{{_OURS}}}", "watermark age"),
            Curve(_gauge("adclick_stream_lag_seconds"), "stream lag"),
            Curve(f'max by (job, tier) (adclick_canary_age_seconds{{{_OURS}, path="slowest"}})', "canary: {{tier}}"),
        )),
    ),
    "What holds it up": (
        Chart("Backends", Short, (Curve(f"min by (backend) (adclick_backend_up{{{_OURS}}})", "{{backend}}"),), "1: up."),
        Chart("Workers that wait or stopped", Short, (
            Curve(_gauge("adclick_worker_waiting", "worker", "backend"), "{{worker}} waits for {{backend}}"),
            Curve(_gauge("adclick_worker_stopped", "worker"), "{{worker}} stopped"),
        )),
        Chart("Silent or stalled shards, unread partitions, stopped detector", Short, (
            Curve(_gauge("adclick_silent_shards"), "silent shards"),
            Curve(_gauge("adclick_stalled_positions"), "stalled shards and partitions"),
            Curve(_gauge("adclick_unread_partitions"), "unread partitions"),
            Curve(_gauge("adclick_detector_stopped"), "detector stopped"),
        ), alarm=1),
        Chart("Messages behind open transactions", Short, (
            Curve(_gauge("adclick_open_transaction_messages"), "messages"), Curve(_gauge("adclick_open_transactions"), "transactions"),
        )),
    ),
    "Stores": (
        Chart("Memory of Redis, share of its limit", PercentUnit, (
            Curve(f"{_gauge('adclick_redis_memory_used_bytes', 'server')} / ({_gauge('adclick_redis_memory_limit_bytes', 'server')} > 0)",
                  "{{server}}"),
        ), "Empty where Redis has no limit.", 0.8),
        Chart("Memory of Redis", BytesIEC, (Curve(_gauge("adclick_redis_memory_used_bytes", "server"), "{{server}}"),)),
        Chart("Ids that a Bloom filter took for known", CountsPerSecond, (
            Curve(f"max by (job) (sum by (job, instance) (rate(adclick_dedup_bloom_positives_total{{{_OURS}}}[5m])))", "looked up in Redis"),
            Curve(f"max by (job) (sum by (job, instance) (rate(adclick_dedup_bloom_false_positives_total{{{_OURS}}}[5m])))", "not there"),
        )),
        Chart("Free space of the archive's disk", BytesIEC, (Curve(f"adclick_archive_disk_free_bytes{{{_OURS}}}", "{{instance}}"),)),
    ),
}  # fmt: skip
_QUERIES: Rows = {
    "Service levels": (
        _figure("Requests a second", RequestsPerSecond, f"job:adclick_http_requests:rate5m{{{_OURS}}}"),
        _figure("Server errors, last hour", PercentUnit, f"job:adclick_http_errors:ratio_rate1h{{{_OURS}}}", "At most 0.1 % over a month.", 0.001),
        _figure("Slower than 0.25 s, last hour", PercentUnit, f"job:adclick_http_slow:ratio_rate1h{{{_OURS}}}", "At most 1 % over a month.", 0.01),
        _figure("Routers", Short, f"count(adclick_build_info{{{_OURS}}})"),
        Chart("Error budget, burn rate", Short, tuple(
            Curve(f"job:adclick_http_errors:ratio_rate{window}{{{_OURS}}} / 0.001", window) for window in ("5m", "1h", "6h", "3d")
        ), "1 spends exactly the budget of a month.", 14.4),
        Chart("Latency budget, burn rate", Short, tuple(
            Curve(f"job:adclick_http_slow:ratio_rate{window}{{{_OURS}}} / 0.01", window) for window in ("5m", "1h", "6h", "3d")
        ), "1 spends exactly the budget of a month.", 14.4),
    ),
    "Requests": (
        Chart("Requests a second, by route", RequestsPerSecond, (
            Curve(f"sum by (route) (rate(adclick_http_requests_total{{{_ROUTES}}}[5m]))", "{{route}}"),
        )),
        Chart("Requests a second, by status", RequestsPerSecond, (
            Curve(f"sum by (status) (rate(adclick_http_requests_total{{{_ROUTES}}}[5m]))", "{{status}}"),
        ), "429: a key's rate limit. 503: a store is away."),
        Chart("99th percentile, by route", Seconds, (
            Curve(f"job_route:adclick_http_request_duration_seconds:p99_rate5m{{{_ROUTES}}}", "{{route}}"),
        ), alarm=0.25),
        Chart("Mean, by route", Seconds, (
            Curve(
                f"sum by (route) (rate(adclick_http_request_duration_seconds_sum{{{_ROUTES}}}[5m]))"
                f" / (sum by (route) (rate(adclick_http_request_duration_seconds_count{{{_ROUTES}}}[5m])) > 0)", "{{route}}",
            ),
        )),
    ),
    "Tiers": (
        Chart("Reads a second, by tier and outcome", CountsPerSecond, (
            Curve(f"sum by (tier, outcome) (rate(adclick_tier_reads_total{{{_OURS}}}[5m]))", "{{tier}} {{outcome}}"),
        )),
        Chart("Share of reads from the cache", PercentUnit, (
            Curve(
                f'(sum by (tier) (rate(adclick_tier_reads_total{{{_OURS}, outcome="cached"}}[5m]))'
                f" or 0 * sum by (tier) (rate(adclick_tier_reads_total{{{_OURS}}}[5m])))"
                f" / (sum by (tier) (rate(adclick_tier_reads_total{{{_OURS}}}[5m])) > 0)", "{{tier}}",
            ),
        )),
        Chart("99th percentile of a read, by tier", Seconds, (
            Curve(
                f"histogram_quantile(0.99, sum by (tier, le) (rate(adclick_tier_read_duration_seconds_bucket{{{_OURS}}}[5m])))", "{{tier}}"
            ),
        )),
        Chart("False alarms a campaign and month", Short, (Curve(_gauge("adclick_false_alarms_per_campaign_month", "kind"), "{{kind}}"),)),
    ),
}  # fmt: skip
_RECONCILIATION: Rows = {
    "Bills": (
        _figure("Newest reconciled day began", Seconds, f"time() - {_gauge('adclick_newest_reconciled_day_timestamp_seconds')}",
                "51 hours at most, if runs begin at 03:00 UTC.", 55 * 3600),
        _figure("Last run published", Seconds, f"time() - {_gauge('adclick_last_reconciliation_timestamp_seconds')}"),
        _figure("Days with an alert", Short, _gauge("adclick_reconciliation_alert_days"), alarm=1),
        _figure("Unbilled events", Short, _gauge("adclick_unbilled_events"), "They came after their day was reconciled.", 1),
    ),
    "What a run needs": (
        Chart("Not archived yet", Short, (
            Curve(f"{_gauge('adclick_arrived_messages_total')} - {_gauge('adclick_archived_messages_total')}", "messages"),
        ), "Markers of transactions count, too, so with transactional producers it does not reach 0."),
        Chart("Left to the nightly run, a second", CountsPerSecond, (
            Curve(f'job_outcome:adclick_ingest_messages:rate5m{{{_OURS}, outcome=~"too_late|doubt|shed"}}', "{{outcome}}"),
        )),
        Chart("Free share of the archive's disk", PercentUnit, (
            Curve(f"adclick_archive_disk_free_bytes{{{_OURS}}} / adclick_archive_disk_size_bytes{{{_OURS}}}", "{{instance}}"),
        ), "Empty where the archive is a bucket."),
        Chart("Certificates expire in", Seconds, (
            Curve(f"adclick_certificate_not_after_timestamp_seconds{{{_OURS}}} - time()", "{{setting}} {{instance}}"),
        )),
    ),
}  # fmt: skip


def _of_keys(by: str, outcome: str = "") -> str:
    """Requests a second of keys, added up over routers; 0 where there were none of that outcome."""
    every = f"sum by ({by}) (rate(adclick_key_requests_total{{{_OURS}}}[5m]))"
    if not outcome:
        return every
    return f'(sum by ({by}) (rate(adclick_key_requests_total{{{_OURS}, outcome="{outcome}"}}[5m])) or 0 * {every})'


_ROWS_READ = f"sum by (key) (rate(adclick_key_rows_read_total{{{_OURS}}}[5m]))"
_TENANTS: Rows = {
    "Limits": (
        _figure("Requests a second with a key", RequestsPerSecond, _of_keys("job")),
        _figure("Limited", PercentUnit, f"{_of_keys('job', 'limited')} / ({_of_keys('job')} > 0)", "The share that a key's rate refused.", 0.05),
        _figure("Keys that are limited", Short, f"count({_of_keys('key', 'limited')} > 0) or vector(0)", alarm=1),
        _figure("Share of the busiest key", PercentUnit, f"max({_of_keys('key')}) / (sum({_of_keys('key')}) > 0)"),
    ),
    "Keys": (
        Chart("Requests a second, by key", RequestsPerSecond, (Curve(f"topk(10, {_of_keys('key')})", "{{key}}"),),
              "adclick keys list has the name of each id; other: all but the 20 that are used most. root: the installation's own key."),
        Chart("Limited requests a second, by key", RequestsPerSecond, (Curve(f"topk(10, {_of_keys('key', 'limited')})", "{{key}}"),),
              "Answered with 429. A higher rate is a new key: adclick keys create --rate."),
        Chart("Rows read a second, by key", CountsPerSecond, (Curve(f"topk(10, {_ROWS_READ})", "{{key}}"),),
              "What answers cost: the rate limit counts a thousand rows as one request."),
        Chart("Requests that failed or were refused, by key", RequestsPerSecond, (
            Curve(f"topk(5, {_of_keys('key', 'failed')})", "{{key}} failed"), Curve(f"topk(5, {_of_keys('key', 'refused')})", "{{key}} refused"),
        ), "Refused: a mistake of the client (4xx), but for limits. Failed: 5xx."),
    ),
}  # fmt: skip


def _stored(by: str, more: str = "") -> str:
    """Bytes on disk, the same from every router."""
    return f"max by (job, {by}) (sum by (job, instance, {by}) (adclick_stored_bytes{{{_OURS}{more}}}))"


_KAFKA, _CLICKHOUSE, _ARCHIVE = (f', store="{store}"' for store in ("kafka", "clickhouse", "archive"))
_ON_DISKS = ', store=~"kafka|clickhouse"'
_PRICES = load_prices()
_MONTH_S = MONTH_HOURS * 3600
_DISK_COST = f"{_stored('store', _ON_DISKS)} / {GB:.0f} * {_PRICES.ssd_gb_month}"
_ARCHIVE_COST = f"{_stored('store', _ARCHIVE)} / {GB:.0f} * {_PRICES.object_gb_month}"
_MEMORY_COST = (
    f"sum by (job) ({_gauge('adclick_redis_memory_used_bytes', 'server')}) / {GB:.0f} * {_PRICES.memory_gb_month}"
)
_STORES_COST = f"sum by (job) ({_DISK_COST} or {_ARCHIVE_COST}) + {_MEMORY_COST}"
_EVENTS_A_MONTH = f"job:adclick_arrived_messages:rate5m{{{_OURS}}} * {_MONTH_S}"
_BY_PRICES = "By the example prices of infra/planning/prices.toml. adclick plan costs cores and traffic, too."
_COST: Rows = {
    "Now": (
        _figure(f"Stores, {_PRICES.currency} a month", Short, _STORES_COST, _BY_PRICES),
        _figure("On disk", BytesSI, f"sum({_stored('store')})"),
        _figure("Events a month, at the present rate", Short, _EVENTS_A_MONTH),
        _figure("Archive, bytes a message", BytesSI,
                f"sum by (job) ({_stored('store', _ARCHIVE)}) / ({_gauge('adclick_archived_messages_total')} > 0)"),
    ),
    "What is paid for": (
        Chart("On disk, by store", BytesSI, (Curve(_stored("store"), "{{store}}"),),
              "Topics with all replicas; ClickHouse: the server that answers."),
        Chart(f"Stores, {_PRICES.currency} a month", Short, (
            Curve(_DISK_COST, "{{store}}"), Curve(_ARCHIVE_COST, "archive"), Curve(_MEMORY_COST, "memory of Redis"),
        ), _BY_PRICES),
        Chart("Topics, the largest", BytesSI, (Curve(f"topk(8, {_stored('name', _KAFKA)})", "{{name}}"),)),
        Chart("Tables, the largest", BytesSI, (Curve(f"topk(8, {_stored('name', _CLICKHOUSE)})", "{{name}}"),)),
        Chart("Growth in a day, at the pace of six hours", BytesSI, (
            Curve(f"max by (job, store) (sum by (job, instance, store) (deriv(adclick_stored_bytes{{{_OURS}}}[6h]))) * 86400", "{{store}}"),
        )),
        Chart("Events a day, at the present rate", Short, (
            Curve(f"job:adclick_arrived_messages:rate5m{{{_OURS}}} * 86400", "arrived"),
            Curve(f"job:adclick_shown_events:rate5m{{{_OURS}}} * 86400", "shown"),
        ), "Arrived are messages with copies and dead letters, which cost, too."),
    ),
}  # fmt: skip
BOARDS: dict[str, Rows] = {
    "pipeline": _PIPELINE,
    "queries": _QUERIES,
    "reconciliation": _RECONCILIATION,
    "tenants": _TENANTS,
    "cost": _COST,
}
"""Boards by name: rows with their charts."""


def draw(name: str) -> str:
    """A board as JSON, for Grafana's import."""
    board = (
        Dashboard(f"adclick: {name}")
        .uid(f"adclick-{name}")
        .tags(["adclick"])
        .editable()
        .refresh("30s")
        .time("now-6h", "now")
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            QueryVariable("job")
            .label("Installation")
            .datasource(_DATASOURCE)
            .query("label_values(adclick_build_info, job)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )
    ids = itertools.count(1)
    for title, charts in BOARDS[name].items():
        board = board.with_row(Row(title).id(next(ids)))
        span = 24 // max(1, sum(chart.is_figure for chart in charts))
        for chart in charts:
            panel = _figure_panel(chart, span) if chart.is_figure else _curves_panel(chart)
            board = board.with_panel(panel.id(next(ids)))
    return str(JSONEncoder(sort_keys=True, indent=1).encode(board.build())) + "\n"


def _figure_panel(chart: Chart, span: int) -> stat.Panel:
    panel = stat.Panel().title(chart.title).description(chart.description).unit(chart.unit).datasource(_DATASOURCE)
    return panel.height(4).span(span).thresholds(_thresholds(chart.alarm)).with_target(_targets(chart)[0])


def _curves_panel(chart: Chart) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel().title(chart.title).description(chart.description).unit(chart.unit).datasource(_DATASOURCE)
    )
    panel = panel.height(8).span(12).min(0).legend(legend.show_legend(True)).thresholds(_thresholds(chart.alarm))
    if chart.alarm is not None:
        mode = GraphTresholdsStyleMode.LINE
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(mode))
    for target in _targets(chart):
        panel = panel.with_target(target)
    return panel


def _targets(chart: Chart) -> Sequence[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(curve.expression).legend_format(curve.legend).ref_id(chr(ord("A") + number)).range()
        for number, curve in enumerate(chart.curves)
    ]


def _thresholds(alarm: float | None) -> ThresholdsConfig:
    steps = [Threshold(color="green")]
    if alarm is not None:
        steps.append(Threshold(color="red", value=alarm))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    for each in BOARDS:
        (FOLDER / f"{each}.json").write_text(draw(each))
