"""The fast path over JSON: one pass over the bytes of a whole batch, compiled.

It takes an event that is written in the common way: known keys once each, no escapes in what is read. It never rejects and
never guesses: whatever else there is, it leaves to the strict path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Bools, Ints, Values
from infra.columnar.jit import Number, byte_at, compiled, inlined, put_word, word_at
from ingest import events
from ingest.decoding.tokens import (
    CLOSE,
    COLON,
    COMMA,
    DOT,
    HIGHS,
    MINUS,
    OPEN,
    PLUS,
    QUOTE,
    WRONG,
    ZERO,
    end_of_text,
    integer,
    is_null,
    is_utf8,
    skip_digits,
    skip_space,
    skip_value,
)

Words = npt.NDArray[np.uint64]

NUMBERS = ("event_type", "event_time", *events.ID_FIELDS, "country", "device", "cost_micros")
"""The fields that come out as numbers, in the order of the rows of `Scanned.numbers`."""
_ID, _USER = len(NUMBERS), len(NUMBERS) + 1
_FIELDS = (*NUMBERS, "event_id", "user_id")
_UNKNOWN = len(_FIELDS)
_TYPE, _TIME, _COUNTRY, _DEVICE, _COST = (
    NUMBERS.index(name) for name in ("event_type", "event_time", "country", "device", "cost_micros")
)
_REQUIRED = sum(1 << _FIELDS.index(name) for name in events.REQUIRED)


def _table(texts: tuple[str, ...]) -> tuple[Words, Words]:
    """Texts of up to 15 bytes with a closing quote, as two words each, and the masks of the bytes that count."""
    rows, masks = np.zeros((len(texts), 16), np.uint8), np.zeros((len(texts), 16), np.uint8)
    for row, mask, text in zip(rows, masks, texts, strict=True):
        quoted = text.encode() + b'"'
        row[: len(quoted)], mask[: len(quoted)] = np.frombuffer(quoted, np.uint8), 0xFF
    return rows.view("<u8"), masks.view("<u8")


_NAMES, _NAME_MASKS = _table(_FIELDS)
_NAME_LENGTHS = np.array([len(name) for name in _FIELDS], np.int64)
_TYPES, _TYPE_MASKS = _table(events.EVENT_TYPES)
_DEVICES, _DEVICE_MASKS = _table(events.DEVICES)
_COUNTRIES = np.full(1 << 16, -1, np.int16)
_COUNTRIES[[int.from_bytes(name.encode(), "big") for name in events.COUNTRIES]] = np.arange(len(events.COUNTRIES))
_DEFAULTS = np.zeros(len(NUMBERS), np.int64)
_DEFAULTS[[_COUNTRY, _DEVICE]] = events.DEFAULT_COUNTRY, events.DEFAULT_DEVICE

_MAX_SIZE, _MAX_ID, _MAX_USER = events.MAX_VALUE_BYTES, events.MAX_EVENT_ID_BYTES, events.MAX_USER_ID_BYTES
_MAX_COST, _MAX_BEHIND = events.MAX_COST_MICROS, events.MAX_BEHIND_MS
_Z, _T = ord("Z"), ord("T")
_FOLLOWED = 24  # members of a message whose order is expected in the next one
# A message in hand: its numbers, where its texts begin and end, and the fields of the message before, by position. Plain
# memory, since an array handed from function to function is counted each time.
_ID_SPAN, _USER_SPAN, _EXPECTED = len(NUMBERS), len(NUMBERS) + 2, len(NUMBERS) + 4
_SCRATCH = _EXPECTED + _FOLLOWED


@dataclass(frozen=True)
class Scanned:
    """Columns of a batch; only rows in `fits` mean anything. `numbers` is (len(NUMBERS), n).

    Texts are copied together, without gaps; `users` are empty where there is none.
    """

    fits: Bools
    numbers: Ints
    ids: Values
    users: Values
    has_user: Bools


def scan_messages(stretches: Sequence[Values], log_time_ms: Ints, latest_ms: Ints) -> Scanned:
    """Read messages; `log_time_ms[i]` is Kafka's timestamp of each, `latest_ms[i]` the latest event time accepted in it."""
    count = len(log_time_ms)
    fits, has_user = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    numbers = np.zeros((len(NUMBERS), count), np.int64)
    ids, users = np.empty(count * _MAX_ID + 8, np.uint8), np.empty(count * _MAX_USER + 8, np.uint8)
    id_edges, user_edges = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    scratch = np.zeros(_SCRATCH, np.int64)
    scratch[_EXPECTED:] = _UNKNOWN
    first = 0
    for messages in stretches:
        _scan(
            messages.data.ctypes.data, messages.starts, messages.ends, first, log_time_ms, latest_ms, scratch.ctypes.data,
            fits, numbers, ids.ctypes.data, id_edges, users.ctypes.data, user_edges, has_user,
        )  # fmt: skip
        first += len(messages)
    return Scanned(
        fits,
        numbers,
        Values(ids, id_edges[:-1], id_edges[1:]),
        Values(users, user_edges[:-1], user_edges[1:]),
        has_user,
    )


