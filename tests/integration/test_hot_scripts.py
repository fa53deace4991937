"""Each Lua script of the hot tier alone, on the real Redis: what a call leaves behind, and when it refuses."""

from __future__ import annotations

import struct
from importlib import resources
from typing import Any

import pytest

from infra.errors import AdclickError
from infra.redis.client import Redis
from infra.settings import Settings
from stream.hot import cell_format, layout, scripts
from stream.hot.layout import PARTS, ROWS, Cell, Op, ShardKeys, SpanField
from tests.redis_loss import dump_keys, go_back

HOUR = 1_795_132_800_000
MINUTE = HOUR + 60_000
ROLL_UPS = b"".join([struct.pack("<4I", 1, 2, 3, 4), b"a", b"pp", b"ccc", b"dddd"])
LARGE = {ROWS: b"rows", b":a": b"a", b":p": b"pp", b":c": b"ccc", b":d": b"dddd"}


class Shard:
    """The keys of one shard, and Redis."""

    def __init__(self, settings: Settings) -> None:
        self.redis, self.keys = Redis(settings.redis), ShardKeys.of(settings.key_prefix, 0)
        self.cell = self.keys.cell(MINUTE, 7)
        self.moves = 0

    def hash(self, key: bytes) -> dict[bytes, bytes]:
        reply = self.redis.call("HGETALL", key)
        return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))

    def at_sequence(self, sequence: int) -> None:
        self.redis.call("HSET", self.keys.span, SpanField.SEQUENCE, sequence)

    def apply(
        self,
        expected: int,
        new: int,
        *operations: bytes,
        number: int = 1,
        last: bool = True,
        marks: Any = (5, 4, "", "", ""),
        events: int = 0,
        canaries: tuple[Any, Any] = ("", ""),
    ) -> int:
        head = [expected, self.moves, new, number, "1" if last else "0"]
        arguments = [*head, *marks, events, *canaries, *operations]
        return int(scripts.apply_flush(self.redis)([self.keys.span], arguments))

    def pack(self, sequence: int, known_moves: int, *cells: tuple[Cell, bytes]) -> int:
        arguments = [argument for cell, rows in cells for argument in cell.move(rows, b"")]
        keys = [key for cell, _ in cells for key in cell.keys]
        return int(scripts.pack_cells(self.redis)([self.keys.span, *keys], [sequence, known_moves, *arguments]))


@pytest.fixture
def shard(settings: Settings) -> Shard:
    return Shard(settings)


# -- apply ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected", "new", "answer"),
    [
        (None, -1, 1, 1),
        (1, 1, 2, 1),
        (2, -1, 2, 1),  # a rewrite at the sequence that is there
        (2, 1, 2, 0),  # the same flush again
        (3, 1, 2, 0),  # an ousted owner
        (3, -1, 2, 0),
        (0, 1, 2, -1),
        (None, 1, 2, -1),
    ],
    ids=["empty", "next", "rewrite", "again", "ousted", "ousted rewrite", "behind", "lost"],
)
def test_a_flush_is_applied_only_at_the_sequence_before_it(
    shard: Shard, shown: int | None, expected: int, new: int, answer: int
) -> None:
    if shown is not None:
        shard.at_sequence(shown)
    key = shard.keys.advertiser(1)
    assert shard.apply(expected, new, Op.ADD_CAMPAIGN, key, b"7") == answer
    assert bool(shard.redis.call("SCARD", key)) == (answer == 1)
    sequence = shard.hash(shard.keys.span).get(SpanField.SEQUENCE)
    assert sequence == (b"%d" % new if answer == 1 else None if shown is None else b"%d" % shown)


