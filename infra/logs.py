"""Structured logs on standard error: one JSON line an event, or a readable line on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(*, verbose: bool = False, quiet: bool = False) -> None:
    """Set up logging once, at the start of a process."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")


def get(name: str) -> Any:
    """A logger whose lines carry `part=name`."""
    return structlog.get_logger().bind(part=name)
