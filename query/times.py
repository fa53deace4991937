"""Times as clients write them: RFC 3339, now, or back from now. Pure; `now_ms` comes in."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, day_start_ms, iso
from infra.rfc3339 import time_ms_of
from query.bad_question import BadQuestion

MAX_TIME_CHARACTERS = 64
"""Longer than any time that can be parsed."""
_RELATIVE = re.compile(r"-(\d{1,6})([mhd])")
_UNITS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_EARLIEST_MS, _LATEST_MS = day_start_ms(dt.date(1970, 1, 2)), day_start_ms(dt.date(2200, 1, 1))
_LEAP_SECOND = re.compile(r"(.{17})60(.*)", re.DOTALL)


def is_relative(text: str) -> bool:
    """Whether a time is now, or back from now."""
    return text == "now" or _RELATIVE.fullmatch(text) is not None


def parse_time(name: str, values: Mapping[str, str], now_ms: int) -> int:
    """A moment, in epoch ms. Raises BadQuestion."""
    text = values.get(name)
    if text is None:
        raise BadQuestion(name, f"{name} is missing; give an RFC 3339 time, now, or back from now like -24h")
    if text == "now":
        return now_ms
    relative = _RELATIVE.fullmatch(text)
    time_ms = now_ms - int(relative[1]) * _UNITS[relative[2]] if relative else _parse_absolute_time(text)
    if time_ms is None:
        notation = "an RFC 3339 time with an offset, now, or back from now like -24h"
        raise BadQuestion(name, f"{name} must be {notation}, not {text[:40]!r}{_suggest_notation(text)}")
    if not _EARLIEST_MS <= time_ms <= _LATEST_MS:
        raise BadQuestion(name, f"{name} must be between {iso(_EARLIEST_MS)} and {iso(_LATEST_MS)}, not {text[:40]!r}")
    return time_ms


def _parse_absolute_time(text: str) -> int | None:
    """An RFC 3339 time; None for anything else. Its date may be followed by a space, and a leap second is the next one."""
    if text[10:11] == " ":
        text = f"{text[:10]}T{text[11:]}"
    # "+" in a query string arrives as a space.
    text = text.replace(" ", "+")
    if (leap := _LEAP_SECOND.fullmatch(text)) is None:
        return time_ms_of(text)
    time_ms = time_ms_of(f"{leap[1]}59{leap[2]}")
    # They come at the end of a month in UTC.
    if time_ms is None or (time_ms + 1000) // 1000 * 1000 % DAY_MS:
        return None
    return time_ms // 1000 * 1000 + 1000


def _suggest_notation(text: str) -> str:
    """What to write instead of a time in another notation; empty where that cannot be guessed."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        return f"; write {text}T00:00:00Z, or with the offset of your time zone"
    if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?", text, re.ASCII):
        return "; the seconds or the offset are missing (Z is UTC)"
    if re.fullmatch(r"\d{12,13}", text, re.ASCII) and _EARLIEST_MS <= int(text) <= _LATEST_MS:
        return f"; write {iso(int(text))}"
    if re.fullmatch(r"\d{9,10}", text, re.ASCII):
        return f"; write {iso(int(text) * 1000)}"
    return ""