def test_only_the_last_call_of_a_flush_moves_the_span(shard: Shard) -> None:
    marks = (300, 200, 100, 250, 999)
    assert shard.apply(-1, 1, last=False, marks=marks) == 1
    assert shard.hash(shard.keys.span) == {SpanField.CALLS: b"1:1"}
    assert shard.apply(-1, 1, number=2, marks=marks, events=3, canaries=(7, 8)) == 1
    fields = {
        "SEQUENCE": 1, "CLOSED": 300, "PACKED": 200, "FROM": 100, "NEWEST": 250, "SENT": 999, "EVENTS": 3, "CANARY": 7, "NEWEST_CANARY": 8,
    }  # fmt: skip
    assert shard.hash(shard.keys.span) == {getattr(SpanField, name): b"%d" % n for name, n in fields.items()}


@pytest.mark.parametrize("expected", [1, -1])
def test_a_call_of_a_flush_is_applied_only_behind_the_one_before_it(shard: Shard, expected: int) -> None:
    shard.at_sequence(1)
    key = shard.keys.advertiser(1)
    assert shard.apply(expected, 2, Op.ADD_CAMPAIGN, key, b"1", last=False) == 1
    earlier = dump_keys(shard.redis, shard.keys.all())
    assert shard.apply(expected, 2, Op.ADD_CAMPAIGN, key, b"2", number=2, last=False) == 1
    go_back(shard.redis, shard.keys.all(), earlier)  # as a replica that was behind
    assert shard.apply(expected, 2, Op.ADD_CAMPAIGN, key, b"3", number=3) == -1
    assert shard.redis.call("SMEMBERS", key) == {b"1"}
    # From the first call on it is written whole.
    calls = [(b"1", 1, False), (b"2", 2, False), (b"3", 3, True)]
    answers = [shard.apply(expected, 2, Op.ADD_CAMPAIGN, key, c, number=n, last=last) for c, n, last in calls]
    assert (answers, shard.redis.call("SMEMBERS", key)) == ([1, 1, 1], {b"1", b"2", b"3"})
    assert shard.hash(shard.keys.span)[SpanField.SEQUENCE] == b"2"


def test_an_empty_mark_leaves_the_span_unchanged_and_the_retained_range_never_grows_backwards(shard: Shard) -> None:
    shard.apply(-1, 1, marks=(5, 4, 1_795_132_800_000, 250, 999), canaries=(7, 8))
    shard.apply(1, 2, marks=(6, 5, "", "", ""))
    shard.apply(2, 3, marks=(7, 6, 100, "", ""))
    span = shard.hash(shard.keys.span)
    assert (span[SpanField.FROM], span[SpanField.NEWEST], span[SpanField.SENT]) == (b"1795132800000", b"250", b"999")
    assert (span[SpanField.CANARY], span[SpanField.NEWEST_CANARY]) == (b"7", b"8")


def test_a_small_cell_is_one_field_and_a_large_one_has_parts(shard: Shard) -> None:
    cell = shard.cell
    shard.apply(-1, 1, Op.PUT_CELL, cell.hour_key, cell.field, b"few", b"")
    assert shard.hash(cell.hour_key) == {cell.field: b"few"}
    shard.apply(1, 2, Op.MOVE_CELL, *cell.move(b"rows", ROLL_UPS))
    assert shard.hash(cell.hour_key) == {cell.field + part: value for part, value in LARGE.items()}
    shard.apply(2, 3, Op.MOVE_CELL, *cell.move(b"few", b""))
    assert shard.hash(cell.hour_key) == {cell.field: b"few"}


def test_rows_of_flushes_lie_beside_each_other_until_they_are_replaced(shard: Shard) -> None:
    key = shard.cell.open_key
    shard.apply(-1, 1, Op.ADD_ROWS, key, b"1", b"one", b"")
    shard.apply(1, 2, Op.ADD_ROWS, key, b"2", b"rows", ROLL_UPS)
    assert shard.hash(key) == {b"1": b"one"}
    assert {part: shard.hash(key + part) for part in PARTS} == {part: {b"2": value} for part, value in LARGE.items()}
    shard.apply(2, 3, Op.REPLACE_ROWS, key, b"3", b"all", b"")
    assert shard.hash(key) == {b"3": b"all"}
    assert not any(shard.hash(key + part) for part in PARTS)


