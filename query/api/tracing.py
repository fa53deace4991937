"""Traces, through OpenTelemetry: a span for each request, and in it one for each part of an answer.

A trace goes on from the request's `traceparent` (W3C Trace Context). Spans are sent to a collector, as OTLP over HTTP, where one
is named; else none are made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from infra import direct

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NANOSECONDS = 1_000_000_000
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """Of one query process."""

    def __init__(self, collector: str) -> None:
        """`collector`: where spans go, such as http://127.0.0.1:4318/v1/traces; empty: nowhere."""
        self._provider = _sending(collector) if collector else None
        self._tracer = self._provider.get_tracer("adclick") if self._provider else trace.NoOpTracer()

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
        """The span of a request; what is asked within belongs to it."""
        told = {"http.request.method": method, "url.path": path}
        context = _PROPAGATOR.extract(headers)
        with self._tracer.start_as_current_span(method, context, trace.SpanKind.SERVER, told) as span:
            yield span

    def tier_read(self, tier: str, outcome: str, seconds: float) -> None:
        """A part of an answer, which has just been read."""
        ended = time.time_ns()
        told = {"adclick.tier": tier, "adclick.outcome": outcome}
        span = self._tracer.start_span(
            f"read {tier}", kind=trace.SpanKind.CLIENT, attributes=told, start_time=ended - int(seconds * _NANOSECONDS)
        )
        span.end(ended)


def finish(span: trace.Span, method: str, route: str, status: int) -> None:
    """What is known of a request once it has been answered."""
    if span.is_recording():
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)


def trace_id(span: trace.Span) -> str | None:
    """As logs name it; None where there is no trace."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _sending(collector: str) -> TracerProvider:
    # Slow to import, and needed by few.
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "adclick-query"}))
    session = requests.Session()
    # The environment's proxy is for what lies outside.
    session.trust_env = not direct.is_loopback(collector)
    exporter = OTLPSpanExporter(endpoint=collector, timeout=5, session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
