"""`docs/metrics.md`, made of the table of metrics: `python -m query.api.metrics_page > docs/metrics.md`, or `make monitoring`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from query.api.metric_table import LABELS, PIPELINE, PROCESS, MetricRow

_PAGE = """# Metrics

For operators who scrape `/metrics` with Prometheus. How to do that is in [Operating](operating.md#metrics), what to do about an
alert in [Runbooks](runbooks.md). This page is made from the code by `make monitoring`; a test compares them.

## Of a router

Each router counts its own, from 0 at its start. Add counters up over `instance`.

{process}

## Of the pipeline

Each router reads them from Kafka, Redis and ClickHouse at each scrape, so they are the same from every router: take the
maximum over `instance`, not the sum. A metric of a backend that is away is missing; `adclick_backend_up` is always there.

{pipeline}

## Labels

No label has a campaign, an advertiser or a path with an id in it. Ids of keys are shown only to a scrape with an admin key
for all advertisers. How many values each label has is bounded by the installation, not by its traffic.

{labels}
"""


def render_page() -> str:
    """The page as it must be."""
    labels = (f"`{name}`" for name in LABELS)
    rows = ((label, *values) for label, values in zip(labels, LABELS.values(), strict=True))
    return _PAGE.format(
        process=_metrics_table(PROCESS),
        pipeline=_metrics_table(PIPELINE),
        labels=_table(("label", "values", "how many"), rows),
    )


def _metrics_table(metrics: Iterable[MetricRow]) -> str:
    rows = ((f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.text) for m in metrics)
    return _table(("metric", "type", "labels", "what it is"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("|  |", "| |")


if __name__ == "__main__":
    sys.stdout.write(render_page())