def test_several_operations_of_one_call_each_take_their_own_arguments(shard: Shard) -> None:
    cell, advertiser = shard.cell, shard.keys.advertiser(1)
    operations = [
        Op.ADD_CAMPAIGN, advertiser, b"7",
        Op.ADD_ROWS, shard.keys.by_flush(MINUTE, 8), b"1", b"one", b"",
        Op.ADD_LATE, cell.hour_key, cell.late_field, b"late",
        Op.MOVE_CELL, *shard.keys.cell(HOUR, 9).move(b"nine", b""),
        Op.PUT_CELL, cell.hour_key, cell.field, b"few", b"",
    ]  # fmt: skip
    assert shard.apply(-1, 1, *operations) == 1
    assert shard.hash(cell.hour_key) == {cell.late_field: b"late", b"9:0": b"nine", cell.field: b"few"}
    assert shard.hash(shard.keys.by_flush(MINUTE, 8)) == {b"1": b"one"}
    assert shard.redis.call("SISMEMBER", advertiser, b"7")


# -- moving a cell --------------------------------------------------------------------------------------------------


def test_a_cell_takes_the_place_of_its_rows_by_flush_and_of_its_late_rows(shard: Shard) -> None:
    cell, other = shard.cell, shard.keys.cell(HOUR, 7)
    for minute in (cell.minute, other.minute, cell.minute):
        entry = cell_format.late_entry(minute, b"x" * 300)
        shard.apply(-1, 1, Op.ADD_LATE, cell.hour_key, cell.late_field, entry)
    shard.apply(1, 2, Op.ADD_ROWS, cell.open_key, b"2", b"rows", ROLL_UPS)
    shard.apply(2, 3, Op.MOVE_CELL, *cell.move(b"all", b""))
    late = cell_format.late_entry(other.minute, b"x" * 300)
    assert shard.hash(cell.hour_key) == {cell.field: b"all", cell.late_field: late}
    assert not shard.redis.scan_keys(shard.keys.all_by_flush())
    shard.apply(3, 4, Op.MOVE_CELL, *other.move(b"more", b""))
    assert shard.hash(cell.hour_key) == {cell.field: b"all", other.field: b"more"}


def test_packing_keeps_the_rows_of_a_flush_that_is_half_written(shard: Shard) -> None:
    cell = shard.cell
    shard.apply(-1, 1, Op.ADD_ROWS, cell.open_key, b"1", b"one", b"")
    shard.apply(1, 2, Op.ADD_ROWS, cell.open_key, b"2", b"rows", ROLL_UPS)
    shard.apply(2, 3, Op.ADD_ROWS, cell.open_key, b"3", b"rows", ROLL_UPS, last=False)
    assert shard.pack(2, 0, (cell, b"all")) == 1
    assert shard.hash(cell.hour_key) == {cell.field: b"all"}
    assert shard.hash(cell.open_key) == {}
    assert {part: shard.hash(cell.open_key + part) for part in PARTS} == {p: {b"3": v} for p, v in LARGE.items()}


@pytest.mark.parametrize("shown", [None, 1, 3])
def test_packing_is_refused_at_another_sequence(shard: Shard, shown: int | None) -> None:
    if shown is not None:
        shard.at_sequence(shown)
    assert shard.pack(2, 0, (shard.cell, b"all")) == 0
    assert shard.hash(shard.cell.hour_key) == {}


def test_calls_that_move_rows_are_counted_and_a_redis_that_has_fewer_is_behind(shard: Shard) -> None:
    shard.at_sequence(2)
    assert [shard.pack(2, known, (shard.cell, b"all")) for known in (0, 0, 2, 4)] == [1, 2, 3, 0]
    shard.moves = 4
    assert shard.apply(2, 3) == -1
    assert shard.apply(-1, 2) == 1, "what is written whole does not depend on it"
    shard.moves = 3
    assert shard.apply(2, 3) == 1


