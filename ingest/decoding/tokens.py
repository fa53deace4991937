"""The tokens of JSON in plain memory, compiled: parts of `scan`.

Each function begins at `data` + `at`, reads a message that ends before `end`, and returns where what it read ends, or WRONG. The
memory is readable for a few words beyond the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.columnar.jit import Number, byte_at, compiled, inlined, trailing_zeros, word_at
from ingest import events

WRONG = -1
QUOTE, COMMA, COLON, OPEN, CLOSE = (ord(c) for c in '",:{}')
ZERO, NINE, MINUS, PLUS, DOT = (ord(c) for c in "09-+.")
_BACKSLASH, _BRACKET, _BRACKET_END, _LOWER_E, _UPPER_E = (ord(c) for c in "\\[]eE")
_MAX_NESTED = 60
HIGHS, _ONES, _NIBBLES = (np.uint64(int.from_bytes(bytes([b] * 8))) for b in (0x80, 0x01, 0x0F))
_QUOTES, _BACKSLASHES, _SPACES, _ZEROS, _TO_HIGH = (
    np.uint64(int.from_bytes(bytes([b] * 8))) for b in (0x22, 0x5C, 0x20, 0x30, 0x46)
)
_NULL, _TRUE, _FALSE = (np.uint64(int.from_bytes(word, "little")) for word in (b"null", b"true", b"false"))
_FOUR_BYTES, _FIVE_BYTES = np.uint64(2**32 - 1), np.uint64(2**40 - 1)
_POWERS = np.array([10**n for n in range(9)], np.uint64)
_MAX_INT = np.uint64(events.MAX_INT)


@compiled
def skip_space(data: Number, at: Number, end: Number) -> Number:
    while at < end and (
        byte_at(data, at) == 0x20 or byte_at(data, at) == 0x0A or byte_at(data, at) == 0x0D or byte_at(data, at) == 0x09
    ):
        at += 1
    return at


@compiled
def end_of_text(data: Number, at: Number, end: Number) -> Number:
    """Where the closing quote is; negative where there is none, or an escape or a control character before."""
    while at < end:
        word = word_at(data, at)
        quote, escape = word ^ _QUOTES, word ^ _BACKSLASHES
        # The lowest mark is right; ones above it may be false: S. E. Anderson, "Bit Twiddling Hacks", zero byte in a word.
        marks = ((quote - _ONES) & ~quote) | ((escape - _ONES) & ~escape) | ((word - _SPACES) & ~word)
        marks &= HIGHS
        if marks:
            at += trailing_zeros(marks) >> 3
            return at if at < end and byte_at(data, at) == QUOTE else WRONG
        at += 8
    return WRONG


@compiled
def integer(data: Number, at: Number, end: Number) -> tuple[Number, Number]:
    """A decimal integer of 0 … 2⁶³ − 1 without leading zeros, and where it ends (negative: it is none).

    Eight digits at a time in one word: D. Lemire, "Quickly parsing eight digits", 2018.
    """
    first, number, count = at, np.uint64(0), 8
    while count == 8 and at - first < 24:
        word = word_at(data, at)
        # Bytes of 0x30 to 0x39 leave no mark; a byte's carry only reaches those after it.
        marks = ((word + _TO_HIGH) | (word - _ZEROS) | word) & HIGHS
        count = trailing_zeros(marks) >> 3
        if count == 0:
            break
        word = (word << np.uint64(64 - 8 * count)) & _NIBBLES
        word = (word * np.uint64(2561) >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
        word = (word * np.uint64(6553601) >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
        word = word * np.uint64(42949672960001) >> np.uint64(32)
        number = number * _POWERS[count] + word
        at += count
    size = at - first
    if size == 0 or size > 19 or at > end or number > _MAX_INT or (size > 1 and byte_at(data, first) == ZERO):
        return 0, WRONG
    return np.int64(number), at


@inlined
def is_null(data: Number, at: Number, end: Number) -> Any:
    return at + 4 <= end and word_at(data, at) & _FOUR_BYTES == _NULL


@compiled
def _after_word(data: Number, at: Number, end: Number) -> Number:
    """Where true, false or null ends; 0 where there is none of them."""
    word = word_at(data, at)
    if at + 4 <= end and (word & _FOUR_BYTES == _NULL or word & _FOUR_BYTES == _TRUE):
        return at + 4
    return at + 5 if at + 5 <= end and word & _FIVE_BYTES == _FALSE else 0


@compiled
def skip_value(data: Number, at: Number, end: Number) -> Number:
    """Where any value ends, nested ones included; negative where it is none, or nested too deep."""
    depth, objects = 0, np.uint64(0)  # a bit for each open bracket, the innermost lowest: 1 for an object
    while at >= 0:
        # A value begins here: a bracket, which is entered, or a scalar.
        is_first = at < end and (byte_at(data, at) == OPEN or byte_at(data, at) == _BRACKET)
        if is_first:
            if depth == _MAX_NESTED:
                return WRONG
            objects = (objects << np.uint64(1)) | np.uint64(byte_at(data, at) == OPEN)
            depth += 1
            at += 1
        else:
            at = _skip_scalar(data, at, end)
            if at < 0:
                return WRONG
        while depth > 0:
            at = skip_space(data, at, end)
            if at >= end or byte_at(data, at) != (CLOSE if objects & np.uint64(1) else _BRACKET_END):
                break
            at += 1
            depth -= 1
            objects >>= np.uint64(1)
            is_first = False
        if depth == 0:
            return at
        at = _next_element(data, at, end, objects & np.uint64(1), is_first)
    return WRONG


@inlined
def _next_element(data: Number, at: Number, end: Number, in_object: Any, is_first: Any) -> Number:
    """Where the next value inside a bracket begins: behind its comma, unless it is the first one, and behind the key of an object."""
    if not is_first:
        if at >= end or byte_at(data, at) != COMMA:
            return WRONG
        at = skip_space(data, at + 1, end)
    if not in_object:
        return at
    if at >= end or byte_at(data, at) != QUOTE:
        return WRONG
    at = _skip_text(data, at + 1, end)
    if at < 0:
        return WRONG
    at = skip_space(data, at, end)
    if at >= end or byte_at(data, at) != COLON:
        return WRONG
    return skip_space(data, at + 1, end)


@compiled
def _skip_text(data: Number, at: Number, end: Number) -> Number:
    """Where a text ends that may have escapes, after its quote; negative where it is none."""
    while at < end:
        byte = byte_at(data, at)
        if byte == QUOTE:
            return at + 1
        if byte < 0x20:
            return WRONG
        at += 1
        if byte != _BACKSLASH:
            continue
        if at >= end:
            return WRONG
        escape = byte_at(data, at)
        at += 1
        if escape == ord("u"):
            for i in range(4):
                digit = byte_at(data, at + i) | 0x20
                if not (ZERO <= byte_at(data, at + i) <= NINE or ord("a") <= digit <= ord("f")):
                    return WRONG
            at += 4
        elif not _is_escape(escape):
            return WRONG
    return WRONG


@compiled
def _is_escape(byte: Number) -> Any:
    return byte in (0x22, 0x5C, 0x2F, 0x62, 0x66, 0x6E, 0x72, 0x74)  # " \\ / b f n r t


@compiled
def _skip_scalar(data: Number, at: Number, end: Number) -> Number:
    """Where a text, a number, true, false or null ends; negative where it is none of them."""
    if at >= end:
        return WRONG
    if byte_at(data, at) == QUOTE:
        return _skip_text(data, at + 1, end)
    after = _after_word(data, at, end)
    if after > 0:
        return after
    if byte_at(data, at) == MINUS:
        at += 1
    first = at
    at = skip_digits(data, at, end)
    if at == first or (at - first > 1 and byte_at(data, first) == ZERO):
        return WRONG
    if at < end and byte_at(data, at) == DOT:
        first = at + 1
        at = skip_digits(data, first, end)
        if at == first:
            return WRONG
    if at < end and (byte_at(data, at) == _LOWER_E or byte_at(data, at) == _UPPER_E):
        at += 1
        if at < end and (byte_at(data, at) == PLUS or byte_at(data, at) == MINUS):
            at += 1
        first = at
        at = skip_digits(data, first, end)
        if at == first:
            return WRONG
    return at


@compiled
def skip_digits(data: Number, at: Number, end: Number) -> Number:
    while at < end and ZERO <= byte_at(data, at) <= NINE:
        at += 1
    return at


@compiled
def is_utf8(data: Number, at: Number, end: Number) -> Any:
    """Well-formed by the Unicode Standard, table 3-7: shortest forms, no surrogates."""
    while at < end:
        lead = byte_at(data, at)
        at += 1
        if lead < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            low, high = (0xA0 if lead == 0xE0 else 0x80), (0x9F if lead == 0xED else 0xBF)
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            low, high = (0x90 if lead == 0xF0 else 0x80), (0x8F if lead == 0xF4 else 0xBF)
        else:
            return False
        if at + more > end:
            return False
        for i in range(more):
            byte = byte_at(data, at + i)
            if byte < low or byte > high:
                return False
            low, high = 0x80, 0xBF
        at += more
    return True
