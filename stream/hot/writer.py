"""Writes the hot tier: minutes in Redis, a shard at a time. Where rows lie says `layout.py`.

A flush goes through a script that checks the sequence that Redis is at. So what was written is not written again, a flush that an
ousted owner still has in hand is refused, and a Redis that lost its memory is noticed.

A minute of live traffic that has closed is packed afterwards (`packer.py`): until then its late rows lie beside the others by
flush. A minute from a backlog is packed as it closes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from infra import faults
from infra.clock import HOUR_MS, MINUTE_MS
from infra.columnar.grouping import interleave, sum_by_key
from infra.errors import BadStatement, Denied, Unavailable
from infra.redis.client import Memory, Redis
from ingest.canary.arrivals import NO_CANARIES, Canaries
from ingest.partials import WINDOW, Partials
from stream.hot import cell_format, scripts
from stream.hot.gathering import Gathering
from stream.hot.layout import Op, ShardKeys, SpanField, touched_keys
from stream.hot.limits import DEFAULT_LIMITS, HotLimits
from stream.hot.packer import ClosedMinute, Packer, Todo
from stream.published import Publication
from stream.window import Window

KEPT_BEYOND_MS = 2 * HOUR_MS
"""For so much longer minutes are kept than readers are promised: a range is aligned to an hour, or to a local day of 25, and its
question takes its time."""
Operation = tuple[bytes, ...]
"""One of Op, and its arguments."""
# Lua takes some thousands of arguments at most; a year that was replayed has 8,760 hours.
_HOURS_PER_CALL = 1_000
_APPLIED, _BEHIND = 1, -1


class HotSink:
    """Writes one shard. Every method may raise Unavailable and can then simply be called again.

    Used by the flush's thread, but for `packs` and `pack`, and for the upkeep: `mark_whole`, `forget` and `expire`.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        shard: int,
        hot_hours: int,
        ops_per_call: int = 20_000,
        limits: HotLimits = DEFAULT_LIMITS,
    ) -> None:
        self.keys, self.ops_per_call = ShardKeys.of(prefix, shard), ops_per_call
        self.packer = Packer(redis, self.keys, ops_per_call, limits)
        self._limits = limits
        self._redis, self._hot_ms = redis, hot_hours * HOUR_MS
        self._apply_script = scripts.apply_flush(redis)
        self._move_late_script, self._drop_script = scripts.move_late(redis), scripts.drop_hours(redis)
        self._shown = -1
        """The sequence that is in Redis, as far as it is known here."""
        self._prepared: tuple[int, list[list[Operation]]] | None = None
        """A flush that is being written, and the operations of each call."""
        self._advertisers: set[tuple[int, int]] = set()
        """(advertiser, campaign) that are known to be in Redis."""
        self._opened: dict[int, float] = {}
        """Open minutes, and when rows of theirs were first shown."""
        self._to_pack: dict[int, ClosedMinute] = {}
        """Closed minutes that are left to the packer, with all rows that are shown."""
        self._numbers = itertools.count()
        self._gathering = Gathering(limits)
        self._added: dict[tuple[int, int], int] = {}
        """Rows that were added to a packed cell since it was last written whole, by minute and campaign."""
        self._attached, self._whole_at = False, ""

    # -- after a recovery, or a loss ------------------------------------------------------------------------

    def attach(self, snapshot: Publication) -> None:
        """Bring Redis to the snapshot's sequence, from whatever it holds."""
        self._forget_if_evicted()
        self._list_campaigns()
        sequence, packed_ms, moves, went_back = self._read_span()
        self._reset()
        if sequence == snapshot.sequence and not went_back:
            self._resume(snapshot, packed_ms)
        elif sequence is None or sequence <= snapshot.sequence:
            # A flush is shown before the next one begins: Redis can only be one behind by itself.
            lost = sequence is None or sequence < snapshot.sequence - 1
            self._rewrite(snapshot, packed_ms, lost=lost)
            # Only now: an attempt that failed half-way must find again that Redis went back.
            self.packer.moves = moves
        self._attached = True

    def _read_span(self) -> tuple[int | None, int, int, bool]:
        """The shard's sequence, None where Redis has none; `packed_ms`; moves; and whether there are fewer of these than are known: Redis
        then went back to an earlier point."""
        # Before Redis is asked: the packer goes on meanwhile.
        known_moves = self.packer.moves
        fields = (SpanField.SEQUENCE, SpanField.PACKED, SpanField.MOVES)
        sequence, packed_ms, moves = self._redis.call("HMGET", self.keys.span, *fields)
        count = int(moves or 0)
        return None if sequence is None else int(sequence), int(packed_ms or 0), count, count < known_moves

    def _list_campaigns(self) -> None:
        """List all campaigns, where earlier versions have listed them by advertiser alone."""
        if not self._redis.call("EXISTS", self.keys.campaigns):
            lists = self._redis.scan_keys(self.keys.all_advertisers())
            campaigns = set().union(*self._redis.pipeline([("SMEMBERS", key) for key in lists]))
            if campaigns:
                # All at once: a list that is there is whole.
                self._redis.call("SADD", self.keys.campaigns, *campaigns)

    def _reset(self) -> None:
        """Forget what is in Redis, and what is under way."""
        self._prepared = None
        self._advertisers.clear()
        self._added.clear()
        self._gathering.keep([])
        self._to_pack = {}
        self.packer.hand_over(Todo(-1, {}))

    def _resume(self, snapshot: Publication, packed_ms: int) -> None:
        """Go on where a predecessor stopped: its open minutes are shown, and the minutes that it did not pack are to be packed."""
        self._keep_unheld_rows(snapshot, packed_ms)
        self._shown, self._opened = snapshot.sequence, {w.start: 0.0 for w in snapshot.open}
        self._leave_to_packer(w for w in snapshot.newly_closed if packed_ms < w.start + MINUTE_MS)
        self.packer.hand_over(Todo(self._shown, dict(self._to_pack)))

    def _rewrite(self, snapshot: Publication, packed_ms: int, *, lost: bool) -> None:
        """Write all that is held. What a lost Redis knew beyond that is unknown from now on, never zero."""
        self._whole_at = ""
        self._keep_unheld_rows(snapshot, packed_ms)
        from_ms = ""
        if lost:
            from_ms = str(snapshot.dropped_ms // MINUTE_MS * MINUTE_MS)
        if self._apply(-1, snapshot, self._calls(self._whole_windows(snapshot), []), from_ms) == _BEHIND:
            raise Unavailable("Redis lost a part of a shard while that was written anew", backend="redis")
        self._shown, self._opened = snapshot.sequence, {w.start: 0.0 for w in snapshot.open}

    def _keep_unheld_rows(self, snapshot: Publication, packed_ms: int) -> None:
        """Rows by flush of minutes that no state holds any more, since no worker lived for long enough to pack them: put them with
        the late rows. No flush touches such a minute again, so it does not matter which worker does it, and how often."""
        if packed_ms >= snapshot.dropped_ms:
            return
        open_cells = {self.keys.minute_and_campaign(key) for key in self._redis.scan_keys(self.keys.all_by_flush())}
        for minute_ms, campaign in open_cells:
            if minute_ms + MINUTE_MS <= snapshot.dropped_ms:
                cell = self.keys.cell(minute_ms, campaign)
                parts = (key for key in cell.keys if key not in (cell.open_key, cell.hour_key))
                keys = [self.keys.span, cell.open_key, cell.hour_key, *parts]
                moves = int(self._move_late_script(keys, [cell.late_field, cell.minute]))
                self.packer.moves = max(self.packer.moves, moves)

    def _whole_windows(self, snapshot: Publication) -> Iterator[Operation]:
        """All rows of all windows, in place of what is there."""
        sequence = b"%d" % snapshot.sequence
        for window in (*snapshot.newly_closed, *snapshot.open):
            for part in window.parts:
                yield from self._campaigns_of_advertisers(part)
        for window in snapshot.newly_closed:
            for (minute_ms, campaign), rows, rolls in self._rolled_cells([window.whole()]):
                yield Op.MOVE_CELL, *self.keys.cell(minute_ms, campaign).move(rows, rolls)
        for window in snapshot.open:
            for (minute_ms, campaign), rows, rolls in self._rolled_cells([window.whole()]):
                yield Op.REPLACE_ROWS, self.keys.by_flush(minute_ms, campaign), sequence, rows, rolls

    # -- a flush --------------------------------------------------------------------------------------------

    def prepare(self, published: Publication) -> None:
        """Lay out the calls that show a flush, unless that is done."""
        if self._prepared is None or self._prepared[0] != published.sequence:
            self._prepared = published.sequence, self._lay_out(published)

    def write(self, published: Publication) -> bool:
        """Show what a flush made durable; False where Redis has lost some of what it was given: it needs a snapshot."""
        self.prepare(published)
        assert self._prepared is not None
        # Half of the calls may have been made: those that are tried again must be the same, to the last byte.
        if self._apply(published.sequence - 1, published, self._prepared[1]) == _BEHIND:
            return False
        self._prepared, self._shown = None, published.sequence
        self._note_shown(published)
        return True

    def _lay_out(self, published: Publication) -> list[list[Operation]]:
        """The operations of each call."""
        self._to_pack = {s: minute for s, minute in self._to_pack.items() if not self.packer.has_packed(minute)}
        live = itertools.islice(
            filter(self._is_live, published.newly_closed), max(0, self._limits.waiting_minutes - len(self._to_pack))
        )
        self._leave_to_packer(live)
        corrections = list(self._corrections(published))
        anywhere = itertools.chain(
            self._campaigns_of_advertisers(published.delta),
            self._closed_cells(published),
            self._rows_by_flush(published),
            (operation for operation in corrections if operation[0] != Op.ADD_LATE),
        )
        return self._calls(anywhere, [operation for operation in corrections if operation[0] == Op.ADD_LATE])

    def _is_live(self, window: Window) -> bool:
        shown_at = self._opened.get(window.start)
        return shown_at is not None and time.monotonic() - shown_at >= self._limits.live_after_s

    def _leave_to_packer(self, windows: Iterable[Window]) -> None:
        self._to_pack |= {window.start: ClosedMinute(next(self._numbers), window) for window in windows}

    def _calls(self, operations: Iterable[Operation], at_last: list[Operation]) -> list[list[Operation]]:
        """Operations in pages, one a call; those `at_last` only with the call that moves the sequence: they must happen once."""
        remaining, pages = iter(operations), list[list[Operation]]()
        while page := list(itertools.islice(remaining, self.ops_per_call)):
            pages.append(page)
        return [*pages[:-1], [*(pages[-1] if pages else []), *at_last]]

    def _apply(
        self, expected: int, published: Publication, calls: Sequence[Sequence[Operation]], from_ms: str = ""
    ) -> int:
        """Make the calls of a flush; returns the script's answer to the last one that was made."""
        closed_ms = "" if published.closed_ms is None else published.closed_ms
        packed_ms = min(self._to_pack, default=closed_ms)
        newest_ms = "" if published.newest_ms is None else published.newest_ms
        answer = _APPLIED
        for number, operations in enumerate(calls, start=1):
            is_last = number == len(calls)
            marks = [closed_ms, packed_ms, from_ms, newest_ms, published.sent_ms or "", published.events]
            marks += [published.canaries.oldest_ms or "", published.canaries.newest_ms or ""]
            arguments = [
                expected, self.packer.moves, published.sequence, number, int(is_last), *marks, *itertools.chain(*operations)
            ]  # fmt: skip
            answer = int(self._apply_script([self.keys.span, *touched_keys(operations)], arguments))
            if answer != _APPLIED:
                break
            faults.point("hot.written" if is_last else "hot.half")
        return answer

    def _note_shown(self, published: Publication) -> None:
        """A flush is shown: what follows from that for the next ones, and for the packer."""
        now = time.monotonic()
        for window in published.open:
            self._opened.setdefault(window.start, now)
        for window in published.newly_closed:
            self._opened.pop(window.start, None)
        for window in published.corrected:
            if window.start in self._to_pack:
                rows = _of_windows(published.delta, [window.start])
                self._to_pack[window.start] = self._to_pack[window.start].with_late(rows)
        self.packer.hand_over(Todo(published.sequence, dict(self._to_pack)))

    # -- operations of a flush ------------------------------------------------------------------------------

    def _campaigns_of_advertisers(self, rows: Partials) -> Iterator[Operation]:
        pairs = interleave([rows["advertiser_id"], rows["campaign_id"]])
        first, _ = sum_by_key(pairs, np.empty((len(pairs), 0), np.int64))
        distinct = set(map(tuple, pairs[first].tolist()))
        for advertiser, campaign in distinct - self._advertisers:
            yield Op.ADD_CAMPAIGN, self.keys.advertiser(advertiser), b"%d" % campaign
            yield Op.ADD_CAMPAIGN, self.keys.campaigns, b"%d" % campaign
        self._advertisers |= distinct

    def _closed_cells(self, published: Publication) -> Iterator[Operation]:
        """Cells of minutes that have closed and are not left to the packer."""
        closed = [window.whole() for window in published.newly_closed if window.start not in self._to_pack]
        for (minute_ms, campaign), rows, rolls in self._rolled_cells(closed):
            cell = self.keys.cell(minute_ms, campaign)
            if minute_ms in self._opened:
                yield Op.MOVE_CELL, *cell.move(rows, rolls)
            else:
                yield Op.PUT_CELL, cell.hour_key, cell.field, rows, rolls

    def _corrections(self, published: Publication) -> Iterator[Operation]:
        """Late rows of packed minutes: added to their cells, which are written whole when that gets too much."""
        windows = {w.start: w for w in published.corrected if w.start not in self._to_pack}
        if not windows:
            return
        self._added = {cell: n for cell, n in self._added.items() if cell[0] + MINUTE_MS > published.dropped_ms}
        outgrown: dict[int, list[int]] = {}
        for (minute_ms, campaign), rows, _ in _cells([_of_windows(published.delta, list(windows))]):
            added = self._added.get((minute_ms, campaign), 0) + cell_format.count(rows)
            if added > self._limits.rewrite_above_rows and 2 * added > windows[minute_ms].count(campaign):
                outgrown.setdefault(minute_ms, []).append(campaign)
                continue
            self._added[minute_ms, campaign] = added
            cell = self.keys.cell(minute_ms, campaign)
            yield Op.ADD_LATE, cell.hour_key, cell.late_field, cell_format.late_entry(cell.minute, rows)
        for (minute_ms, campaign), rows, rolls in self._rolled_cells(_whole_rows(windows, outgrown)):
            self._added.pop((minute_ms, campaign), None)
            yield Op.MOVE_CELL, *self.keys.cell(minute_ms, campaign).move(rows, rolls)

    def _rows_by_flush(self, published: Publication) -> Iterator[Operation]:
        """Rows of open minutes, and of closed ones that are left to the packer."""
        opened = {w.start: w for w in published.open}
        self._gathering.keep({*self._opened, *opened})
        waiting = [w.start for w in (*published.newly_closed, *published.corrected) if w.start in self._to_pack]
        starts, rolled_before = [*opened, *waiting], time.monotonic() - self._limits.roll_up_after_s
        old = {start for start in starts if self._opened.get(start, math.inf) <= rolled_before}
        young, sequence = [start for start in starts if start not in old], b"%d" % published.sequence
        yield from self._gathered_rows(published, sorted(old), opened)
        for (minute_ms, campaign), rows, rolls in _cells([_of_windows(published.delta, young)]):
            yield Op.ADD_ROWS, self.keys.by_flush(minute_ms, campaign), sequence, rows, rolls

    def _gathered_rows(
        self, published: Publication, starts: list[int], opened: dict[int, Window]
    ) -> Iterator[Operation]:
        """Rows of minutes that are shown for a while, with roll-ups; cells that got many pieces are written whole instead."""
        due, sequence = dict[int, list[int]](), b"%d" % published.sequence
        for (minute_ms, campaign), rows, rolls in self._rolled_cells([_of_windows(published.delta, starts)]):
            if minute_ms in opened and self._gathering.due(minute_ms, campaign, rows):
                due.setdefault(minute_ms, []).append(campaign)
            else:
                yield Op.ADD_ROWS, self.keys.by_flush(minute_ms, campaign), sequence, rows, rolls
        for (minute_ms, campaign), rows, rolls in self._rolled_cells(_whole_rows(opened, due)):
            self._gathering.gathered(minute_ms, campaign, rows)
            yield Op.REPLACE_ROWS, self.keys.by_flush(minute_ms, campaign), sequence, rows, rolls

    def _rolled_cells(self, parts: Sequence[Partials]) -> Iterator[tuple[tuple[int, int], bytes, bytes]]:
        """Cells whose large ones have roll-ups."""
        return _cells(parts, self._limits.roll_up_above_rows)

    # -- packing --------------------------------------------------------------------------------------------

    @property
    def packs(self) -> bool:
        """Whether a closed minute waits for being packed."""
        return self.packer.has_work

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Pack the oldest minute that waits. Flushes go on meanwhile."""
        self.packer.pack(given_up)

    # -- upkeep ---------------------------------------------------------------------------------------------

    def refresh(self, sent_ms: int, canaries: Canaries = NO_CANARIES) -> bool:
        """Whether Redis is still where it was left; it is not when it came back empty, or from an older file. `sent_ms`: when the
        newest block was sent of which all is shown; 0 if that is not known. `canaries`: the last ones before that."""
        sequence, _, _, went_back = self._read_span()
        if sequence is None or sequence < self._shown or went_back:
            return False
        if sequence == self._shown and sent_ms:
            # Blocks without rows need no flush, but are shown, too.
            marks: list[bytes | int] = [SpanField.SENT, sent_ms]
            if canaries.newest_ms:
                marks += [SpanField.CANARY, canaries.oldest_ms, SpanField.NEWEST_CANARY, canaries.newest_ms]
            self._redis.call("HSET", self.keys.span, *marks)
        return True

    def mark_whole(self, memories: Iterable[Memory]) -> None:
        """Note that no primary of Redis has evicted anything until `memories` were read. Cheap where nothing has changed since."""
        mark = ",".join(sorted(f"{memory.run_id}:{memory.evicted_keys}" for memory in memories))
        if self._attached and mark != self._whole_at:
            self._redis.call("HSET", self.keys.span, SpanField.EVICTED, mark)
            self._whole_at = mark

    def forget(self) -> None:
        """Forget which minutes the shard retains: the next look writes them anew, and readers see the others as missing."""
        self._redis.call("DEL", self.keys.span)
        self._whole_at = ""

    def _forget_if_evicted(self) -> None:
        """Keys may have been evicted while no worker watched."""
        mark = self._redis.call("HGET", self.keys.span, SpanField.EVICTED)
        if mark is None:
            return
        counts = dict(part.rsplit(":", 1) for part in mark.decode().split(","))
        with contextlib.suppress(BadStatement, Denied):  # where INFO is forbidden
            if any(m.run_id in counts and m.evicted_keys > int(counts[m.run_id]) for m in self._redis.memories()):
                self.forget()

    def expire(self, now_ms: int, warm_border_ms: int | None) -> int:
        """Drop hours older than the tier holds, once ClickHouse has them; returns how many.

        `warm_border_ms`: before this ClickHouse has the hours of *every* shard; None: of some shard it has none. An hour that this
        shard drops while another's is not there yet could be read from neither tier.
        """
        if warm_border_ms is None:
            return 0
        until = min(warm_border_ms, now_ms - self._hot_ms - KEPT_BEYOND_MS) // HOUR_MS * HOUR_MS
        starts = sorted(map(self.keys.hour_of, self._redis.scan_keys(self.keys.hours())))
        old, dropped = [start for start in starts if start < until], 0
        # Oldest first: what is left after a call that fails is still one stretch.
        for page in (old[at : at + _HOURS_PER_CALL] for at in range(0, len(old), _HOURS_PER_CALL)):
            keys = [self.keys.span, *map(self.keys.hour, page)]
            dropped += int(self._drop_script(keys, [page[-1] + HOUR_MS]))
        return dropped


def _cells(
    parts: Sequence[Partials], roll_up_above_rows: int | None = None
) -> Iterator[tuple[tuple[int, int], bytes, bytes]]:
    """(minute, campaign), packed rows and roll-ups of each cell."""
    if any(map(len, parts)):
        yield from zip(*cell_format.pack(Partials.joined(parts), roll_up_above_rows), strict=True)


def _whole_rows(windows: dict[int, Window], campaigns: dict[int, list[int]]) -> list[Partials]:
    """All rows of some campaigns of each window, by its start; one for each key."""
    return [windows[start].of(np.array(numbers), whole=True) for start, numbers in campaigns.items()]


def _of_windows(rows: Partials, starts: list[int]) -> Partials:
    kept = np.isin(rows[WINDOW], starts)
    return rows if kept.all() else rows.take(kept)
