"""A question to the router: parsed, checked, and aligned to its grain. Pure; `now_ms` comes in."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.clock import iso
from ingest.events import COUNTRIES, DEVICES
from ingest.partials import BILLED
from ingest.partials import MEASURES as MEASURES
from query import cursor
from query.bad_question import BadQuestion as BadQuestion
from query.buckets import GRAINS, Buckets, align_range, refuse_unless_stored
from query.buckets import Retention as Retention
from query.comparison import RangeComparison, resolve_comparison
from query.counted_users import refuse_unless_counted
from query.cursor import FOREIGN_CURSOR, UNKNOWN_CURSOR
from query.parameters import collect_parameters, parse_campaigns, parse_id, parse_limit
from query.row_scope import ALL_ROWS, RowScope
from query.signing import Signer
from query.times import MAX_TIME_CHARACTERS, is_relative, parse_time
from query.zones import UnknownZone, zone_named

DIMENSIONS = ("campaign_id", "ad_id", "publisher_id", "country", "device")
RATIOS = ("ctr", "cvr", "cpc_micros", "cpm_micros")
USERS = ("users", "frequency")
"""The columns that `users` adds."""
PREVIOUS = tuple(f"previous_{name}" for name in (*MEASURES, *RATIOS))
CHANGES = tuple(f"change_{name}" for name in (*BILLED, *RATIOS))
"""With PREVIOUS, the columns that a comparison adds."""
PARAMETERS = (
    "campaign_id", "advertiser_id", "start", "end", "granularity", "group_by", "filter", "timezone", "fill", "order", "limit", "cursor", "names",
    "totals", "compare", "top", "by", "users",
)  # fmt: skip
ALL_ADVERTISERS = "*"
_NAMED_VALUES = {"country": COUNTRIES, "device": DEVICES}


@dataclass(frozen=True)
class Question(Buckets):
    """What a client asks. Its range is aligned outwards, to the buckets that it is divided into."""

    campaigns: tuple[int, ...]
    advertiser: int | None
    """None, and no campaigns: all advertisers."""
    group_by: tuple[str, ...]
    filters: tuple[tuple[str, tuple[str | int, ...]], ...]
    fill: bool
    order: str | None
    descending: bool
    limit: int
    cursor: str | None
    scope: RowScope
    """The rows that may be seen."""
    names: bool
    """Whether each id that rows are grouped by has its name beside it."""
    texts: tuple[str, ...]
    """start, end and granularity as the client wrote them, for the cursor of the next page."""
    totals: bool = False
    compare: RangeComparison | None = None
    top: int = 0
    """How many groups have rows, those with the largest totals of `by`; 0: all."""
    by: str = ""
    users: bool = False
    """Whether each row has how many different users there were."""


def parse_question(
    parameters: Sequence[tuple[str, str]],
    now_ms: int,
    retention: Retention,
    scope: RowScope = ALL_ROWS,
    signer: Signer | None = None,
    *,
    admin: bool = False,
) -> Question:
    """A question from its parameters (name, value); `filter` may be repeated. Raises BadQuestion.

    `scope`: the rows that may be seen; `admin`: whether all advertisers may be asked for. With `signer`, a cursor's range is taken from the cursor.
    """
    values, filters = collect_parameters(parameters, PARAMETERS, repeated="filter")
    campaigns, advertiser = _parse_subject(values, admin)
    scope.refuse_foreign(advertiser, campaigns)
    zone = _parse_zone(values.get("timezone", "UTC"))
    texts = tuple(values.get(name, "")[:MAX_TIME_CHARACTERS] for name in ("start", "end", "granularity"))
    resumed = _resume_buckets(values, texts, zone, now_ms, retention, signer)
    buckets, compare = resumed or _parse_ranges(values, zone, now_ms, retention)
    column, descending = _parse_order(values.get("order", ""))
    group_by = _parse_group_by(values.get("group_by", ""))
    users = _parse_flag(values, "users")
    _check_order(column, group_by, compare, users=users)
    fill = values.get("fill", "none")
    if fill not in ("none", "zero"):
        raise BadQuestion("fill", f"fill must be none or zero, not {fill[:40]!r}")
    allowed_values = _parse_filters(filters)
    scope.refuse_foreign(None, map(int, dict(allowed_values).get("campaign_id", ())))
    top, by = _parse_top(values, group_by)
    if users:
        refuse_unless_counted(buckets, group_by, [name for name, _ in allowed_values], compares=compare is not None)
    return Question(
        **vars(buckets), campaigns=campaigns, advertiser=advertiser, group_by=group_by, filters=allowed_values,
        fill=fill == "zero", order=column, descending=descending, limit=parse_limit(values), cursor=values.get("cursor"),
        scope=scope, names=_parse_flag(values, "names"), texts=texts, totals=_parse_flag(values, "totals"), compare=compare, top=top, by=by,
        users=users,
    )  # fmt: skip


def _parse_buckets(values: Mapping[str, str], zone: zoneinfo.ZoneInfo, now_ms: int, retention: Retention) -> Buckets:
    start_ms, end_ms = parse_time("start", values, now_ms), parse_time("end", values, now_ms)
    if start_ms >= end_ms:
        raise BadQuestion("end", f"end ({iso(end_ms)}) must be after start ({iso(start_ms)})")
    buckets = align_range(values.get("granularity", "auto"), start_ms, end_ms, zone, now_ms, retention)
    if buckets.grain == "minute" and values.get("granularity") != "minute" and _parse_flag(values, "users"):
        return align_range("hour", start_ms, end_ms, zone, now_ms, retention)
    return buckets


def _parse_ranges(
    values: Mapping[str, str], zone: zoneinfo.ZoneInfo, now_ms: int, retention: Retention
) -> tuple[Buckets, RangeComparison | None]:
    """The buckets, and the earlier range that they are compared with; with granularity=auto, of the finest grain that is retained in
    both."""
    buckets = _parse_buckets(values, zone, now_ms, retention)
    if "compare" not in values:
        return buckets, None
    kind, from_midnight = values["compare"], not is_relative(values["start"])
    if values.get("granularity", "auto") == "auto":
        for grain in list(GRAINS)[list(GRAINS).index(buckets.grain) : -1]:
            try:
                finer = _parse_buckets({**values, "granularity": grain}, zone, now_ms, retention)
                return finer, resolve_comparison(kind, finer, now_ms, retention, from_midnight=from_midnight)
            except BadQuestion as error:
                if error.status != 422:
                    raise
        buckets = _parse_buckets({**values, "granularity": "day"}, zone, now_ms, retention)
    return buckets, resolve_comparison(kind, buckets, now_ms, retention, from_midnight=from_midnight)


def _parse_flag(values: Mapping[str, str], name: str) -> bool:
    text = values.get(name, "false")
    if text not in ("true", "false"):
        raise BadQuestion(name, f"{name} must be true or false, not {text[:40]!r}")
    return text == "true"


def _resume_buckets(
    values: Mapping[str, str],
    texts: tuple[str, ...],
    zone: zoneinfo.ZoneInfo,
    now_ms: int,
    retention: Retention,
    signer: Signer | None,
) -> tuple[Buckets, RangeComparison | None] | None:
    """The ranges that the first page settled on, since `-2h` and `now` have moved on; None without a cursor."""
    if signer is None or "cursor" not in values:
        return None
    previous = cursor.read_cursor(values["cursor"], signer)
    if previous is None:
        raise BadQuestion("cursor", UNKNOWN_CURSOR)
    buckets = Buckets(previous.grain, previous.unit, previous.start_ms, previous.end_ms, zone)
    refuse_unless_stored(buckets, now_ms, retention)
    if ("compare" in values) != bool(previous.compared):
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    # The same range in another notation is the same question.
    if texts != previous.texts and buckets != _parse_ranges(values, zone, now_ms, retention)[0]:
        start, end, granularity = previous.texts
        raise BadQuestion(
            "cursor", f"{FOREIGN_CURSOR}, or with start={start}, end={end} and granularity={granularity or 'auto'}"
        )
    if not previous.compared:
        return buckets, None
    compare = RangeComparison.of_state(previous.compared, buckets, now_ms, retention)
    if compare.kind != values["compare"]:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return buckets, compare


def _parse_subject(values: Mapping[str, str], admin: bool) -> tuple[tuple[int, ...], int | None]:
    """Campaigns, or an advertiser; neither: all that may be seen."""
    if ("campaign_id" in values) == ("advertiser_id" in values):
        raise BadQuestion("campaign_id", "give either campaign_id (several, by comma) or advertiser_id")
    if values.get("advertiser_id") == ALL_ADVERTISERS:
        if not admin:
            detail = "only an admin key may ask for all advertisers (*); retry with the number of one"
            raise BadQuestion("advertiser_id", detail, 403, "forbidden")
        return (), None
    if "advertiser_id" in values:
        return (), parse_id("advertiser_id", values["advertiser_id"])
    return parse_campaigns(values["campaign_id"]), None


def _parse_zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zone_named(name)
    except UnknownZone as error:
        use = f"did you mean {error.suggestion}?" if error.suggestion else "use an IANA name such as Europe/Berlin"
        raise BadQuestion("timezone", f"no such time zone: {name[:40]!r}; {use}") from None


def _parse_order(text: str) -> tuple[str | None, bool]:
    """The column to order by, None where none is given, and whether descending."""
    return text.removeprefix("-") or (text or None), text.startswith("-")


def _parse_top(values: Mapping[str, str], group_by: tuple[str, ...]) -> tuple[int, str]:
    """How many groups, and by which measure; 0 for all."""
    if "top" not in values:
        if "by" in values:
            raise BadQuestion("by", "by needs top, the number of groups; retry with top=10")
        return 0, ""
    if not group_by:
        raise BadQuestion("top", "top needs group_by: it is about groups, not buckets; retry with group_by=campaign_id")
    by = values.get("by", MEASURES[0])
    if by not in MEASURES:
        raise BadQuestion("by", f"by must be one of {', '.join(MEASURES)}, not {by[:40]!r}")
    return parse_limit(values, "top"), by


def _check_order(
    column: str | None, group_by: tuple[str, ...], compare: RangeComparison | None, *, users: bool
) -> None:
    beside = ((*PREVIOUS, *CHANGES) if compare is not None else ()) + (USERS if users else ())
    if column is None or column in ("time", *group_by, *MEASURES, *RATIOS, *beside):
        return
    more = "" if compare is not None else "; columns of a comparison need compare" * (column in (*PREVIOUS, *CHANGES))
    more += f"; {column} needs users=true" * (column in USERS)
    raise BadQuestion(
        "order", f"cannot order by {column[:40]!r}; use time, a dimension of group_by, a measure or a ratio{more}"
    )


def _parse_group_by(text: str) -> tuple[str, ...]:
    names = [part for part in text.split(",") if part]
    for name in names:
        if name not in DIMENSIONS:
            raise BadQuestion("group_by", f"cannot group by {name[:40]!r}; use {', '.join(DIMENSIONS)}")
    if len(names) > len(DIMENSIONS):
        raise BadQuestion("group_by", f"group_by may name the {len(DIMENSIONS)} dimensions once each, not {len(names)}")
    return tuple(dict.fromkeys(names))


def _parse_filters(texts: Sequence[str]) -> tuple[tuple[str, tuple[str | int, ...]], ...]:
    filters: dict[str, tuple[str | int, ...]] = {}
    for text in texts:
        name, colon, values = text.partition(":")
        if not colon or name not in DIMENSIONS or not values:
            raise BadQuestion(
                "filter",
                f"filter must be dimension:value,value with one of {', '.join(DIMENSIONS)}, not {text[:60]!r}",
            )
        if name in filters:
            raise BadQuestion("filter", f"filter names {name} twice; list its values by comma")
        parts = values.split(",")
        if name in _NAMED_VALUES:
            unknown = [v for v in parts if v not in _NAMED_VALUES[name]]
            if unknown:
                raise BadQuestion("filter", f"no such {name}: {unknown[0][:40]!r}")
            filters[name] = tuple(sorted(set(parts)))
        else:
            filters[name] = tuple(sorted({parse_id("filter", v) for v in parts}))
    return tuple(sorted(filters.items()))
