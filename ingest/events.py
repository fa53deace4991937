"""The event: its fields, its limits, and the strict judgement of one message.

`judge_message` is the definition. `ingest.decoding.decode_events` gives the same verdicts for whole batches, and a property test holds the
two together.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from infra.rfc3339 import time_ms_of

EVENT_TYPES = ("impression", "click", "conversion")
DEVICES = ("desktop", "mobile", "tablet", "ctv", "other")
# ISO 3166-1 alpha-2, assigned codes, and ZZ for unknown. Blocks carry the position: append, never reorder.
COUNTRIES = tuple(
    """
    ZZ AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
    CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR
    GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO
    JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR
    MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO
    RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV
    TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
    """.split()
)
COUNTRY_CODE = {name: code for code, name in enumerate(COUNTRIES)}
DEVICE_CODE = {name: code for code, name in enumerate(DEVICES)}
TYPE_CODE = {name: code for code, name in enumerate(EVENT_TYPES)}

ID_FIELDS = ("campaign_id", "ad_id", "advertiser_id", "publisher_id")
REQUIRED = ("event_id", "event_type", "event_time", *ID_FIELDS)
FIELDS = (*REQUIRED, "country", "device", "user_id", "cost_micros")

MAX_VALUE_BYTES = 64 * 1024
MAX_EVENT_ID_BYTES = 64
MAX_USER_ID_BYTES = 128
MAX_COST_MICROS = 10**12
MAX_INT = 2**63 - 1
MAX_AHEAD_MS = 10 * 60_000
MAX_BEHIND_MS = 2 * 365 * 86_400_000
MAX_DEPTH = 256

DEFAULT_COUNTRY = COUNTRY_CODE["ZZ"]
DEFAULT_DEVICE = DEVICE_CODE["other"]


class Reason(StrEnum):
    """Why a message is dead-lettered, in the order of judgement; `unreadable` is what an operator has set aside (`ingest.poison`)."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    MISSING_FIELD = "missing-field"
    BAD_VALUE = "bad-value"
    FROM_THE_FUTURE = "from-the-future"
    TOO_LATE = "too-late"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Rejection:
    """The verdict on an invalid message; `detail` names the field or the fault."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class Event:
    """A valid event; enumerations as their codes, time in epoch milliseconds."""

    event_id: str
    event_type: int
    time_ms: int
    campaign_id: int
    ad_id: int
    advertiser_id: int
    publisher_id: int
    country: int
    device: int
    user_id: str | None
    cost_micros: int


class _Malformed(Exception):
    pass


_HUGE = object()  # an integer too long to be worth building


def _integer(text: str) -> Any:
    return int(text) if len(text) <= 20 else _HUGE


def _constant(name: str) -> Any:
    raise _Malformed(f"{name} is not JSON")


# Duplicate keys: the last one wins, as in `dict`.
_decoder = json.JSONDecoder(parse_int=_integer, parse_constant=_constant)


def _too_deep(text: str) -> bool:
    """Whether objects and arrays nest deeper than MAX_DEPTH, whatever the parser's own limit is."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', text, re.DOTALL):
        if token.group() in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif token.group() in ("]", "}"):
            depth -= 1
    return False


def parse_object(value: bytes | None) -> dict[str, Any]:
    """The message as a JSON object. Raises _Malformed, which only `judge_message` sees."""
    if not value:
        raise _Malformed("empty value" if value is not None else "null value")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Malformed(f"not UTF-8 at byte {error.start}") from None
    if _too_deep(text):
        raise _Malformed(f"nested deeper than {MAX_DEPTH}")
    try:
        event = _decoder.decode(text)
    except ValueError as error:
        raise _Malformed(str(error)) from None
    if not isinstance(event, dict):
        raise _Malformed(f"a JSON object is needed, not {type(event).__name__}")
    return event


def object_of(value: bytes | None) -> dict[str, Any] | None:
    """The message as a JSON object, as `judge_message` reads it; None where it is malformed."""
    try:
        return parse_object(value)
    except _Malformed:
        return None


def _is_int(value: Any, top: int) -> bool:
    return type(value) is int and 0 <= value <= top


def _is_text(value: Any, least: int, most: int) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return least <= len(value.encode("utf-8")) <= most
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def judge_message(value: bytes | None, log_time_ms: int, latest_ms: int | None = None) -> Event | Rejection:
    """The verdict on one message, given its Kafka timestamp. Lateness and copies are judged later.

    `latest_ms` is the latest event time that is accepted, ten minutes after the timestamp by default.
    """
    latest_ms = log_time_ms + MAX_AHEAD_MS if latest_ms is None else latest_ms
    if value is not None and len(value) > MAX_VALUE_BYTES:
        return Rejection(Reason.TOO_LARGE, f"{len(value)} bytes, at most {MAX_VALUE_BYTES}")
    try:
        event = parse_object(value)
    except _Malformed as error:
        return Rejection(Reason.MALFORMED, str(error))
    for name in REQUIRED:
        if event.get(name) is None:
            return Rejection(Reason.MISSING_FIELD, name)
    time = event["event_time"]
    if isinstance(time, str):
        time = time_ms_of(time)
    elif time is _HUGE or type(time) is not int:
        time = None
    checks = {
        "event_id": _is_text(event["event_id"], 1, MAX_EVENT_ID_BYTES),
        "event_type": isinstance(event["event_type"], str) and event["event_type"] in TYPE_CODE,
        "event_time": time is not None and time >= log_time_ms - MAX_BEHIND_MS,
        **{name: _is_int(event[name], MAX_INT) for name in ID_FIELDS},
    }
    country, device = event.get("country"), event.get("device")
    user, cost = event.get("user_id"), event.get("cost_micros")
    checks["country"] = country is None or (isinstance(country, str) and country in COUNTRY_CODE)
    checks["device"] = device is None or (isinstance(device, str) and device in DEVICE_CODE)
    checks["user_id"] = user is None or _is_text(user, 0, MAX_USER_ID_BYTES)
    checks["cost_micros"] = cost is None or _is_int(cost, MAX_COST_MICROS)
    for name, good in checks.items():
        if not good:
            return Rejection(Reason.BAD_VALUE, name)
    assert isinstance(time, int)
    if time > latest_ms:
        return Rejection(Reason.FROM_THE_FUTURE, f"{time - latest_ms + MAX_AHEAD_MS} ms ahead")
    return Event(
        event_id=event["event_id"],
        event_type=TYPE_CODE[event["event_type"]],
        time_ms=time,
        campaign_id=event["campaign_id"],
        ad_id=event["ad_id"],
        advertiser_id=event["advertiser_id"],
        publisher_id=event["publisher_id"],
        country=COUNTRY_CODE[country] if country is not None else DEFAULT_COUNTRY,
        device=DEVICE_CODE[device] if device is not None else DEFAULT_DEVICE,
        user_id=user,
        cost_micros=cost or 0,
    )
