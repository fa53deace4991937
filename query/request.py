"""A question to the router: parsed, checked, and aligned to its grain. Pure; `now_ms` comes in."""

from __future__ import annotations

import datetime as dt
import difflib
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, day_start_ms, iso
from ingest.events import COUNTRIES, DEVICES, MAX_INT, time_ms_of
from query import cursor as cursors
from query.bad_question import BadQuestion as BadQuestion
from query.buckets import Buckets, align, refuse_unless_stored
from query.buckets import Held as Held
from query.signing import Signer
from query.zones import UnknownZone, zone_named

DIMENSIONS = ("campaign_id", "ad_id", "publisher_id", "country", "device")
MEASURES = ("impressions", "clicks", "conversions", "spend_micros", "late_events")
RATIOS = ("ctr", "cvr", "cpc_micros", "cpm_micros")
MAX_LIMIT = 10_000
MAX_CAMPAIGNS = 1_000
FOREIGN_CURSOR = "this cursor does not belong to this question; start without one"
PARAMETERS = (
    "campaign_id", "advertiser_id", "start", "end", "granularity", "group_by", "filter", "timezone", "fill", "order", "limit", "cursor",
)  # fmt: skip
_RELATIVE = re.compile(r"-(\d{1,6})([mhd])")
_UNITS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_EARLIEST_MS, _LATEST_MS = day_start_ms(dt.date(1970, 1, 2)), day_start_ms(dt.date(2200, 1, 1))
_LEAP_SECOND = re.compile(r"(.{17})60(.*)", re.DOTALL)
# Longer than any time that is understood.
TEXT_CHARACTERS = 64


@dataclass(frozen=True)
class Question(Buckets):
    """What is asked, aligned outwards."""

    campaigns: tuple[int, ...]
    advertiser: int | None
    group_by: tuple[str, ...]
    filters: tuple[tuple[str, tuple[str | int, ...]], ...]
    fill: bool
    order: str | None
    descending: bool
    limit: int
    cursor: str | None
    scope: frozenset[int] | None
    """The advertisers whose rows may be seen; None: all."""
    texts: tuple[str, ...]
    """start, end and granularity as the client wrote them, for the cursor of the next page."""


def parse(
    given: Sequence[tuple[str, str]],
    now_ms: int,
    held: Held,
    scope: frozenset[int] | None = None,
    signer: Signer | None = None,
) -> Question:
    """A question from its parameters (name, value), repeated ones allowed for `filter`. Raises BadQuestion.

    `scope`: the advertisers whose rows may be seen; None: all. With `signer`, a cursor's range is taken from the cursor.
    """
    one, filters = parameters_of(given, PARAMETERS, repeated="filter")
    campaigns, advertiser = _subject(one)
    refuse_foreign(advertiser, scope)
    zone = _zone(one.get("timezone", "UTC"))
    texts = tuple(one.get(name, "")[:TEXT_CHARACTERS] for name in ("start", "end", "granularity"))
    buckets = _resumed(one, texts, zone, now_ms, held, signer) or _asked_buckets(one, zone, now_ms, held)
    column, descending = order_of(one.get("order", ""))
    group_by = _group_by(one.get("group_by", ""))
    if column is not None and column not in ("time", *group_by, *MEASURES, *RATIOS):
        raise BadQuestion(
            "order", f"cannot order by {column[:40]!r}: time, a group_by dimension or a measure is needed"
        )
    fill = one.get("fill", "none")
    if fill not in ("none", "zero"):
        raise BadQuestion("fill", "fill is zero or none")
    return Question(
        **vars(buckets), campaigns=campaigns, advertiser=advertiser, group_by=group_by, filters=_filters(filters),
        fill=fill == "zero", order=column, descending=descending, limit=limit_of(one), cursor=one.get("cursor"),
        scope=scope, texts=texts,
    )  # fmt: skip


def _asked_buckets(one: Mapping[str, str], zone: zoneinfo.ZoneInfo, now_ms: int, held: Held) -> Buckets:
    start_ms, end_ms = time_of("start", one, now_ms), time_of("end", one, now_ms)
    if start_ms >= end_ms:
        raise BadQuestion("end", f"end ({iso(end_ms)}) must be after start ({iso(start_ms)})")
    return align(one.get("granularity", "auto"), start_ms, end_ms, zone, now_ms, held)


def _resumed(
    one: Mapping[str, str],
    texts: tuple[str, ...],
    zone: zoneinfo.ZoneInfo,
    now_ms: int,
    held: Held,
    signer: Signer | None,
) -> Buckets | None:
    """The range that the first page settled on; None without a cursor. `-2h` and `now` have moved on since."""
    if signer is None or "cursor" not in one:
        return None
    resumed = cursors.read(one["cursor"], signer)
    if resumed is None:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    buckets = Buckets(resumed.grain, resumed.unit, resumed.start_ms, resumed.end_ms, zone)
    refuse_unless_stored(buckets, now_ms, held)
    # Other words for the same range are as good.
    if texts != resumed.texts and buckets != _asked_buckets(one, zone, now_ms, held):
        raise BadQuestion("cursor", f"{FOREIGN_CURSOR}; it has start, end and granularity {', '.join(resumed.texts)}")
    return buckets


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
    return tuple(sorted(set(found)))


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
    time_ms = now_ms - int(relative[1]) * _UNITS[relative[2]] if relative else _absolute(text)
    if time_ms is None:
        wanted = "an RFC 3339 time with an offset, now, or like -24h"
        raise BadQuestion(name, f"{name} must be {wanted}, not {text[:40]!r}{_correction(text)}")
    if not _EARLIEST_MS <= time_ms <= _LATEST_MS:
        raise BadQuestion(name, f"{name} must be between {iso(_EARLIEST_MS)} and {iso(_LATEST_MS)}, not {text[:40]!r}")
    return time_ms


def _absolute(text: str) -> int | None:
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


def _correction(text: str) -> str:
    """How a time in another notation is written here."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        return f": write {text}T00:00:00Z, or with the offset of your time zone"
    if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?", text, re.ASCII):
        return ": the seconds or the offset are missing; Z is UTC"
    if re.fullmatch(r"\d{12,13}", text, re.ASCII) and _EARLIEST_MS <= int(text) <= _LATEST_MS:
        return f": write {iso(int(text))}"
    if re.fullmatch(r"\d{9,10}", text, re.ASCII):
        return f": write {iso(int(text) * 1000)}"
    return ""


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zone_named(name)
    except UnknownZone as error:
        use = f"did you mean {error.suggestion}?" if error.suggestion else "use an IANA name such as Europe/Berlin"
        raise BadQuestion("timezone", f"no such time zone: {name[:40]!r}; {use}") from None


def order_of(text: str) -> tuple[str | None, bool]:
    """The column to order by, and whether descending."""
    return text.removeprefix("-") or (text or None), text.startswith("-")


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
            found[name] = tuple(sorted(set(parts)))
        else:
            found[name] = tuple(sorted({number_of("filter", v) for v in parts}))
    return tuple(sorted(found.items()))


def limit_of(one: Mapping[str, str]) -> int:
    """Rows at most. Raises BadQuestion."""
    text = one.get("limit", str(MAX_LIMIT))
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= MAX_LIMIT:
        raise BadQuestion("limit", f"limit is a number from 1 to {MAX_LIMIT}")
    return int(text)
