"""Numbers and durations as people write them on the command line."""

from __future__ import annotations

import re

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.errors import UsageError

_UNITS = {"s": 1_000, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_SUFFIXES = {"": 1, "k": 1_000, "M": 1_000_000}


def duration_ms(text: str) -> int:
    """`90s`, `30m`, `26h`, `2d` in milliseconds. Raises UsageError."""
    parts = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if parts is None or int(parts[1]) == 0:
        raise UsageError(f"not a duration: {text}", hint="like 90s, 30m, 26h or 2d")
    return int(parts[1]) * _UNITS[parts[2]]


def count_of(text: str) -> float:
    """`800`, `100k`, `2.3M` as a number above 0. Raises UsageError."""
    parts = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([kM]?)", text)
    if parts is None or float(parts[1]) == 0:
        raise UsageError(f"not a number above 0: {text}", hint="like 800, 100k or 2.3M")
    return float(parts[1]) * _SUFFIXES[parts[2]]
