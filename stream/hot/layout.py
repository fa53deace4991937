"""Where the hot tier lies in Redis: each key, each field and each operation of its scripts is named here and nowhere else.

    …:h:HOUR         hash  CAMPAIGN:MM → packed rows of a closed minute; of a large one, instead:
                           CAMPAIGN:MM:r → the rows, CAMPAIGN:MM:D → their roll-up by dimension D (a, p, c, d)
                           CAMPAIGN+ → late rows of the hour: minute, length and packed rows, over and over
    …:o:MINUTE:C     hash  SEQUENCE → packed rows that one flush added to a minute, or that all flushes up to that one did;
                           of a large flush, instead: the rows in …:C:r, their roll-ups in …:C:D
    …:a:ADV          set   the advertiser's campaigns
    …:c              set   all campaigns of the shard
    …:span           hash  the fields of SpanField: what the shard holds

(… is `adclick:hot:v2:{sN}`, N is the shard; minute and hour are epoch ms, MM is the minute of the hour.) A row lies in one of these places, and moves from one
to another within one call: readers add up all of them. Writers use the scripts beside this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infra.clock import HOUR_MS, MINUTE_MS

_ROOT = "hot:v2"
"""What all keys begin with. A new number for each change of what packed rows are: workers then write all that they hold anew."""
ROWS = b":r"
"""What the name of a large cell's rows ends in."""
ROLLED = {"ad_id": b":a", "publisher_id": b":p", "country": b":c", "device": b":d"}
"""Dimensions that large cells are rolled up by, and what the names of their roll-ups end in."""
PARTS = (ROWS, *ROLLED.values())
LATE = b"+"


class SpanField:
    """Fields of a shard's span."""

    SEQUENCE = b"sequence"
    """The newest flush that is shown whole: the fence."""
    CLOSED = b"closed_ms"
    """The closing watermark."""
    PACKED = b"packed_ms"
    """Minutes that end at or before this have no rows by flush."""
    FROM = b"from_ms"
    """Minutes before this are not retained: dropped, or lost and never written again."""
    NEWEST = b"newest_ms"
    """The newest minute that has rows."""
    SENT = b"sent_ms"
    """When ingest sent what is shown by now."""
    CANARY = b"canary_ms"
    """When the last canary was sent that is shown, of the source partition of which it was sent first."""
    NEWEST_CANARY = b"newest_canary_ms"
    """The same of the source partition of which it was sent last."""
    MOVES = b"moves"
    """How many calls have moved rows between two flushes: packed cells, or kept rows that no worker holds. A Redis that has fewer than
    it had went back to an earlier point, also where its sequence is the same."""
    CALLS = b"calls"
    """Sequence of a flush that is half written, and how many of its calls were made: the next one happens only behind these."""
    EVENTS = b"events"
    """How many counted events flushes have shown since the span was made: for rates."""
    EVICTED = b"evicted"
    """Run id of each primary, and its count of evicted keys when the shard was last known to be whole."""


class Op:
    """Operations of `apply.lua`, and their arguments."""

    PUT_CELL = b"P"
    """hour key, cell, rows, roll-ups: write the cell of a minute that has no rows by flush."""
    MOVE_CELL = b"M"
    """The arguments of `Cell.move`: write a cell whole, in place of its rows by flush and of its late rows."""
    ADD_ROWS = b"F"
    """key of rows by flush, sequence, rows, roll-ups: what a flush adds to a minute."""
    REPLACE_ROWS = b"R"
    """The same: in place of what all flushes before have added."""
    ADD_LATE = b"L"
    """hour key, field of late rows, rows: append late rows of a packed minute."""
    ADD_CAMPAIGN = b"A"
    """key of an advertiser's campaigns, or of all campaigns; campaign."""


class Cell(NamedTuple):
    """Where the rows of a campaign and minute lie: in a field of the hour's hash once packed, by flush before that."""

    hour_key: bytes
    field: bytes
    open_key: bytes
    late_field: bytes
    minute: int
    """Of the hour."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys that writing the cell may touch."""
        return self.hour_key, *_names(self.open_key)

    def move(self, rows: bytes, roll_ups: bytes) -> tuple[bytes, ...]:
        """Arguments of MOVE_CELL, and of each cell of `pack.lua`."""
        return self.hour_key, self.field, rows, roll_ups, self.open_key, self.late_field, b"%d" % self.minute