@compiled
def _scan(
    data: Number, starts: Any, ends: Any, first: Number, log_time_ms: Any, latest_ms: Any, scratch: Number,
    fits: Any, numbers: Any, ids: Number, id_edges: Any, users: Number, user_edges: Any, has_user: Any,
) -> None:  # fmt: skip
    id_at, user_at = id_edges[first], user_edges[first]
    for message in range(len(starts)):
        row, start, end = first + message, starts[message], ends[message]
        if 2 <= end - start <= _MAX_SIZE and _message(data, start, end, scratch):
            time = _get(scratch, _TIME)
            if log_time_ms[row] - _MAX_BEHIND <= time <= latest_ms[row]:
                fits[row] = True
                for i in range(len(NUMBERS)):
                    numbers[i, row] = _get(scratch, i)
                id_at = _copy(data, _get(scratch, _ID_SPAN), _get(scratch, _ID_SPAN + 1), ids, id_at)
                if _get(scratch, _USER_SPAN) >= 0:
                    has_user[row] = True
                    user_at = _copy(data, _get(scratch, _USER_SPAN), _get(scratch, _USER_SPAN + 1), users, user_at)
        id_edges[row + 1], user_edges[row + 1] = id_at, user_at


@compiled
def _get(scratch: Number, at: Number) -> Number:
    return np.int64(word_at(scratch, 8 * at))


@compiled
def _put(scratch: Number, at: Number, value: Number) -> None:
    put_word(scratch, 8 * at, np.uint64(value))


@compiled
def _copy(data: Number, start: Number, stop: Number, into: Number, at: Number) -> Number:
    """Copy whole words; returns where the next text belongs."""
    for done in range(0, stop - start, 8):
        put_word(into, at + done, word_at(data, start + done))
    return at + stop - start


@compiled
def _message(data: Number, start: Number, end: Number, scratch: Number) -> Any:
    """Read one message into `scratch`; False where it is left to the strict path."""
    if byte_at(data, start) != OPEN or not _is_text(data, start, end):
        return False
    _reset(scratch)
    at, member, seen, present = start + 1, 0, 0, 0  # `seen` and `present`: a bit for each field
    while True:
        field, at = _member_name(data, at, end, member, scratch)
        if at < 0:
            return False
        if field == _UNKNOWN:
            at = skip_value(data, at, end)
        elif seen & (1 << field):
            return False
        elif is_null(data, at, end):
            seen |= 1 << field
            at += 4
        else:
            seen |= 1 << field
            present |= 1 << field
            at = _value(data, at, end, field, scratch)
        if at < 0:
            return False
        at = skip_space(data, at, end)
        if at >= end or byte_at(data, at) != COMMA:
            break
        at += 1
        member += 1
    is_whole = at < end and byte_at(data, at) == CLOSE and skip_space(data, at + 1, end) == end
    return is_whole and present & _REQUIRED == _REQUIRED


