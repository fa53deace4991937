"""Traces, through OpenTelemetry: a span for each request, and within it one for each piece that is read.

A trace goes on from the request's `traceparent` (W3C Trace Context). Spans are sent to a collector, as OTLP over HTTP, if one
is configured; else there are none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from infra import http_client
from query.plan import HOT

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NANOSECONDS = 1_000_000_000
_CACHED = ("cached", "stale")
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """The traces of one query process."""

    def __init__(self, collector: str) -> None:
        """`collector`: where spans go, such as http://127.0.0.1:4318/v1/traces; empty: nowhere."""
        self._provider = _provider_of(collector) if collector else None
        self._tracer = self._provider.get_tracer("adclick") if self._provider else trace.NoOpTracer()

    def close(self) -> None:
        """Send the spans that are not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
        """The span of a request; pieces that are read within it belong to it."""
        attributes = {"http.request.method": method, "url.path": path}
        context = _PROPAGATOR.extract(headers)
        with self._tracer.start_as_current_span(method, context, trace.SpanKind.SERVER, attributes) as span:
            yield span

    def tier_read(self, tier: str, outcome: str, seconds: float) -> None:
        """Add the span of a piece that was read just now: of a call to the tier's store, unless it came from the cache."""
        ended, store = time.time_ns(), "redis" if tier == HOT else "clickhouse"
        is_cached = outcome in _CACHED
        attributes = {"adclick.tier": tier, "adclick.outcome": outcome} | (
            {} if is_cached else {"db.system.name": store}
        )
        span = self._tracer.start_span(
            f"read {tier}",
            kind=trace.SpanKind.INTERNAL if is_cached else trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=ended - int(seconds * _NANOSECONDS),
        )
        if outcome == "failed":
            span.set_status(trace.StatusCode.ERROR)
        span.end(ended)


def finish(span: trace.Span, method: str, route: str, status: int) -> None:
    """Complete the span of a request that has been answered."""
    if span.is_recording():
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)


def trace_id(span: trace.Span) -> str | None:
    """The trace's id in hexadecimal, for logs; None where there is no trace."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _provider_of(collector: str) -> TracerProvider:
    # Imported here: slow, and few installations trace.
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "adclick-query"}))
    session = requests.Session()
    # A proxy of the environment is for hosts outside.
    session.trust_env = not http_client.is_loopback(collector)
    exporter = OTLPSpanExporter(endpoint=collector, timeout=5, session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
