"""The hot tier: minutes in Redis, a shard at a time.

    …hot:{sN}:h:HOUR      hash  CAMPAIGN:MM → packed rows of a minute when it closed
                                CAMPAIGN+ → what came after that: minute, length and packed rows, over and over
    …hot:{sN}:o:MINUTE:C  hash  SEQUENCE → packed rows that one flush added to an open minute
    …hot:{sN}:a:ADV       set   the advertiser's campaigns
    …hot:{sN}:span        hash  sequence (the fence), closed_ms (closing watermark), from_ms (held since),
                                newest_ms (the newest minute that has rows), sent_ms (when ingest sent what
                                is shown by now)

Every write goes through one script that checks the fence, so what was written is never written again, what an
ousted owner still has in hand is refused, and a Redis that lost its memory is noticed. A flush too large for one call
ends with the call that moves the span and deletes what is open no more: until then readers, who take the span in the
same MULTI, keep to the open rows. (Minute and hour in epoch ms.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infra import faults
from infra.clock import HOUR_MS, MINUTE_MS
from infra.redis import Redis
from ingest.grouping import rows_of, sum_by_key
from ingest.partials import WINDOW, Partials
from stream.sinks import rows
from stream.state import Changes, StageState

# KEYS[1] the span; ARGV: expected sequence (-1: whatever it is), new sequence, is this the last call, closed_ms,
# from_ms, newest_ms, sent_ms, then (op, key, field, value) over and over. Returns 1 applied, 0 known already, -1 memory lost.
# Set, Delete a key, Replace a hash, write a Cell whole, aPpend to it, Add to a set.
_APPLY = """
local function without(key, cell)
  local campaign, minute = string.match(cell, '^(%d+):(%d+)$')
  local later = redis.call('HGET', key, campaign .. '+')
  if not later then return end
  local kept, at = {}, 1
  while at <= #later do
    local m, a, b, c, d = string.byte(later, at, at + 4)
    local next_at = at + 5 + a + 256 * (b + 256 * (c + 256 * d))
    if m ~= tonumber(minute) then kept[#kept + 1] = string.sub(later, at, next_at - 1) end
    at = next_at
  end
  if #kept == 0 then redis.call('HDEL', key, campaign .. '+')
  else redis.call('HSET', key, campaign .. '+', table.concat(kept)) end
end
local held = tonumber(redis.call('HGET', KEYS[1], 'sequence') or -1)
local expected, new = tonumber(ARGV[1]), tonumber(ARGV[2])
if held > new or (held == new and expected ~= -1) then return 0 end
if held < expected then return -1 end
for i = 8, #ARGV, 4 do
  local op = ARGV[i]
  local key, field, value = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if op == 'S' then redis.call('HSET', key, field, value)
  elseif op == 'D' then redis.call('UNLINK', key)
  elseif op == 'R' then redis.call('UNLINK', key) redis.call('HSET', key, field, value)
  elseif op == 'C' then redis.call('HSET', key, field, value) without(key, field)
  elseif op == 'P' then redis.call('HSET', key, field, (redis.call('HGET', key, field) or '') .. value)
  else redis.call('SADD', key, field) end
end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'sequence', ARGV[2], 'closed_ms', ARGV[4])
  if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'from_ms', ARGV[5]) end
  if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'newest_ms', ARGV[6]) end
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'sent_ms', ARGV[7]) end
end
return 1
"""

Op = tuple[bytes, bytes, bytes, bytes]
# Not before the call that moves the span: what only adds must happen once, and what readers go by must not be gone.
_LAST = (b"D", b"P")
# Corrections of a cell are added to it until they are this many rows, and half of what it has.
_REWRITTEN_ROWS = 64


def base_key(prefix: str, shard: int) -> str:
    """What all keys of a shard begin with; the braces keep them in one slot of a cluster."""
    return f"{prefix}hot:{{s{shard}}}"


class HotSink:
    """Writes one shard. Every method may raise Unavailable and can then simply be called again."""

    def __init__(self, redis: Redis, prefix: str, shard: int, hot_hours: int, ops_per_call: int = 20_000) -> None:
        self.ops_per_call = ops_per_call
        self._redis, self._base, self._hot_ms = redis, base_key(prefix, shard), hot_hours * HOUR_MS
        self._key = self._base.encode()
        self._script = redis.script(_APPLY)
        self._known: set[tuple[int, int]] = set()
        self._opened: set[int] = set()
        self._prepared: tuple[int, list[Op]] | None = None
        self._added: dict[tuple[int, int], int] = {}
        """Rows that were added to a closed cell since it was last written whole."""

    def attach(self, state: StageState) -> None:
        """After a recovery: bring Redis to the state's sequence, from whatever it holds."""
        self._known.clear()
        self._prepared = None
        self._opened = set(state.windows)
        self.refresh(state)

    def refresh(self, state: StageState) -> None:
        """Notice a Redis that is not where it was left: empty, or started from an older file."""
        span = f"{self._base}:span"
        found = self._redis.call("HGET", span, "sequence")
        if found is None or int(found) < state.sequence:
            # A flush is shown before the next one begins: Redis can only be one behind by itself.
            self._rewrite(state, lost=found is None or int(found) < state.sequence - 1)
        elif int(found) == state.sequence and state.shown_sent_ms:
            # Blocks without rows need no flush, but are shown, too.
            self._redis.call("HSET", span, "sent_ms", state.shown_sent_ms)

    def write(self, changes: Changes, state: StageState) -> None:
        """Show what a flush made durable. Safe to repeat."""
        if self._prepared is None or self._prepared[0] != changes.sequence:
            self._prepared = changes.sequence, list(self._ops(changes, state))
        # Half of these may have been applied: what is tried again must be the same, to the last byte.
        answer = self._apply(changes.sequence - 1, changes, state, self._prepared[1])
        self._prepared = None
        if answer == -1:
            self._rewrite(state, lost=True)
        self._opened.update(changes.open)
        self._opened.intersection_update(w for w in self._opened if w not in set(changes.newly_closed))

    def _rewrite(self, state: StageState, *, lost: bool) -> None:
        """Write all that is held. What a lost Redis knew beyond that is unknown from now on, never zero."""
        self._known.clear()
        self._added.clear()
        changes = state.everything()
        since = ""
        if lost:
            since = str(0 if state.sequence == 0 else min(state.windows, default=state.durable_closed_ms or 0))
        self._opened = set(state.windows)
        ops = list(self._ops(changes, state, absolute=True))
        self._apply(-1, changes, state, ops, since)

    def _apply(self, expected: int, changes: Changes, state: StageState, ops: list[Op], from_ms: str = "") -> int:
        answer = 1
        closed = "" if changes.closed_ms is None else changes.closed_ms
        newest = max(state.windows, default="")
        written, closing = [op for op in ops if op[0] not in _LAST], [op for op in ops if op[0] in _LAST]
        pages = [written[start : start + self.ops_per_call] for start in range(0, len(written), self.ops_per_call)]
        for number, page in enumerate(pages or [[]], start=1):
            last = "1" if number >= len(pages) else "0"
            flat = [x for op in (page + closing if last == "1" else page) for x in op]
            told = [str(expected), changes.sequence, last, closed, from_ms, newest, state.shown_sent_ms or ""]
            answer = int(self._script([f"{self._base}:span"], [*told, *flat]))
            if answer != 1:
                break
            faults.point("hot.written" if last == "1" else "hot.half")
        return answer

    def _ops(self, changes: Changes, state: StageState, *, absolute: bool = False) -> Iterator[Op]:
        """What must be written. `absolute`: open rows replace what is there, instead of adding to it."""
        yield from self._advertisers(changes.delta)
        opened = self._opened
        closed = [state.windows[w].together() for w in sorted(changes.newly_closed)]
        for (window, campaign), value in self._cells(closed):
            yield self._cell(b"C" if absolute else b"S", window, campaign, value)
            if window in opened:
                yield b"D", self._open_key(window, campaign), b"", b""
        if changes.corrected:
            yield from self._corrections(changes, state)
        if changes.open:
            op, sequence = b"R" if absolute else b"S", b"%d" % changes.sequence
            for (window, campaign), value in self._cells([_of_windows(changes.delta, changes.open)]):
                yield op, self._open_key(window, campaign), sequence, value

    def _corrections(self, changes: Changes, state: StageState) -> Iterator[Op]:
        """Rows that came for closed minutes: added to their cells, which are written whole when that gets too much."""
        late = _of_windows(changes.delta, changes.corrected)
        self._added = {cell: n for cell, n in self._added.items() if cell[0] in state.windows}
        full: dict[int, list[int]] = {}
        for (window, campaign), value in self._cells([late]):
            added = self._added.get((window, campaign), 0) + rows.count(value)
            if added > _REWRITTEN_ROWS and 2 * added > state.windows[window].count(campaign):
                full.setdefault(window, []).append(campaign)
                continue
            self._added[window, campaign] = added
            _, key, field, _ = self._cell(b"", window, campaign, b"")
            later = field.split(b":")[0] + b"+"
            yield b"P", key, later, rows.later(window % HOUR_MS // MINUTE_MS, value)
        whole = [state.windows[w].of(np.array(campaigns), whole=True) for w, campaigns in full.items()]
        for (window, campaign), value in self._cells(whole):
            self._added.pop((window, campaign), None)
            yield self._cell(b"C", window, campaign, value)

    def _cells(self, parts: list[Partials]) -> Iterator[tuple[tuple[int, int], bytes]]:
        if parts:
            yield from zip(*rows.pack(Partials.joined(parts)), strict=True)

    def _cell(self, op: bytes, window: int, campaign: int, value: bytes) -> Op:
        hour = window - window % HOUR_MS
        return op, b"%b:h:%d" % (self._key, hour), b"%d:%d" % (campaign, (window - hour) // MINUTE_MS), value

    def _open_key(self, window: int, campaign: int) -> bytes:
        return b"%b:o:%d:%d" % (self._key, window, campaign)

    def _advertisers(self, delta: Partials) -> Iterator[Op]:
        found = rows_of([delta["advertiser_id"], delta["campaign_id"]])
        first, _ = sum_by_key(found, np.empty((len(found), 0), np.int64))
        pairs = set(map(tuple, found[first].tolist()))
        for advertiser, campaign in pairs - self._known:
            yield b"A", b"%b:a:%d" % (self._key, advertiser), b"%d" % campaign, b""
        self._known |= pairs

    def expire(self, now_ms: int, warm_border_ms: int | None) -> int:
        """Drop hours older than the tier holds, once ClickHouse has them; returns how many."""
        if warm_border_ms is None:
            return 0
        dropped = 0
        for key in self._redis.scan_keys(f"{self._base}:h:*"):
            end = int(key.rsplit(b":", 1)[1]) + HOUR_MS
            if end <= warm_border_ms and end <= now_ms - self._hot_ms - HOUR_MS:
                self._redis.call("UNLINK", key)
                dropped += 1
        return dropped


def _of_windows(rows: Partials, windows: list[int]) -> Partials:
    kept = np.isin(rows[WINDOW], windows)
    return rows if kept.all() else rows.take(kept)