@inlined
def _is_text(data: Number, start: Number, end: Number) -> Any:
    """Whether the bytes are UTF-8: those of ASCII are seen to be so eight at a time."""
    bits = np.uint64(0)
    for at in range(start, end - 7, 8):
        bits |= word_at(data, at)
    for at in range(end - (end - start) % 8, end):
        bits |= np.uint64(byte_at(data, at)) << np.uint64(56)
    return bits & HIGHS == 0 or is_utf8(data, start, end)


@inlined
def _reset(scratch: Number) -> None:
    """Set what a message may leave out to its default."""
    for i in range(len(NUMBERS)):
        _put(scratch, i, _DEFAULTS[i])
    _put(scratch, _USER_SPAN, -1)


@inlined
def _member_name(data: Number, at: Number, end: Number, member: Number, scratch: Number) -> tuple[Number, Number]:
    """Which field the next member is, _UNKNOWN for none that is read, and where its value begins (negative: there is no member).

    Producers keep the order of their fields: the field at this place in the message before is tried first.
    """
    at = skip_space(data, at, end)
    if at >= end or byte_at(data, at) != QUOTE:
        return _UNKNOWN, WRONG
    at += 1
    field = _get(scratch, _EXPECTED + member) if member < _FOLLOWED else _UNKNOWN
    if field != _UNKNOWN and _is_name(data, at, end, field):
        at += _NAME_LENGTHS[field] + 1
    else:
        stop = end_of_text(data, at, end)
        if stop < 0:
            return _UNKNOWN, WRONG
        field = _field(data, at, stop)
        if member < _FOLLOWED:
            _put(scratch, _EXPECTED + member, field)
        at = stop + 1
    at = skip_space(data, at, end)
    if at >= end or byte_at(data, at) != COLON:
        return _UNKNOWN, WRONG
    return field, skip_space(data, at + 1, end)


@inlined
def _value(data: Number, at: Number, end: Number, field: Number, scratch: Number) -> Number:
    """Read the value of a known field into `scratch`; returns where it ends, or a negative number."""
    if at >= end:
        return WRONG
    if byte_at(data, at) != QUOTE:
        return _number(data, at, end, field, scratch)
    at += 1
    stop = end_of_text(data, at, end)
    if stop < 0:
        return WRONG
    if field >= _ID:
        good = _put_span(at, stop, field, scratch)
    else:
        code = _code(data, at, stop - at, field)
        good = code >= 0
        _put(scratch, field, code)
    return stop + 1 if good else WRONG


@inlined
def _number(data: Number, at: Number, end: Number, field: Number, scratch: Number) -> Number:
    if field in (_TYPE, _COUNTRY, _DEVICE) or field >= _ID:
        return WRONG
    number, stop = integer(data, at, end)
    if field == _COST and number > _MAX_COST:
        return WRONG
    _put(scratch, field, number)
    return stop


@inlined
def _put_span(at: Number, stop: Number, field: Number, scratch: Number) -> Any:
    """Store where the text of an id or a user lies; False where it is too short or too long."""
    span, least, most = (_ID_SPAN, 1, _MAX_ID) if field == _ID else (_USER_SPAN, 0, _MAX_USER)
    _put(scratch, span, at)
    _put(scratch, span + 1, stop)
    return least <= stop - at <= most


@inlined
def _code(data: Number, at: Number, size: Number, field: Number) -> Number:
    """What a text stands for in one of NUMBERS: the position of a name, or epoch milliseconds; negative where it is none."""
    if field == _COUNTRY:
        if size != 2:
            return WRONG
        return np.int64(_COUNTRIES[(np.int64(byte_at(data, at)) << 8) | np.int64(byte_at(data, at + 1))])
    if field == _TYPE:
        return _choice(data, at, _TYPES, _TYPE_MASKS)
    if field == _DEVICE:
        return _choice(data, at, _DEVICES, _DEVICE_MASKS)
    if field == _TIME:
        return _time_ms(data, at, size)
    return WRONG


