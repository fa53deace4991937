"""Looking at dead letters page by page, newest first, and how many there were by hour and reason.

Bounded, whatever is in the topic: a look reads so many letters and so many seconds at most, and keeps the beginning of each value.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.clock import DAY_MS, HOUR_MS
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import offset_at, read_stretches
from infra.settings import Settings
from ingest.dead_letters.letters import Letter, letter_of
from ingest.dead_letters.sent import SentLetters, value_digest
from ingest.decoding import json_fields

SHOWN_BYTES = 4 << 10
COUNTED_DAYS = 7
_FIRST_WINDOW, _MOST_READ = 200, 20_000
_SECONDS = 3.0
# Of a partition, when a router looks for the first time.
_MOST_COUNTED = 50_000


@dataclass(frozen=True)
class ListedLetter:
    """A letter with the beginning of its value; `size` and `digest` are those of all of it; no size for a null value. `event_id`: its
    valid id."""

    letter: Letter
    size: int | None
    event_id: str | None
    digest: str
    partition: int
    offset: int


@dataclass(frozen=True)
class LetterPage:
    """The newest letters below some offsets. `ends`: where the next page begins, by partition; None after the last page."""

    letters: list[ListedLetter]
    ends: dict[int, int] | None


def list_letters(
    settings: Settings, reason: str | None, since_ms: int | None, limit: int, ends: Mapping[int, int] | None = None
) -> LetterPage:
    """A page of letters. It has fewer than `limit`, though more follow, where few of those that were looked at have the reason. Raises
    Unavailable."""
    topic, count = settings.topic(topics.DEAD_LETTERS), settings.event_partitions
    admin = Admin(settings.kafka_connection)
    if topic not in admin.partitions():
        return LetterPage([], None)
    count = min(count, admin.partitions()[topic])
    lows = dict(enumerate(admin.starts(topic, count)))
    if since_ms is not None:
        lows = {p: max(low, offset_at(settings.kafka_connection, topic, p, since_ms)) for p, low in lows.items()}
    highs = dict(enumerate(admin.ends(topic, count)))
    tops = {p: max(lows[p], min(high, (ends or {}).get(p, high))) for p, high in highs.items()}
    return _read_page(settings, topic, lows, tops, reason, limit)


def _read_page(
    settings: Settings, topic: str, lows: dict[int, int], tops: dict[int, int], reason: str | None, limit: int
) -> LetterPage:
    by_partition: dict[int, list[ListedLetter]] = {p: [] for p in tops}
    bottoms, deadline = dict(tops), time.monotonic() + _SECONDS
    read, window = 0, max(_FIRST_WINDOW, limit)
    while sum(map(len, by_partition.values())) < limit and bottoms != lows and read < _MOST_READ:
        stretches = {p: (max(lows[p], bottom - window), bottom) for p, bottom in bottoms.items() if bottom > lows[p]}
        part: dict[int, list[ListedLetter]] = {p: [] for p in stretches}

        def take(message: Any, part: dict[int, list[ListedLetter]] = part) -> None:
            listed = _listed(message)
            if reason in (None, listed.letter.headers.get("reason")):
                part[listed.partition].append(listed)

        seconds = max(0.0, deadline - time.monotonic())
        reached = read_stretches(settings.kafka_connection, topic, stretches, take, seconds)
        # A stretch that was not read to its end is left out: the next page begins with it.
        done = [p for p, (_, stop) in stretches.items() if reached[p] >= stop]
        for p in done:
            by_partition[p] = part[p] + by_partition[p]
            read += stretches[p][1] - stretches[p][0]
            bottoms[p] = stretches[p][0]
        if len(done) < len(stretches):
            break
        window *= 4
    return _newest(by_partition, bottoms, lows, limit)


def _newest(
    by_partition: dict[int, list[ListedLetter]], bottoms: dict[int, int], lows: dict[int, int], limit: int
) -> LetterPage:
    """The newest letters, each partition's in its order, so that the next page begins where this one ends."""
    page, rest = list[ListedLetter](), {p: list(letters) for p, letters in by_partition.items()}
    while len(page) < limit and any(rest.values()):
        newest = max((letters[-1] for letters in rest.values() if letters), key=lambda listed: listed.letter.time_ms)
        page.append(rest[newest.partition].pop())
    ends = {p: letters[-1].offset + 1 if letters else bottoms[p] for p, letters in rest.items()}
    return LetterPage(page, None if all(ends[p] <= lows[p] for p in ends) else ends)


def _listed(message: Any) -> ListedLetter:
    letter = letter_of(message.partition(), message)
    value = letter.value
    kept = replace(letter, value=None if value is None else value[:SHOWN_BYTES])
    size = None if value is None else len(value)
    return ListedLetter(
        kept, size, json_fields.valid_id(value), value_digest(value), message.partition(), message.offset()
    )


