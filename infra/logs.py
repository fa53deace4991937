"""Structured logs on standard error: one JSON line an event, or a readable line on a terminal."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import signal
import sys
import time
from typing import Any, TextIO, cast

import structlog

_REPEAT_AFTER_S = 600.0


class Once(logging.Filter):
    """Lets a library say the same thing once in ten minutes: clients repeat themselves while a backend is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line has not been logged in the last ten minutes."""
        key, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._said.get(key, -_REPEAT_AFTER_S) < _REPEAT_AFTER_S:
            return False
        self._said[key] = now
        return True


class _Lossy:
    """A stream of which lines are lost where they cannot be written: a terminal that is gone, a full disk or a closed stream ends no
    process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Raises neither OSError nor ValueError."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        """Raises neither OSError nor ValueError."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure(*, verbose: bool = False, quiet: bool = False) -> None:
    """Set up logging once, at the start of a process. SIGUSR1 makes it log the stack of each thread."""
    faulthandler.register(signal.SIGUSR1, file=2)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    stream = cast(TextIO, _Lossy(sys.stderr))
    before: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *before,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library: as lines of the same form.
    handler = logging.StreamHandler(stream)
    handler.addFilter(Once())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def get(name: str) -> Any:
    """A logger whose lines carry `part=name`."""
    return structlog.get_logger().bind(part=name)