@compiled
def _is_name(data: Number, at: Number, end: Number, field: Number) -> Any:
    """Whether the name of a field is here, with its closing quote."""
    if at + _NAME_LENGTHS[field] >= end:
        return False
    if (word_at(data, at) ^ _NAMES[field, 0]) & _NAME_MASKS[field, 0]:
        return False
    return (word_at(data, at + 8) ^ _NAMES[field, 1]) & _NAME_MASKS[field, 1] == 0


@compiled
def _field(data: Number, at: Number, stop: Number) -> Number:
    """Which field a key names."""
    size = stop - at
    for field in range(_UNKNOWN):
        if _NAME_LENGTHS[field] == size and _is_name(data, at, stop + 1, field):
            return field
    return _UNKNOWN


@compiled
def _choice(data: Number, at: Number, texts: Number, masks: Number) -> Number:
    """The position in a table of the text that is here, with its closing quote; negative where it is not there."""
    low, high = word_at(data, at), word_at(data, at + 8)
    for code in range(len(texts)):
        if (low ^ texts[code, 0]) & masks[code, 0] == 0 and (high ^ texts[code, 1]) & masks[code, 1] == 0:
            return code
    return WRONG


@compiled
def _digits(data: Number, at: Number, count: Number) -> Number:
    """A number of exactly `count` digits, or a negative one."""
    number: Number = 0
    for i in range(count):
        digit = np.int64(byte_at(data, at + i)) - ZERO
        if digit < 0 or digit > 9:
            return WRONG
        number = number * 10 + digit
    return number


@compiled
def _time_ms(data: Number, at: Number, size: Number) -> Number:
    """An RFC 3339 time with capital T and Z, up to nanoseconds, as epoch milliseconds, rounded down; a negative number where it is none."""
    if size < 20 or size > 35:
        return WRONG
    if byte_at(data, at + 4) != MINUS or byte_at(data, at + 7) != MINUS or byte_at(data, at + 10) != _T:
        return WRONG
    if byte_at(data, at + 13) != COLON or byte_at(data, at + 16) != COLON:
        return WRONG
    year, month, day = _digits(data, at, 4), _digits(data, at + 5, 2), _digits(data, at + 8, 2)
    hour, minute, second = _digits(data, at + 11, 2), _digits(data, at + 14, 2), _digits(data, at + 17, 2)
    if year < 1970 or month < 1 or month > 12 or day < 1 or day > _days_in(year, month):
        return WRONG
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return WRONG
    end, here = at + size, at + 19
    fraction: Number = 0
    if byte_at(data, here) == DOT:
        first = here + 1
        here = skip_digits(data, first, end)
        if here == first or here - first > 9:
            return WRONG
        for i in range(3):
            digit = np.int64(byte_at(data, first + i)) - ZERO if first + i < here else 0
            fraction = fraction * 10 + digit
    shift = 0
    if (
        here == end - 6
        and (byte_at(data, here) == PLUS or byte_at(data, here) == MINUS)
        and byte_at(data, here + 3) == COLON
    ):
        hours, minutes = _digits(data, here + 1, 2), _digits(data, here + 4, 2)
        if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
            return WRONG
        shift = (hours * 60 + minutes) * 60
        if byte_at(data, here) == MINUS:
            shift = -shift
    elif here != end - 1 or byte_at(data, here) != _Z:
        return WRONG
    seconds = _days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - shift
    return seconds * 1_000 + fraction


@compiled
def _days_in(year: Number, month: Number) -> Number:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


@compiled
def _days_since_1970(year: Number, month: Number, day: Number) -> Number:
    """H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", 2013: days_from_civil."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