def test_packing_takes_several_cells_a_call(shard: Shard) -> None:
    shard.at_sequence(2)
    cells = [shard.keys.cell(MINUTE, campaign) for campaign in (1, 2, 3)]
    assert shard.pack(2, 0, *((cell, b"%d" % n) for n, cell in enumerate(cells))) == 1
    assert shard.hash(cells[0].hour_key) == {cell.field: b"%d" % n for n, cell in enumerate(cells)}


# -- keeping, dropping, reading -------------------------------------------------------------------------------------


def test_rows_by_flush_that_no_state_contains_become_late_rows_once(shard: Shard) -> None:
    cell = shard.cell
    shard.apply(-1, 1, Op.ADD_LATE, cell.hour_key, cell.late_field, cell_format.late_entry(9, b"nine"))
    shard.apply(1, 2, Op.ADD_ROWS, cell.open_key, b"2", b"two", b"")
    shard.apply(2, 3, Op.ADD_ROWS, cell.open_key, b"3", b"rows", ROLL_UPS)
    for moves in (1, 2):
        keys = [shard.keys.span, cell.open_key, cell.hour_key]
        assert scripts.move_late(shard.redis)(keys, [cell.late_field, cell.minute]) == moves
    late = shard.hash(cell.hour_key)[cell.late_field]
    assert list(cell_format.late_entries(late)) == [(9, b"nine"), (1, b"two"), (1, b"rows")]
    assert not shard.redis.scan_keys(shard.keys.all_by_flush())


def test_dropping_hours_moves_the_start_of_the_retained_range_only_forward(shard: Shard) -> None:
    drop, hours = scripts.drop_hours(shard.redis), [shard.keys.hour(HOUR - n * 3_600_000) for n in (2, 1)]
    for key in hours:
        shard.redis.call("HSET", key, "7:0", "x")
    assert drop([shard.keys.span, *hours], [HOUR]) == 0, "a Redis that is being filled again has no sequence"
    assert shard.hash(hours[0])
    shard.at_sequence(1)
    assert drop([shard.keys.span, *hours], [HOUR]) == 2
    assert not shard.redis.scan_keys(shard.keys.hours())
    assert drop([shard.keys.span, hours[0]], [HOUR - 3_600_000]) == 1
    assert shard.hash(shard.keys.span)[SpanField.FROM] == b"%d" % HOUR


def test_reading_gives_fields_of_the_span_and_then_of_each_hash_in_order(shard: Shard) -> None:
    shard.at_sequence(3)
    shard.redis.call("HSET", shard.cell.hour_key, "7:0", "a", "7:2", "c")
    shard.redis.call("HSET", shard.cell.open_key, "1", "x", "2", "y")
    script = shard.redis.script((resources.files("query.tiers") / "read.lua").read_text())
    keys = [shard.keys.span, shard.cell.hour_key, shard.cell.open_key, b"nothing"]
    replies = script(keys, [2, SpanField.SEQUENCE, SpanField.CLOSED, 3, "7:0", "7:1", "7:2", 0, 0])
    assert replies == [[b"3", None], [b"a", None, b"c"], [b"x", b"y"], []]


def test_an_unknown_operation_changes_nothing(shard: Shard) -> None:
    with pytest.raises(AdclickError):
        shard.apply(-1, 1, b"?", b"key")
    assert shard.hash(shard.keys.span) == {}


def test_scripts_spell_out_no_name_of_the_layout() -> None:
    names = [v.decode() for v in vars(SpanField).values() if isinstance(v, bytes)]
    names += [part.decode() for part in PARTS]
    for folder in ("stream.hot", "query.tiers"):
        for file in resources.files(folder).iterdir():
            if file.name.endswith(".lua"):
                text = file.read_text()
                assert not [name for name in names if f"'{name}'" in text], file.name
    assert all(f"'{name}'" in layout.lua_constants() for name in names)