def read_letters_by_name(settings: Settings, names: Mapping[str, tuple[int, int]]) -> dict[str, Letter]:
    """The letters at these (partition, offset), whole, by name; those that are not there are left out. Raises Unavailable."""
    letters: dict[str, Letter] = {}
    topic, admin = settings.topic(topics.DEAD_LETTERS), Admin(settings.kafka_connection)
    count = min(settings.event_partitions, admin.partitions().get(topic, 0))
    if not count:
        return {}
    bounds = list(zip(admin.starts(topic, count), admin.ends(topic, count), strict=True))
    wanted = {(p, at): name for name, (p, at) in names.items() if p < count and bounds[p][0] <= at < bounds[p][1]}
    left = sorted(wanted)
    deadline = time.monotonic() + _SECONDS * 3
    while left and time.monotonic() < deadline:
        # The next one of each partition, and what follows it closely.
        stretches: dict[int, tuple[int, int]] = {}
        for p, offset in left:
            start, stop = stretches.get(p, (offset, offset))
            if offset - stop <= _FIRST_WINDOW:
                stretches[p] = (start, offset + 1)

        def take(message: Any) -> None:
            name = wanted.get((message.partition(), message.offset()))
            if name is not None:
                letters[name] = letter_of(message.partition(), message)

        read_stretches(settings.kafka_connection, topic, stretches, take, _SECONDS)
        left = [(p, offset) for p, offset in left if offset >= stretches[p][1]]
    return letters


class LetterCounts:
    """How many letters there were by hour and reason in the last days: each is read once by a router. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topic = settings, settings.topic(topics.DEAD_LETTERS)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[int, str]] = Counter()
        self._next: dict[int, int] = {}

    def read(self, now_ms: int) -> tuple[list[tuple[int, str, int]], bool]:
        """(hour, reason, count), the newest hour first; and whether all of the last days are counted. Raises Unavailable."""
        with self._lock:
            complete = self._catch_up(now_ms)
            oldest_ms = (now_ms - COUNTED_DAYS * DAY_MS) // HOUR_MS * HOUR_MS
            for key in [key for key in self._counts if key[0] < oldest_ms]:
                del self._counts[key]
            rows = sorted(
                ((hour, reason, n) for (hour, reason), n in self._counts.items()), key=lambda r: (-r[0], r[1])
            )
            return rows, complete

    def _catch_up(self, now_ms: int) -> bool:
        admin = Admin(self._settings.kafka_connection)
        count = min(self._settings.event_partitions, admin.partitions().get(self._topic, 0))
        if not count:
            return True
        ends = dict(enumerate(admin.ends(self._topic, count)))
        if any(self._next.get(p, 0) > end for p, end in ends.items()):  # the topic was made again
            self._counts.clear()
            self._next.clear()
        for p, end in ends.items():
            if p not in self._next:
                since = offset_at(self._settings.kafka_connection, self._topic, p, now_ms - COUNTED_DAYS * DAY_MS)
                self._next[p] = min(end, max(since, end - _MOST_COUNTED))
        oldest_ms = now_ms - COUNTED_DAYS * DAY_MS

        def take(message: Any) -> None:
            letter = letter_of(message.partition(), message)
            # A producer may stamp its messages as it likes, and what is of a far future would be kept for ever.
            if oldest_ms <= letter.time_ms <= now_ms + DAY_MS:
                self._counts[letter.time_ms // HOUR_MS * HOUR_MS, letter.headers.get("reason", "")] += 1

        stretches = {p: (self._next[p], end) for p, end in ends.items() if self._next[p] < end}
        if stretches:
            self._next |= read_stretches(self._settings.kafka_connection, self._topic, stretches, take, _SECONDS)
        return all(self._next[p] >= end for p, end in ends.items())


class SentIndex:
    """The marks of letters that were sent again: each is read once by a router. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topic = settings, settings.topic(topics.SENT_LETTERS)
        self._lock, self._marks, self._next = threading.Lock(), SentLetters(), 0

    def read(self) -> SentLetters:
        """All marks there are now. Raises Unavailable."""
        with self._lock:
            admin = Admin(self._settings.kafka_connection)
            if self._topic not in admin.partitions():
                return SentLetters()
            (end,) = admin.ends(self._topic, 1)
            if end < self._next:  # the topic was made again
                self._marks, self._next = SentLetters(), 0
            start = max(self._next, admin.starts(self._topic, 1)[0])
            if start < end:
                stretches = {0: (start, end)}
                self._next = read_stretches(
                    self._settings.kafka_connection, self._topic, stretches, self._marks.add_message, _SECONDS
                )[0]
            return self._marks
