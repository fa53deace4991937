"""A question to the router: parsed, checked, and aligned to its grain. Pure; `now_ms` comes in."""

from __future__ import annotations

import datetime as dt
import difflib
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columns import Ints
from ingest.events import COUNTRIES, DEVICES, MAX_INT, time_ms_of

DIMENSIONS = ("campaign_id", "ad_id", "publisher_id", "country", "device")
GRAINS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
MEASURES = ("impressions", "clicks", "conversions", "spend_micros", "late_events")
RATIOS = ("ctr", "cvr", "cpc_micros", "cpm_micros")
UTC = ("UTC", "Etc/UTC")
MAX_LIMIT = 10_000
MAX_CAMPAIGNS = 1_000
AUTO_BUCKETS = 1_500
PARAMETERS = (
    "campaign_id", "advertiser_id", "start", "end", "granularity", "group_by", "filter", "timezone", "fill", "order", "limit", "cursor",
)  # fmt: skip
_RELATIVE = re.compile(r"-(\d{1,6})([mhd])")
_UNITS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_EARLIEST, _LATEST = dt.datetime(1970, 1, 2, tzinfo=dt.UTC), dt.datetime(2200, 1, 1, tzinfo=dt.UTC)


class BadQuestion(Exception):
    """The question cannot be answered as put. `status` is 400, or 422 when the grain is no longer held."""

    def __init__(self, parameter: str, detail: str, status: int = 400, kind: str = "bad-parameter") -> None:
        super().__init__(detail)
        self.parameter, self.detail, self.status, self.kind = parameter, detail, status, kind


@dataclass(frozen=True)
class Held:
    """How long each grain is held."""

    minutes_ms: int
    hours_ms: int
    days_ms: int = 731 * DAY_MS

    def oldest(self, grain: str, now_ms: int) -> int:
        """The oldest time that a grain reaches back to, rounded down so that `-24h` is still in."""
        kept = {"minute": self.minutes_ms, "hour": self.hours_ms, "day": self.days_ms}[grain]
        return (now_ms - kept) // GRAINS[grain] * GRAINS[grain]