@dataclass(frozen=True)
class ShardKeys:
    """The keys of one shard."""

    base: bytes

    @classmethod
    def of(cls, prefix: str, shard: int) -> ShardKeys:
        """The braces keep all keys of a shard in one slot of a cluster."""
        return cls(f"{prefix}{_ROOT}:{{s{shard}}}".encode())

    def all(self) -> str:
        """Pattern of all keys of the shard."""
        return f"{self.base.decode()}:*"

    @property
    def span(self) -> bytes:
        """Key of the span."""
        return self.base + b":span"

    def hour(self, start_ms: int) -> bytes:
        """Key of the cells of an hour."""
        return b"%b:h:%d" % (self.base, start_ms)

    def hours(self) -> str:
        """Pattern of all keys of hours."""
        return f"{self.base.decode()}:h:*"

    def hour_of(self, key: bytes) -> int:
        """The start of the hour whose key this is."""
        return int(key.rsplit(b":", 1)[1])

    def by_flush(self, minute_ms: int, campaign: int) -> bytes:
        """Key of the rows that flushes have added to a minute."""
        return b"%b:o:%d:%d" % (self.base, minute_ms, campaign)

    def all_by_flush(self) -> str:
        """Pattern of all keys of rows by flush."""
        return f"{self.base.decode()}:o:*"

    def minute_and_campaign(self, key: bytes) -> tuple[int, int]:
        """Those whose rows by flush, or roll-ups of them, have this key."""
        minute, campaign, *_ = key[len(self.base) + len(b":o:") :].split(b":")
        return int(minute), int(campaign)

    def advertiser(self, advertiser: int) -> bytes:
        """Key of an advertiser's campaigns."""
        return b"%b:a:%d" % (self.base, advertiser)

    def all_advertisers(self) -> str:
        """Pattern of the keys of the campaigns of all advertisers."""
        return f"{self.base.decode()}:a:*"

    @property
    def campaigns(self) -> bytes:
        """Key of all campaigns."""
        return self.base + b":c"

    def cell(self, minute_ms: int, campaign: int) -> Cell:
        """Where the rows of a campaign and minute lie."""
        hour_ms = minute_ms - minute_ms % HOUR_MS
        minute = (minute_ms - hour_ms) // MINUTE_MS
        field, open_key = cell_field(campaign, minute), self.by_flush(minute_ms, campaign)
        return Cell(self.hour(hour_ms), field, open_key, late_field(campaign), minute)


def touched_keys(operations: Iterable[Sequence[bytes]]) -> list[bytes]:
    """All keys that operations of a call touch, each once: a cluster runs a script only where all of them are."""
    keys = dict[bytes, None]()
    for operation, key, *arguments in operations:
        keys[key] = None
        if operation == Op.MOVE_CELL:
            keys |= dict.fromkeys(_names(arguments[3]))
        elif operation == Op.REPLACE_ROWS or (operation == Op.ADD_ROWS and arguments[2]):
            keys |= dict.fromkeys(_names(key))
    return list(keys)


def _names(open_key: bytes) -> tuple[bytes, ...]:
    """The keys of rows by flush: of small ones, and of the parts of large ones."""
    return open_key, *(open_key + part for part in PARTS)


def cell_field(campaign: int, minute: int) -> bytes:
    """The field of a cell; `minute` is that of the hour. With one of PARTS behind it: a part of a large cell."""
    return b"%d:%d" % (campaign, minute)


def late_field(campaign: int) -> bytes:
    """The field of a campaign's late rows of an hour."""
    return b"%d%b" % (campaign, LATE)


def lua_constants() -> str:
    """The names above as the scripts have them: SPAN.…, OP.…, and PARTS."""
    return "\n".join(
        [_table("SPAN", SpanField), _table("OP", Op), f"local PARTS = {{{', '.join(map(_quoted, PARTS))}}}"]
    )


def _table(name: str, names: type) -> str:
    entries = [f"{field} = {_quoted(value)}" for field, value in vars(names).items() if isinstance(value, bytes)]
    return f"local {name} = {{{', '.join(entries)}}}"


def _quoted(value: bytes) -> str:
    return f"'{value.decode()}'"
