"""Entries of the directory: their fields, and which values these may have. Pure but for the list of time zones."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from infra.structs import decodable
from ingest.events import MAX_INT
from query.zones import UnknownZone, zone_named

MAX_NAME_CHARACTERS = 500
"""A name is sent with every row that it labels."""
STATUSES = ("active", "paused", "ended")
BUDGETS = ("daily", "total")
_FIRST_DATE, _LAST_DATE = dt.date(1970, 1, 1), dt.date(2199, 12, 31)
# Control characters, ends of line and paragraph, and halves of surrogate pairs: no cell or line of an export may be broken by a name.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_UTF_8 = re.compile(r"[\udc80-\udcff]")
"""Bytes of a file that are no UTF-8, as `surrogateescape` has them."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class BadEntry(Exception):
    """An entry cannot be taken: the field at fault, and a sentence that says what to do."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field, detail


@decodable
class Advertiser(msgspec.Struct, frozen=True):
    """Who pays. `timezone`: IANA name of the zone that its days are those of."""

    id: int
    name: str
    timezone: str = "UTC"


@decodable
class Campaign(msgspec.Struct, frozen=True):
    """`start`, `end`: first and last day, both inclusive; None: open. `budget`: what `budget_micros` is the limit of; both or neither."""

    id: int
    name: str
    advertiser_id: int
    timezone: str = "UTC"
    status: str = "active"
    start: dt.date | None = None
    end: dt.date | None = None
    budget: str | None = None
    budget_micros: int | None = None


@decodable
class Ad(msgspec.Struct, frozen=True):
    """An ad of a campaign."""

    id: int
    name: str
    campaign_id: int


@decodable
class Publisher(msgspec.Struct, frozen=True):
    """Where ads are shown."""

    id: int
    name: str


Entry = Advertiser | Campaign | Ad | Publisher
KINDS: dict[str, type[Entry]] = {"advertiser": Advertiser, "campaign": Campaign, "ad": Ad, "publisher": Publisher}
"""By name, parents first."""
_KIND_OF = {type_: kind for kind, type_ in KINDS.items()}
PARENTS = {"campaign": ("advertiser_id", "advertiser"), "ad": ("campaign_id", "campaign")}
"""The field of a kind that names an entry of another kind, and that kind."""


def kind_of(entry: Entry) -> str:
    """The name of an entry's kind."""
    return _KIND_OF[type(entry)]


def fields_of(kind: str) -> tuple[str, ...]:
    """The fields of a kind, in order."""
    return KINDS[kind].__struct_fields__


def required_of(kind: str) -> tuple[str, ...]:
    """The fields that an entry of a kind must have."""
    fields = fields_of(kind)
    return fields[: len(fields) - len(KINDS[kind].__struct_defaults__)]


def parse_entry(kind: str, values: Mapping[str, Any]) -> Entry:
    """An entry from its fields by name; None stands for an absent one. Raises BadEntry."""
    type_, plan = KINDS[kind], _PLANS[kind]
    if unknown := values.keys() - plan.keys():
        name = min(unknown)
        raise BadEntry(name, f"{_article(kind)} has no {name[:40]!r}; its fields are {', '.join(plan)}")
    fields: list[Any] = []
    for name, (check, default) in plan.items():
        value = values.get(name)
        if value is None and default is _REQUIRED:
            raise BadEntry(name, f"{name} is missing")
        fields.append(default if value is None else check(name, value))
    entry = type_(*fields)
    if type(entry) is Campaign:
        _check_campaign(entry)
    return entry


def parse_cells(kind: str, cells: Mapping[str, str]) -> Entry:
    """An entry from cells of a CSV file; an empty one is absent. Raises BadEntry."""
    values: dict[str, Any] = {}
    for name, text in cells.items():
        if text:
            values[name] = int(text) if name in _NUMBERS and _NUMBER.fullmatch(text) else text
    return parse_entry(kind, values)


_NUMBERS = {"id", "advertiser_id", "campaign_id", "budget_micros"}
_NUMBER = re.compile(r"-?[0-9]{1,30}", re.ASCII)


def _check_campaign(campaign: Campaign) -> None:
    start, end = campaign.start, campaign.end
    if start is not None and end is not None and end < start:
        raise BadEntry("end", f"end ({end}) must not be before start ({start})")
    if campaign.budget is not None and campaign.budget_micros is None:
        raise BadEntry("budget_micros", "budget_micros is missing; a budget has an amount")
    if campaign.budget_micros is not None and campaign.budget is None:
        raise BadEntry("budget", f"budget is missing; say whether budget_micros is {' or '.join(BUDGETS)}")


def _check_id(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise BadEntry(name, f"{name} must be an integer from 0 to 2^63 - 1, not {_shown(value)}")
    return value


def _check_name(name: str, value: Any) -> str:
    if type(value) is not str:
        raise BadEntry(name, f"name must be a text, not {_shown(value)}")
    text = value.strip()
    if not text:
        raise BadEntry(name, "name is empty")
    if len(text) > MAX_NAME_CHARACTERS:
        raise BadEntry(name, f"name has {len(text):,} characters, and the limit is {MAX_NAME_CHARACTERS}; shorten it")
    if _NO_UTF_8.search(text):
        raise BadEntry(name, "name is no text in UTF-8; in a spreadsheet, save the sheet as CSV UTF-8")
    if unfit := _UNFIT.search(text):
        raise BadEntry(name, f"name has a control character or line break (U+{ord(unfit[0]):04X}); remove it")
    return text


def _check_zone(name: str, value: Any) -> str:
    if type(value) is not str:
        raise BadEntry(name, f"{name} must be a text, not {_shown(value)}")
    try:
        zone_named(value)
    except UnknownZone as error:
        use = f"did you mean {error.suggestion}?" if error.suggestion else "use an IANA name such as Europe/Berlin"
        raise BadEntry(name, f"no such time zone: {_shown(value)}; {use}") from None
    return value


def _check_date(name: str, value: Any) -> dt.date:
    try:
        date = dt.date.fromisoformat(value) if type(value) is str and _DATE.fullmatch(value) else None
    except ValueError:
        date = None
    if date is None or not _FIRST_DATE <= date <= _LAST_DATE:
        raise BadEntry(name, f"{name} must be a day from {_FIRST_DATE} to {_LAST_DATE}, not {_shown(value)}")
    return date


def _check_amount(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise BadEntry(
            name, f"{name} must be an integer, 0 or more, in millionths of the currency, not {_shown(value)}"
        )
    return value


def _one_of(allowed: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise BadEntry(name, f"{name} must be one of {', '.join(allowed)}, not {_shown(value)}")
        return str(value)

    return check


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "id": _check_id, "name": _check_name, "advertiser_id": _check_id, "campaign_id": _check_id, "timezone": _check_zone,
    "status": _one_of(STATUSES), "start": _check_date, "end": _check_date, "budget": _one_of(BUDGETS),
    "budget_micros": _check_amount,
}  # fmt: skip


_REQUIRED = object()


def _plan(kind: str) -> dict[str, tuple[Callable[[str, Any], Any], Any]]:
    """How each field is checked, and its default; _REQUIRED for none."""
    fields, defaults = fields_of(kind), KINDS[kind].__struct_defaults__
    padded = (*(_REQUIRED,) * (len(fields) - len(defaults)), *defaults)
    return {name: (_CHECKS[name], default) for name, default in zip(fields, padded, strict=True)}


_PLANS = {kind: _plan(kind) for kind in KINDS}


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _article(kind: str) -> str:
    return f"{'an' if kind[0] == 'a' else 'a'} {kind}"