@dataclass(frozen=True)
class Question:
    """What is asked, aligned outwards: [start_ms, end_ms)."""

    campaigns: tuple[int, ...]
    advertiser: int | None
    start_ms: int
    end_ms: int
    grain: str
    group_by: tuple[str, ...]
    filters: tuple[tuple[str, tuple[str | int, ...]], ...]
    zone: zoneinfo.ZoneInfo
    fill: bool
    order: str | None
    descending: bool
    limit: int
    cursor: str | None
    scope: frozenset[int] | None
    """The advertisers whose rows may be seen; None: all."""
    only_minutes: bool
    """Whether hours and days do not fit its buckets."""

    def bucket(self, time_ms: int) -> int:
        """The start of the bucket that holds a time."""
        if self.grain == "total":
            return self.start_ms
        if self.grain == "day" and not self.utc_days:
            return _midnight(time_ms, self.zone, 0)
        size = GRAINS[self.grain]
        return (
            time_ms - (time_ms + _beyond_hours(time_ms, self.zone)) % size
            if self.only_minutes
            else time_ms // size * size
        )

    def bucket_end(self, bucket_ms: int) -> int:
        """The end of a bucket."""
        if self.grain == "total":
            return self.end_ms
        if self.grain == "day" and not self.utc_days:
            return _midnight(bucket_ms, self.zone, 1)
        return bucket_ms + GRAINS[self.grain]

    def bucket_ends(self, buckets: Ints) -> Ints:
        """The ends of several."""
        if self.grain in GRAINS and (self.grain != "day" or self.utc_days):
            return buckets + GRAINS[self.grain]
        return np.array([self.bucket_end(bucket) for bucket in buckets.tolist()], np.int64)

    def buckets(self) -> list[int]:
        """The starts of all buckets of the range."""
        found, at = [], self.start_ms
        while at < self.end_ms:
            found.append(at)
            at = self.bucket_end(at)
        return found

    @property
    def utc_days(self) -> bool:
        """Whether a day of this question is a day of UTC."""
        return self.zone.key in UTC

    def label(self, bucket_ms: int) -> str:
        """How a bucket is shown: RFC 3339, with the zone's offset."""
        if self.utc_days:
            return iso(bucket_ms)
        return dt.datetime.fromtimestamp(bucket_ms // 1000, self.zone).isoformat()


def _midnight(time_ms: int, zone: zoneinfo.ZoneInfo, days: int) -> int:
    """The local midnight at or before a time, `days` later: days have 23, 24 or 25 hours."""
    local = dt.datetime.fromtimestamp(time_ms // 1000, zone).date() + dt.timedelta(days=days)
    return int(dt.datetime(local.year, local.month, local.day, tzinfo=zone).timestamp()) * 1000


def _beyond_hours(time_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """By how much a zone is more than whole hours from UTC, in ms."""
    if zone.key in UTC:
        return 0
    offset = dt.datetime.fromtimestamp(time_ms // 1000, zone).utcoffset() or dt.timedelta()
    return int(offset.total_seconds() * 1000) % HOUR_MS


def parse(given: Sequence[tuple[str, str]], now_ms: int, held: Held, scope: frozenset[int] | None = None) -> Question:
    """A question from its parameters (name, value), repeated ones allowed for `filter`. Raises BadQuestion.

    `scope`: the advertisers whose rows may be seen; None: all.
    """
    one, filters = parameters_of(given, PARAMETERS, repeated="filter")
    campaigns, advertiser = _subject(one)
    start, end = time_of("start", one, now_ms), time_of("end", one, now_ms)
    if start >= end:
        raise BadQuestion("end", f"end ({iso(end)}) must be after start ({iso(start)})")
    refuse_foreign(advertiser, scope)
    zone = _zone(one.get("timezone", "UTC"))
    grain, start, end = _align(one.get("granularity", "auto"), start, end, zone, now_ms, held)
    only_minutes = grain == "minute" or (grain in ("hour", "day") and _in_minutes(zone, start, end))
    order = one.get("order")
    group_by = _group_by(one.get("group_by", ""))
    column = order.lstrip("-") if order else None
    if column is not None and column not in ("time", *group_by, *MEASURES, *RATIOS):
        raise BadQuestion("order", f"cannot order by {column}: time, a group_by dimension or a measure is needed")
    fill = one.get("fill", "none")
    if fill not in ("none", "zero"):
        raise BadQuestion("fill", "fill is zero or none")
    return Question(
        campaigns, advertiser, start, end, grain, group_by, _filters(filters), zone, fill == "zero", column,
        bool(order and order.startswith("-")), limit_of(one), one.get("cursor"), scope, only_minutes,
    )  # fmt: skip


def parameters_of(
    given: Sequence[tuple[str, str]], known: Sequence[str], *, repeated: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Parameters by name, each once, and the values of the one that may be repeated. Raises BadQuestion."""
    one, many = dict[str, str](), list[str]()
    for name, value in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise BadQuestion(name, f"no such parameter: {name}" + (f"; did you mean {near[0]}?" if near else ""))
        if name == repeated:
            many.append(value)
        elif name in one:
            raise BadQuestion(name, f"{name} is given twice")
        else:
            one[name] = value
    return one, many


def refuse_foreign(advertiser: int | None, scope: frozenset[int] | None) -> None:
    """Raises BadQuestion (403) for an advertiser that the key may not see."""
    if advertiser is not None and scope is not None and advertiser not in scope:
        raise BadQuestion("advertiser_id", f"this key may not see advertiser {advertiser}", 403, "forbidden")


def _subject(one: Mapping[str, str]) -> tuple[tuple[int, ...], int | None]:
    if ("campaign_id" in one) == ("advertiser_id" in one):
        raise BadQuestion("campaign_id", "give either campaign_id (several, by comma) or advertiser_id")
    if "advertiser_id" in one:
        return (), number_of("advertiser_id", one["advertiser_id"])
    return campaigns_of(one["campaign_id"]), None


def campaigns_of(text: str) -> tuple[int, ...]:
    """Numbers of campaigns by comma. Raises BadQuestion."""
    found = [number_of("campaign_id", part) for part in text.split(",")]
    if len(found) > MAX_CAMPAIGNS:
        raise BadQuestion("campaign_id", f"at most {MAX_CAMPAIGNS} campaigns in one question")
    return tuple(dict.fromkeys(found))


def number_of(name: str, text: str) -> int:
    """An id. Raises BadQuestion."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or int(text) > MAX_INT:
        raise BadQuestion(name, f"{name} must be an integer from 0 to 2^63 - 1, not {text[:40]!r}")
    return int(text)


def time_of(name: str, one: Mapping[str, str], now_ms: int) -> int:
    """A moment, in epoch ms. Raises BadQuestion."""
    text = one.get(name)
    if text is None:
        raise BadQuestion(name, f"{name} is missing: an RFC 3339 time, now, or -24h")
    if text == "now":
        return now_ms
    relative = _RELATIVE.fullmatch(text)
    # "+" in a query string arrives as a space.
    time_ms = now_ms - int(relative[1]) * _UNITS[relative[2]] if relative else time_ms_of(text.replace(" ", "+"))
    if time_ms is None or not _EARLIEST.timestamp() * 1000 <= time_ms <= _LATEST.timestamp() * 1000:
        raise BadQuestion(name, f"{name} must be an RFC 3339 time with an offset, now, or like -24h, not {text[:40]!r}")
    return time_ms


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise BadQuestion(
            "timezone", f"no such time zone: {name[:40]!r}; use an IANA name such as Europe/Berlin"
        ) from None


def _in_minutes(zone: zoneinfo.ZoneInfo, start: int, end: int) -> bool:
    """Whether hours of a zone are not hours of UTC."""
    return any(_beyond_hours(moment, zone) for moment in (start, end))


def _align(asked: str, start: int, end: int, zone: zoneinfo.ZoneInfo, now_ms: int, held: Held) -> tuple[str, int, int]:
    """The grain and the range aligned outwards to it. Raises BadQuestion (422) when it is no longer held."""
    if asked not in (*GRAINS, "total", "auto"):
        raise BadQuestion("granularity", f"granularity is minute, hour, day, total or auto, not {asked[:40]!r}")
    utc = zone.key in UTC
    fine = _in_minutes(zone, start, end)

    def outwards(grain: str) -> tuple[int, int]:
        if grain == "day" and not utc and asked != "total":
            low, high = _midnight(start, zone, 0), _midnight(end, zone, 0)
            return low, high if high == end else _midnight(end, zone, 1)
        size = GRAINS[grain]
        shift = _beyond_hours(start, zone) if grain == "hour" and asked != "total" else 0
        return (start + shift) // size * size - shift, -(-(end + shift) // size) * size - shift

    def reaches(grain: str) -> bool:
        needed = "minute" if fine and asked != "total" else "hour" if grain == "day" and not utc else grain
        return outwards(grain)[0] >= held.oldest(needed, now_ms)

    fitting = [grain for grain in GRAINS if reaches(grain)]
    if asked == "total":
        grain = fitting[0] if fitting else "none"
    elif asked == "auto":
        few = [g for g in fitting if (outwards(g)[1] - outwards(g)[0]) // GRAINS[g] <= AUTO_BUCKETS]
        grain = (few or fitting or ["none"])[0]
    else:
        grain = asked
    if grain not in fitting:
        if fine and asked != "total":
            raise BadQuestion(
                "timezone",
                f"{zone.key} is not a whole number of hours from UTC: it is served from minutes alone, and these are no longer held from {iso(start)} on",
                422,
                "grain-not-held",
            )
        would = " or ".join(fitting) if fitting else "nothing: it is older than two years"
        shown = f"{asked} numbers" if asked in GRAINS else "numbers"
        raise BadQuestion(
            "granularity",
            f"{shown} from {iso(start)} on are no longer held; what would do: {would}",
            422,
            "grain-not-held",
        )
    low, high = outwards(grain)
    if (high - low) // GRAINS[grain] > 20 * MAX_LIMIT:
        raise BadQuestion("end", f"the range has more than {20 * MAX_LIMIT} {grain}s")
    return ("total" if asked == "total" else grain), low, high


def _group_by(text: str) -> tuple[str, ...]:
    found = [part for part in text.split(",") if part]
    for name in found:
        if name not in DIMENSIONS:
            raise BadQuestion("group_by", f"cannot group by {name[:40]!r}; possible: {', '.join(DIMENSIONS)}")
    if len(found) > len(DIMENSIONS):
        raise BadQuestion("group_by", f"there are {len(DIMENSIONS)} dimensions to group by")
    return tuple(dict.fromkeys(found))


def _filters(texts: Sequence[str]) -> tuple[tuple[str, tuple[str | int, ...]], ...]:
    found: dict[str, tuple[str | int, ...]] = {}
    for text in texts:
        name, colon, values = text.partition(":")
        if not colon or name not in DIMENSIONS or not values:
            raise BadQuestion(
                "filter",
                f"filter is dimension:value,value with one of {', '.join(DIMENSIONS)}, not {text[:60]!r}",
            )
        if name in found:
            raise BadQuestion("filter", f"filter names {name} twice; list its values by comma")
        parts = values.split(",")
        known = {"country": COUNTRIES, "device": DEVICES}.get(name)
        if known is not None:
            wrong = [v for v in parts if v not in known]
            if wrong:
                raise BadQuestion("filter", f"no such {name}: {wrong[0][:40]!r}")
            found[name] = tuple(parts)
        else:
            found[name] = tuple(number_of("filter", v) for v in parts)
    return tuple(found.items())


def limit_of(one: Mapping[str, str]) -> int:
    """Rows at most. Raises BadQuestion."""
    text = one.get("limit", str(MAX_LIMIT))
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= MAX_LIMIT:
        raise BadQuestion("limit", f"limit is a number from 1 to {MAX_LIMIT}")
    return int(text)
