"""The hot tier: minutes in Redis, a shard at a time.

    …hot:{sN}:h:HOUR      hash  CAMPAIGN:MM → packed rows of a minute when it had closed; when they are many, instead:
                                CAMPAIGN:MM:r → the rows; CAMPAIGN:MM:D → their roll-up by dimension D (a, p, c, d)
                                CAMPAIGN+ → what came after that: minute, length and packed rows, over and over
    …hot:{sN}:o:MINUTE:C  hash  SEQUENCE → packed rows that one flush added to a minute, or that all did up to there;
                                when they are many, instead: the rows in …:C:r, their roll-ups in …:C:D
    …hot:{sN}:a:ADV       set   the advertiser's campaigns
    …hot:{sN}:span        hash  sequence (the fence), closed_ms (closing watermark), packed_ms (minutes that end at or
                                before this have no rows by flush), from_ms (minutes before this are not held: never written
                                again after a loss, or dropped), newest_ms (the newest minute that has rows), sent_ms (when
                                ingest sent what is shown by now), evicted (run id of Redis and how many keys it had evicted
                                when this shard was last known to be whole)

(Minute and hour in epoch ms.) A row lies in one of these places, and moves from one to the other within one call: readers
add up what they find. A flush goes through a script that checks the fence, so what was written is never written again,
what an ousted owner still has in hand is refused, and a Redis that lost its memory is noticed.

A minute of live traffic that has closed is packed afterwards, a few cells a call, so that what is new need not wait for
it. Such a call says all that a cell holds at a sequence, takes the place of the rows up to there, and happens only at that
sequence: whoever makes it, and however often, is right.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from infra import faults
from infra.clock import HOUR_MS, MINUTE_MS
from infra.columns import Ints
from infra.errors import BadStatement, Denied
from infra.redis import Memory, Redis
from ingest.grouping import rows_of, sum_by_key
from ingest.partials import WINDOW, Partials
from stream import chunks
from stream.held import Window
from stream.sinks import rows
from stream.sinks.gathering import Gathering
from stream.sinks.hot_scripts import APPLY, DROP, MOVE_LATER, PACK
from stream.state import Changes, StageState

KEPT_BEYOND_MS = 2 * HOUR_MS
"""For so much longer minutes are kept than readers are promised: a range is aligned to an hour, or to a local day of 25, and its
question takes its time."""
Op = tuple[bytes, bytes, bytes, bytes, bytes]
# Only with the call that moves the sequence: what adds must happen once.
_ONCE = b"L"
# Rows of an open minute are few at first, and of a backlog they are not looked at before it closes.
_ROLLED_AFTER_S = 2.0
# Corrections of a cell are added to it until they are this many rows, and half of what it has.
_REWRITTEN_ROWS = 64
# A minute that was open for less came from a backlog. Much of it was never shown, so it is packed as it closes: nobody
# waits for what is fresh, and its rows are written once.
_LIVE_S = 10.0
_WAITING_MINUTES, _PACKED_BYTES = 5, 128 << 10
# Lua takes some thousands of arguments at most; a year that was replayed has 8,760 hours.
_HOURS_PER_CALL = 1_000


def base_key(prefix: str, shard: int) -> str:
    """What all keys of a shard begin with; the braces keep them in one slot of a cluster."""
    return f"{prefix}hot:{{s{shard}}}"


@dataclass
class _Closed:
    """A minute that is to be packed: its rows when it closed, and what flushes have brought since."""

    window: Window
    pieces: list[Partials]
    late: list[Partials] = field(default_factory=list)
    waiting: dict[int, None] | None = None
    """Campaigns whose cells are to be written, once the first ones were."""


class HotSink:
    """Writes one shard. Every method may raise Unavailable and can then simply be called again.

    `pack` may be called from another thread than the rest.
    """

    def __init__(self, redis: Redis, prefix: str, shard: int, hot_hours: int, ops_per_call: int = 20_000) -> None:
        self.ops_per_call = ops_per_call
        self._redis, self._base, self._hot_ms = redis, base_key(prefix, shard), hot_hours * HOUR_MS
        self._key = self._base.encode()
        self._script, self._pack_script = redis.script(APPLY), redis.script(PACK)
        self._move_script, self._drop_script = redis.script(MOVE_LATER), redis.script(DROP)
        self._known: set[tuple[int, int]] = set()
        self._opened: dict[int, float] = {}
        """Open minutes, and when rows of theirs were first shown."""
        self._to_pack: dict[int, _Closed] = {}
        self._prepared: tuple[int, list[Op]] | None = None
        self._shown = -1
        """The sequence that is in Redis, as far as it is known here."""
        self._whole_at = ""
        self._attached = False
        self._writing = threading.RLock()
        self._gathering = Gathering()
        self._added: dict[tuple[int, int], int] = {}
        """Rows that were added to a closed cell since it was last written whole."""

    def attach(self, state: StageState) -> None:
        """After a recovery: bring Redis to the state's sequence, from whatever it holds."""
        with self._writing:
            self._known.clear()
            self._gathering.keep([])
            self._prepared = None
            self._forget_if_evicted()
            found, packed = self._redis.call("HMGET", f"{self._base}:span", "sequence", "packed_ms")
            if found is not None and int(found) == state.sequence:
                self._shown, since = state.sequence, int(packed or 0)
                self._move_dropped(state)
                closed_ms = state.durable_closed_ms or 0
                self._opened = {w: 0.0 for w in state.windows if w + MINUTE_MS > closed_ms}
                self._to_pack = {
                    start: _Closed(window, list(window.pieces))
                    for start, window in state.windows.items()
                    if since < start + MINUTE_MS <= closed_ms
                }
            self.refresh(state)
            self._attached = True

    def mark_whole(self, memory: Memory) -> None:
        """Note that Redis has evicted nothing of this shard until `memory` was read. Cheap where nothing has changed since."""
        mark = f"{memory.run_id}:{memory.evicted_keys}"
        if self._attached and mark != self._whole_at:
            self._redis.call("HSET", f"{self._base}:span", "evicted", mark)
            self._whole_at = mark

    def forget(self) -> None:
        """Forget which minutes the shard retains: the next look writes them anew, and readers see the others as missing."""
        self._redis.call("DEL", f"{self._base}:span")
        self._whole_at = ""

    def _forget_if_evicted(self) -> None:
        """Keys may have been evicted while no worker watched."""
        mark = self._redis.call("HGET", f"{self._base}:span", "evicted")
        if mark is None:
            return
        with contextlib.suppress(BadStatement, Denied):  # where INFO is forbidden
            memory, (run_id, count) = self._redis.memory(), mark.decode().rsplit(":", 1)
            if memory.run_id == run_id and memory.evicted_keys > int(count):
                self.forget()

    def refresh(self, state: StageState) -> None:
        """Notice a Redis that is not where it was left: empty, or started from an older file."""
        span = f"{self._base}:span"
        with self._writing:
            found = self._redis.call("HGET", span, "sequence")
            if found is None or int(found) < state.sequence:
                # A flush is shown before the next one begins: Redis can only be one behind by itself.
                self._rewrite(state, lost=found is None or int(found) < state.sequence - 1)
            elif int(found) == state.sequence and state.shown_sent_ms:
                # Blocks without rows need no flush, but are shown, too.
                self._redis.call("HSET", span, "sent_ms", state.shown_sent_ms)

    def write(self, changes: Changes, state: StageState) -> None:
        """Show what a flush made durable. Safe to repeat."""
        with self._writing:
            if self._prepared is None or self._prepared[0] != changes.sequence:
                for start in changes.newly_closed:
                    if self._is_live(start):
                        self._to_pack[start] = _Closed(state.windows[start], list(state.windows[start].pieces))
                self._prepared = changes.sequence, list(self._ops(changes, state))
            # Half of these may have been applied: what is tried again must be the same, to the last byte.
            answer = self._apply(changes.sequence - 1, changes, state, self._prepared[1])
            if answer == -1:
                self._rewrite(state, lost=True)
                return
            self._prepared, self._shown = None, changes.sequence
            self._note(changes)

    def _is_live(self, start: int) -> bool:
        since = self._opened.get(start)
        waits = since is not None and time.monotonic() - since >= _LIVE_S
        return waits and len(self._to_pack) < _WAITING_MINUTES

    def _note(self, changes: Changes) -> None:
        """What is now shown, for those that wait to be packed."""
        now = time.monotonic()
        for start in changes.open:
            self._opened.setdefault(start, now)
        for start in changes.newly_closed:
            self._opened.pop(start, None)
        for start in changes.corrected:
            if start in self._to_pack:
                closed, rows = self._to_pack[start], _of_windows(changes.delta, [start])
                closed.late.append(rows)
                if closed.waiting is not None:
                    closed.waiting |= dict.fromkeys(rows["campaign_id"].tolist())

    def _rewrite(self, state: StageState, *, lost: bool) -> None:
        """Write all that is held. What a lost Redis knew beyond that is unknown from now on, never zero."""
        self._known.clear()
        self._added.clear()
        self._gathering.keep([])
        self._to_pack.clear()
        self._whole_at = ""
        self._move_dropped(state)
        changes = state.everything()
        since = ""
        if lost:
            since = str(0 if state.sequence == 0 else min(state.windows, default=state.durable_closed_ms or 0))
        ops = list(self._ops(changes, state, absolute=True))
        self._apply(-1, changes, state, ops, since)
        self._prepared, self._shown = None, state.sequence
        self._opened = dict.fromkeys(changes.open, 0.0)

    def _move_dropped(self, state: StageState) -> None:
        """Rows by flush of minutes that nobody holds any more, since no worker lived for long enough to pack them: put them with
        what came later. No flush touches such a minute again, so whoever does it, and however often, is right."""
        packed = self._redis.call("HGET", f"{self._base}:span", "packed_ms")
        if int(packed or 0) >= state.dropped_ms:
            return
        start = len(self._key) + len(b":o:")
        open_cells = {tuple(key[start:].split(b":")[:2]) for key in self._redis.scan_keys(f"{self._base}:o:*")}
        for minute, campaign in (map(int, cell) for cell in open_cells):
            if minute + MINUTE_MS <= state.dropped_ms:
                hour, cell = self._place(minute, campaign)
                field, number = cell.split(b":")
                self._move_script([self._open_key(minute, campaign), hour], [field + b"+", number])

    def _apply(self, expected: int, changes: Changes, state: StageState, ops: list[Op], from_ms: str = "") -> int:
        answer = 1
        closed = "" if changes.closed_ms is None else changes.closed_ms
        packed = min(self._to_pack, default=closed)
        newest = max(state.windows, default="")
        written, once = [op for op in ops if op[0] != _ONCE], [op for op in ops if op[0] == _ONCE]
        pages = [written[start : start + self.ops_per_call] for start in range(0, len(written), self.ops_per_call)]
        for number, page in enumerate(pages or [[]], start=1):
            last = "1" if number >= len(pages) else "0"
            flat = [x for op in (page + once if last == "1" else page) for x in op]
            told = [str(expected), changes.sequence, last, closed, packed, from_ms, newest, state.shown_sent_ms or ""]
            answer = int(self._script([f"{self._base}:span"], [*told, *flat]))
            if answer != 1:
                break
            faults.point("hot.written" if last == "1" else "hot.half")
        return answer

    def _ops(self, changes: Changes, state: StageState, *, absolute: bool = False) -> Iterator[Op]:
        """What must be written. `absolute`: open rows replace what is there, instead of adding to it."""
        yield from self._advertisers(changes.delta)
        self._gathering.keep({*self._opened, *changes.open})
        packed = [state.windows[w] for w in sorted(changes.newly_closed) if w not in self._to_pack]
        for (window, campaign), value, rolls in self._cells([w.together(list(w.pieces)) for w in packed]):
            op = b"M" if absolute or window in self._opened else b"P"
            yield op, *self._place(window, campaign), value, rolls
        corrected = [w for w in changes.corrected if w not in self._to_pack]
        if corrected:
            yield from self._corrections(_of_windows(changes.delta, corrected), state)
        added = [*changes.open, *(w for w in (*changes.newly_closed, *changes.corrected) if w in self._to_pack)]
        op, sequence, soon = b"R" if absolute else b"F", b"%d" % changes.sequence, time.monotonic() - _ROLLED_AFTER_S
        for rolled in (True, False):
            some = [w for w in added if rolled == (absolute or self._opened.get(w, math.inf) <= soon)]
            due: dict[int, list[int]] = {}
            cells = self._cells([_of_windows(changes.delta, some)] if some else [], rolled=rolled)
            for (window, campaign), value, rolls in cells:
                if rolled and op == b"F" and window in changes.open and self._gathering.due(window, campaign, value):
                    due.setdefault(window, []).append(campaign)
                else:
                    yield op, self._open_key(window, campaign), sequence, value, rolls
            whole = [state.windows[w].of(np.array(campaigns), whole=True) for w, campaigns in due.items()]
            for (window, campaign), value, rolls in self._cells(whole):
                self._gathering.gathered(window, campaign, value)
                yield b"R", self._open_key(window, campaign), sequence, value, rolls

    def _corrections(self, late: Partials, state: StageState) -> Iterator[Op]:
        """Rows that came for packed minutes: added to their cells, which are written whole when that gets too much."""
        self._added = {cell: n for cell, n in self._added.items() if cell[0] in state.windows}
        full: dict[int, list[int]] = {}
        for (window, campaign), value, _ in self._cells([late], rolled=False):
            added = self._added.get((window, campaign), 0) + rows.count(value)
            if added > _REWRITTEN_ROWS and 2 * added > state.windows[window].count(campaign):
                full.setdefault(window, []).append(campaign)
                continue
            self._added[window, campaign] = added
            key, field = self._place(window, campaign)
            later = field.split(b":")[0] + b"+"
            yield b"L", key, later, rows.later(window % HOUR_MS // MINUTE_MS, value), b""
        whole = [state.windows[w].of(np.array(campaigns), whole=True) for w, campaigns in full.items()]
        for (window, campaign), value, rolls in self._cells(whole):
            self._added.pop((window, campaign), None)
            yield b"M", *self._place(window, campaign), value, rolls

    # -- packing --------------------------------------------------------------------------------------------

    @property
    def packs(self) -> bool:
        """Whether a closed minute waits for being packed."""
        return bool(self._to_pack)

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Pack the oldest minute that waits, a few cells a call. Raises Unavailable."""
        with self._writing:
            if not self._to_pack:
                return
            start = min(self._to_pack)
            closed = self._to_pack[start]
        held = closed.window.together(closed.pieces)
        closed.pieces = [held]
        values = {campaign: (value, rolls) for (_, campaign), value, rolls in self._cells([held])}
        with self._writing:
            late = (campaign for part in closed.late for campaign in part["campaign_id"].tolist())
            closed.waiting = dict.fromkeys((*values, *late))
        while not given_up():
            with self._writing:
                # A flush that was half written goes first.
                if self._to_pack.get(start) is not closed or self._prepared is not None:
                    return
                if not closed.waiting:
                    del self._to_pack[start]
                    return
                if not self._pack_some(start, closed, held, values):
                    return

    def _pack_some(self, start: int, closed: _Closed, held: Partials, values: dict[int, tuple[bytes, bytes]]) -> bool:
        """One call; whether Redis is still where this worker is."""
        assert closed.waiting is not None
        late = Partials.joined(closed.late) if closed.late else chunks.empty()
        again, flat, done, size = set(late["campaign_id"].tolist()), list[bytes](), 0, 0
        for campaign in islice(closed.waiting, self.ops_per_call):
            value, rolls = values.get(campaign, (b"", b""))
            if campaign in again:
                wanted = np.array([campaign])
                found = Partials.joined([_of_campaign(held, wanted), _of_campaign(late, wanted)])
                value, rolls = next((v, r) for _, v, r in self._cells([found]))
            flat += [*self._place(start, campaign), value, rolls]
            done, size = done + 1, size + len(value)
            if size > _PACKED_BYTES:
                break
        if int(self._pack_script([f"{self._base}:span"], [self._shown, *flat])) != 1:
            return False
        faults.point("hot.packed")
        for campaign in list(islice(closed.waiting, done)):
            del closed.waiting[campaign]
        return True

    # -- ops ------------------------------------------------------------------------------------------------

    def _cells(self, parts: list[Partials], *, rolled: bool = True) -> Iterator[tuple[tuple[int, int], bytes, bytes]]:
        if parts:
            yield from zip(*rows.pack(Partials.joined(parts), rolled=rolled), strict=True)

    def _place(self, window: int, campaign: int) -> tuple[bytes, bytes]:
        """Key and field of a cell."""
        hour = window - window % HOUR_MS
        return b"%b:h:%d" % (self._key, hour), b"%d:%d" % (campaign, (window - hour) // MINUTE_MS)

    def _open_key(self, window: int, campaign: int) -> bytes:
        return b"%b:o:%d:%d" % (self._key, window, campaign)

    def _advertisers(self, delta: Partials) -> Iterator[Op]:
        found = rows_of([delta["advertiser_id"], delta["campaign_id"]])
        first, _ = sum_by_key(found, np.empty((len(found), 0), np.int64))
        pairs = set(map(tuple, found[first].tolist()))
        for advertiser, campaign in pairs - self._known:
            yield b"A", b"%b:a:%d" % (self._key, advertiser), b"%d" % campaign, b"", b""
        self._known |= pairs

    def expire(self, now_ms: int, warm_border_ms: int | None) -> int:
        """Drop hours older than the tier holds, once ClickHouse has them; returns how many.

        `warm_border_ms`: before this ClickHouse has the hours of *every* shard; None: of some shard it has none. An hour that this
        shard drops while another's is not there yet could be read from neither tier.
        """
        if warm_border_ms is None:
            return 0
        until = min(warm_border_ms, now_ms - self._hot_ms - KEPT_BEYOND_MS) // HOUR_MS * HOUR_MS
        starts = sorted(int(key.rsplit(b":", 1)[1]) for key in self._redis.scan_keys(f"{self._base}:h:*"))
        old, dropped = [start for start in starts if start < until], 0
        # Oldest first: what is left after a call that fails is still one stretch.
        for page in (old[at : at + _HOURS_PER_CALL] for at in range(0, len(old), _HOURS_PER_CALL)):
            keys = [f"{self._base}:span", *(f"{self._base}:h:{start}" for start in page)]
            dropped += int(self._drop_script(keys, [page[-1] + HOUR_MS]))
        return dropped


def _of_campaign(rows: Partials, campaign: Ints) -> Partials:
    return rows.take(np.isin(rows["campaign_id"], campaign))


def _of_windows(rows: Partials, windows: list[int]) -> Partials:
    kept = np.isin(rows[WINDOW], windows)
    return rows if kept.all() else rows.take(kept)
