"""Templates: the constant bytes of messages that differ in their values only, and how whole batches are read by them.

A template is learned from one message. A message fits it when all its constant bytes are found where the count of quotes
puts them, which is compared byte by byte; so a fit is one line of JSON of known keys whose texts have no escapes, and
any parser would read it alike. Reading never rejects: it takes a message, or leaves it to the strict path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ingest import events
from ingest.text import is_utf8

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

_TEXT = r'"[^"\\\x00-\x1f]*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"
_MEMBER = re.compile(rf'[ ]*"([^"\\\x00-\x1f]*)"[ ]*:[ ]*({_TEXT}|{_NUMBER}|true|false|null)[ ]*(,|\}}$)')
_KINDS = {
    **dict.fromkeys(("event_id", "user_id"), "text"),
    **dict.fromkeys(("event_type", "country", "device"), "code"),
    **dict.fromkeys((*events.ID_FIELDS, "cost_micros"), "int"),
}
_CODES = {"event_type": events.EVENT_TYPES, "device": events.DEVICES}
_QUOTE, _MAX_DIGITS, _MAX_CODE = 0x22, 19, 16
_PAD = 256


@dataclass(frozen=True)
class Value:
    """A place where messages of one template differ. `kind`: text, code, int, time (text), extra, extra number."""

    name: str
    kind: str


@dataclass(frozen=True)
class Template:
    """`literals[i]` comes before `values[i]`; the last literal ends the message."""

    literals: tuple[bytes, ...]
    values: tuple[Value, ...]

    @property
    def quotes(self) -> int:
        """How many quotes each message has."""
        return sum(literal.count(b'"') for literal in self.literals)


def learn(message: bytes) -> Template | None:
    """The template of a message, or None when messages like it must be judged one by one."""
    try:
        text = message.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not text.startswith("{"):
        return None
    cuts, values, seen, at = [0], list[Value](), set[str](), 1
    while at < len(text):
        member = _MEMBER.match(text, at)
        if member is None or member[1] in seen:
            return None
        seen.add(member[1])
        kind = _kind(member[1], member[2])
        if kind == "wrong":
            return None
        if kind is not None:
            inner = int(member[2].startswith('"'))
            cuts += [member.start(2) + inner, member.end(2) - inner]
            values.append(Value(member[1], kind))
        at = member.end()
    if not text.endswith("}") or not {value.name for value in values}.issuperset(events.REQUIRED):
        return None
    literals = [text[a:b].encode() for a, b in list(pairwise([*cuts, len(text)]))[::2]]
    return Template(tuple(literals), tuple(values)) if max(map(len, literals)) <= _PAD // 2 else None


def _kind(name: str, scalar: str) -> str | None:
    """What is read from this value; None where the value itself is part of the template, `wrong` for no good one."""
    is_text = scalar.startswith('"')
    if scalar == "null" or (scalar in ("true", "false") and name not in events.FIELDS):
        return None
    if name == "event_time":
        return "time" if is_text else "int"
    known = _KINDS.get(name)
    if known is None:
        return "extra" if is_text else "extra number"
    return known if (known == "int") != is_text else "wrong"


class Page:
    """The bytes of a batch of messages, joined, with what all templates need to know of them."""

    def __init__(self, messages: Sequence[bytes | None]) -> None:
        padding = bytes(_PAD)
        held: list[bytes] = [m or b"" for m in messages]
        self.bytes = np.frombuffer(b"".join([padding, *held, padding]), np.uint8)
        lengths = np.array(list(map(len, held)), np.int64)
        self.ends = np.cumsum(lengths) + _PAD
        self.starts = self.ends - lengths
        self.quotes = np.flatnonzero(self.bytes == _QUOTE)
        edges = np.searchsorted(self.quotes, np.append(self.starts, self.ends[-1:]))
        self.first_quote, self.quote_count = edges[:-1], np.diff(edges)
        self.plain = self._plain(lengths)

    def _plain(self, lengths: Ints) -> Bools:
        """Messages of valid UTF-8 without escapes and control characters, and of an allowed size."""
        plain: Bools = (lengths > 0) & (lengths <= events.MAX_VALUE_BYTES)
        body = self.bytes[_PAD:-_PAD]
        if not body.size:
            return plain
        if body.min() < 0x20:
            plain[self._rows_of(body < 0x20)] = False
        escapes = body == 0x5C
        if escapes.any():
            plain[self._rows_of(escapes)] = False
        if body.max() >= 0x80:
            for row in self._rows_of(body >= 0x80).tolist():
                plain[row] &= is_utf8(self.bytes[self.starts[row] : self.ends[row]].tobytes())
        return plain

    def _rows_of(self, found: Bools) -> Ints:
        return np.unique(np.searchsorted(self.ends, np.flatnonzero(found) + _PAD, side="right"))

    def cells(self, at: Ints, width: int) -> npt.NDArray[np.uint8]:
        """(n, width) bytes, each row beginning at one of `at`: one wide gather costs what one of a byte does."""
        kind = np.dtype(f"V{width}")
        windows = np.ndarray((len(self.bytes) - width + 1,), kind, self.bytes, strides=(1,))
        return windows[at].view(np.uint8).reshape(len(at), width)


@dataclass
class Read:
    """Columns of the messages that were asked for, in their order; only rows in `fits` mean anything.

    Texts are given as places in the page: `spans[name]` is (start, length).
    """

    fits: Bools
    numbers: dict[str, Ints]
    spans: dict[str, tuple[Ints, Ints]]


def read(template: Template, page: Page, rows: Ints) -> Read:
    """Read the messages `rows`, each of which has as many quotes as the template."""
    quote, fits = page.first_quote[rows], np.ones(len(rows), bool)
    found = Read(fits, {}, {})
    literal = template.literals[0]
    start = page.starts[rows]
    fits &= _same(page.cells(start, _round_up(len(literal))), literal)
    start = start + len(literal)
    passed = literal.count(b'"')
    for value, literal in zip(template.values, template.literals[1:], strict=True):
        if b'"' in literal:
            end = page.quotes[np.minimum(quote + passed, len(page.quotes) - 1)] - literal.index(b'"')
        else:
            end = page.ends[rows] - len(literal)
        length = end - start
        fits &= length >= 0
        # The value, right-aligned before the literal that ends it.
        room = 24 if value.kind == "int" else _MAX_CODE if value.kind == "code" else 0
        cells = page.cells(end - room, room + _round_up(len(literal)))
        fits &= _same(cells[:, room:], literal)
        if value.kind == "int":
            found.numbers[value.name], good = digits(cells[:, :room], length)
            fits &= good
        elif value.kind == "code":
            found.numbers[value.name], good = _code(value.name, cells[:, :room], length)
            fits &= good
        elif value.kind == "time":
            found.numbers[value.name], good = time_ms(page, start, length, fits)
            fits &= good
        elif value.kind == "extra number":
            fits &= _numbers(page, start, length, fits)
        elif value.kind == "text":
            found.spans[value.name] = start, length
        start = end + len(literal)
        passed += literal.count(b'"')
    fits &= start == page.ends[rows]
    return found


def _round_up(size: int) -> int:
    return (size + 7) // 8 * 8


def _same(cells: npt.NDArray[np.uint8], literal: bytes) -> Bools:
    """Whether each row begins with the literal. Rows are whole words."""
    words = cells.view("<u8")
    wanted = np.frombuffer(literal.ljust(words.shape[1] * 8, b"\0"), "<u8")
    mask = np.frombuffer((b"\xff" * len(literal)).ljust(words.shape[1] * 8, b"\0"), "<u8")
    same = np.ones(len(words), bool)
    for i in range(words.shape[1]):
        word = words[:, i]
        same &= (word if mask[i] == _ALL else word & mask[i]) == wanted[i]
    return same


_ALL = np.uint64(2**64 - 1)
_HIGH, _SIX, _THREES = np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(0x0606060606060606), np.uint64(0x3333333333333333)


def _kept(words: int) -> list[Words]:
    """For each word of right-aligned text and each length of it, a mask of the bytes that belong to the text."""
    tables = []
    for word in range(words):
        masks = []
        for length in range(words * 8 + 1):
            masks.append((b"\0" * (words * 8 - length) + b"\xff" * length)[word * 8 : word * 8 + 8])
        tables.append(np.frombuffer(b"".join(masks), "<u8"))
    return tables


_KEPT = {words: _kept(words) for words in (2, 3)}
_ZEROS = np.uint64(0x3030303030303030)
_LEAST = np.array([0, 0, *(10**n for n in range(1, _MAX_DIGITS))], np.uint64)  # of so many digits


def digits(cells: npt.NDArray[np.uint8], length: Ints, *, leading_zeros: bool = False) -> tuple[Ints, Bools]:
    """Decimal integers of up to 19 digits, right-aligned in cells of 24 bytes: values, and which are ones.

    Eight digits at a time in one word: D. Lemire, "Quickly parsing eight digits", 2018.
    """
    good = (length >= 1) & (length <= _MAX_DIGITS)
    if not good.any():
        return np.zeros(len(length), np.int64), good
    length = np.where(good, length, 1)
    needed = (int(length.max()) + 7) // 8
    words = cells.view("<u8")
    total = np.zeros(len(length), np.uint64)
    for i in range(3 - needed, 3):
        kept = _KEPT[3][i][length]
        word = (words[:, i] & kept) | (_ZEROS & ~kept)
        good &= ((word & _HIGH) | (((word + _SIX) & _HIGH) >> np.uint64(4))) == _THREES
        word = (word & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(2561) >> np.uint64(8)
        word = (word & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601) >> np.uint64(16)
        word = (word & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001) >> np.uint64(32)
        total = total * np.uint64(10**8) + word
    good &= total <= np.uint64(events.MAX_INT)
    if not leading_zeros:
        good &= (length == 1) | (total >= _LEAST[length])
    return total.astype(np.int64), good


def _code(name: str, cells: npt.NDArray[np.uint8], length: Ints) -> tuple[Ints, Bools]:
    """The position of each text, right-aligned in cells of 16 bytes, in its enumeration."""
    good = (length >= 1) & (length <= _MAX_CODE)
    length = np.where(good, length, 1)
    words = cells.view("<u8")
    kept = [words[:, i] & _KEPT[2][i][length] for i in range(2)]
    if name == "country":
        # Two letters: the last two bytes.
        code = _COUNTRY[(kept[1] >> np.uint64(48)).astype(np.int64)]
        return code, good & (length == 2) & (code >= 0)
    code = np.full(len(length), -1, np.int64)
    for number, text in enumerate(_CODES[name]):
        wanted = np.frombuffer(text.encode().rjust(16, b"\0"), "<u8")
        code[(kept[1] == wanted[1]) & (kept[0] == wanted[0])] = number
    return code, good & (code >= 0)


_COUNTRY = np.full(65536, -1, np.int64)
_COUNTRY[[int.from_bytes(name.encode(), "little") for name in events.COUNTRIES]] = np.arange(len(events.COUNTRIES))

_SEPARATORS = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"}
_DIGIT_COLUMNS = [c for c in range(19) if c not in _SEPARATORS]
_WEIGHTS = np.zeros((14, 6))
for _column, (_part, _weight) in enumerate(
    [(0, 1000), (0, 100), (0, 10), (0, 1), *((part, weight) for part in range(1, 6) for weight in (10, 1))]
):
    _WEIGHTS[_column, _part] = _weight


def time_ms(page: Page, start: Ints, length: Ints, asked: Bools) -> tuple[Ints, Bools]:
    """RFC 3339 times with capital T and Z to epoch milliseconds, rounded down, and which are ones. Others are left alone."""
    result, good = np.zeros(len(start), np.int64), np.zeros(len(start), bool)
    chosen = np.flatnonzero(asked & (length >= 20) & (length <= 35))
    if not chosen.size:
        return result, good
    start, length = start[chosen], length[chosen]
    cells = page.cells(start, 24)
    number = cells[:, _DIGIT_COLUMNS] - np.uint8(ord("0"))
    fine = (number <= 9).all(axis=1)
    for column, separator in _SEPARATORS.items():
        fine &= cells[:, column] == ord(separator)
    year, month, day, hour, minute, second = (number.astype(np.float64) @ _WEIGHTS).astype(np.int64).T
    months = ((year - 1970) * 12 + month - 1).astype("M8[M]")
    days = months.astype("M8[D]") + (day - 1)
    fine &= (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("M8[M]") == months) & (year >= 1970)
    fine &= (hour <= 23) & (minute <= 59) & (second <= 59)

    end = start + length
    utc = page.bytes[end - 1] == ord("Z")
    zone = page.cells(end - 6, 6)
    zone_number = zone[:, [1, 2, 4, 5]] - np.uint8(ord("0"))
    sign = zone[:, 0]
    fine &= utc | (
        ((sign == ord("+")) | (sign == ord("-"))) & (zone[:, 3] == ord(":")) & (zone_number <= 9).all(axis=1)
    )
    zone_hour, zone_minute = (zone_number.astype(np.float64) @ _WEIGHTS[4:8, 1:3]).astype(np.int64).T
    fine &= utc | ((zone_hour <= 23) & (zone_minute <= 59))
    shift = np.where(utc, 0, (zone_hour * 60 + zone_minute) * 60 * np.where(sign == ord("-"), -1, 1))

    zone_length = np.where(utc, 1, 6)
    decimals = length - 20 - zone_length  # digits after the point; −1 where there is none
    whole = decimals == -1
    fine &= whole | ((decimals >= 1) & (decimals <= 9) & (page.bytes[start + 19] == ord(".")))
    fraction, exact = digits(page.cells(end - zone_length - 24, 24), np.clip(decimals, 1, 9), leading_zeros=True)
    fine &= whole | exact
    ms = np.where(whole, 0, fraction * 1000 // 10 ** np.clip(decimals, 1, 9))
    seconds = days.astype(np.int64) * 86_400 + hour * 3600 + minute * 60 + second - shift
    result[chosen], good[chosen] = seconds * 1000 + ms, fine
    return result, good


_NUMBER_BYTES = re.compile(_NUMBER.encode())


def _numbers(page: Page, start: Ints, length: Ints, asked: Bools) -> Bools:
    """Which texts are JSON numbers: one by one, since only fields that we do not read get here."""
    good = np.zeros(len(start), bool)
    for i in np.flatnonzero(asked & (length >= 1) & (length <= 32)).tolist():
        good[i] = _NUMBER_BYTES.fullmatch(page.bytes[start[i] : start[i] + length[i]].tobytes()) is not None
    return good
