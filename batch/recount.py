"""The exact recount of a day, pure and by column: what a file adds, what ids that repeat take back, and what both add up to.

Copies share an event_id; the earliest by (log time, partition, offset) among the events of D−1 … D+1 counts, so that
neighbouring days choose the same one. Hardly any id repeats, so every row is first counted as if it were the only one of its id.
Of ids only hashes are compared over the whole day; the rows whose hash is there twice are then taken back, and counted again by
what they are. A hash that two ids share costs a little work, and changes nothing.

Sums come as moves: rows of MOVES, each an amount by hour, all dimensions and cause. The cause `exact` is what the day holds;
the others are what must be added to the stream's numbers, so they add up to exact − stream.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import selectors

from infra.clock import DAY_MS, HOUR_MS
from infra.columns import Bools, Ints
from infra.file_store import FileStore
from ingest import archive_files, events, grouping
from ingest.archived import DECISIONS, Decision

IDS = ("campaign_id", "advertiser_id", "ad_id", "publisher_id")
NAMES = ("country", "device")
DIMENSIONS = (*IDS, *NAMES)
MEASURES = ("impressions", "clicks", "conversions", "spend_micros")
EXACT = "exact"
LATE, SHED, DOUBT = "late", "shed", "doubt"
CROSS_PARTITION, EXPIRED = "cross-partition-duplicate", "expired-horizon-duplicate"
CONFLICTING, SENT_AGAIN = "conflicting-copy", "dead-letter-replayed"
CAUSES = (LATE, SHED, DOUBT, CROSS_PARTITION, EXPIRED, CONFLICTING, SENT_AGAIN)
"""Why the stream and the exact count differ, by what was decided about a row."""

USERS_LOG2 = 12
USERS_ERROR = 1.04 / 2 ** (USERS_LOG2 / 2)
"""The standard error of how many distinct users there were, relative, by sketches of 2^USERS_LOG2 registers."""

COLUMNS = (
    "event_id", "partition", "offset", "log_time_ms", "time_ms", "event_type", *DIMENSIONS, "cost_micros", "decision",
    "weight", "lateness",
)  # fmt: skip
"""What is read of a row."""
CODED = {
    "event_type": pl.Enum(events.EVENT_TYPES), "decision": pl.Enum(DECISIONS), "country": pl.Enum(events.COUNTRIES),
    "device": pl.Enum(events.DEVICES), "cause": pl.Enum((EXACT, *CAUSES)),
}  # fmt: skip
"""Columns of few names, which are handled as their positions."""
AMOUNTS = (*MEASURES, "late", "late_events")
_KEYS = ("hour_ms", *DIMENSIONS, "cause")
MOVES = pl.Schema(
    {"hour_ms": pl.Int64()}
    | dict.fromkeys(IDS, pl.Int64())
    | {name: CODED[name] for name in (*NAMES, "cause")}
    | dict.fromkeys(AMOUNTS, pl.Int64())
)
"""`late`: events that came late and count; `late_events`: those that were late by their own partition."""
# An event's own fields: what a copy of it has, too.
_FIELDS = ("time_ms", "event_type", *DIMENSIONS, "cost_micros")


@dataclass(frozen=True)
class Letters:
    """Ids of dead letters, as sorted hashes, and when each was first rejected (epoch ms)."""

    hashes: npt.NDArray[np.uint64]
    times_ms: npt.NDArray[np.int64]


NO_LETTERS = Letters(np.zeros(0, np.uint64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Totals:
    """Archived rows of the day, each once, and a digest of which ones: a sum modulo 2^64, so order and files do not matter."""

    rows: int = 0
    digest: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.rows + other.rows, (self.digest + other.digest) % 2**64)

    def __sub__(self, other: Totals) -> Totals:
        return Totals(self.rows - other.rows, (self.digest - other.digest) % 2**64)


@dataclass(frozen=True)
class Counted:
    """What rows add to a day."""

    moves: pl.DataFrame
    totals: Totals


def archived_rows(store: FileStore, names: Sequence[str]) -> pl.DataFrame:
    """What files of the archive hold, in their order, with names as positions. Raises UnreadableFile."""
    found = []
    for name in names:
        rows = archive_files.read(store, name, COLUMNS)
        try:
            found.append(coded(rows))
        except pl.exceptions.PolarsError as error:
            raise archive_files.unreadable(store, name, error, "is it of a newer version?") from error
    return pl.concat(found)


def users(store: FileStore, names: Sequence[str], day_ms: int) -> pl.DataFrame:
    """Which users the day's events in some files name: distinct rows of (campaign_id, advertiser_id, user)."""
    keys = ("campaign_id", "advertiser_id", "user")
    rows = pl.concat(archive_files.read(store, name, ("time_ms", *keys)) for name in names)
    return _of_day(rows, day_ms).select(keys).drop_nulls("user").unique()


def coded(rows: pl.DataFrame) -> pl.DataFrame:
    """Archived rows with their names as positions. Raises polars' InvalidOperationError for a name that is not known."""
    return rows.with_columns(pl.col(name).cast(kind) for name, kind in CODED.items() if name in rows.columns)


def near(rows: pl.DataFrame, day_ms: int) -> Ints:
    """Which rows' copies may count for a day: those of the day before, of the day, and of the day after."""
    return _between(rows, day_ms - DAY_MS, day_ms + 2 * DAY_MS)


def chosen(rows: pl.DataFrame, places: Ints) -> pl.DataFrame:
    """Rows at these places, in their order, each at most once."""
    return rows if len(places) == len(rows) else rows[places]


def told_apart(rows: pl.DataFrame, letters: Letters) -> pl.DataFrame:
    """With the hash of each row's id, and whether the event was a dead letter before, and was sent again."""
    hashed = hashes(rows)
    again = np.zeros(len(rows), bool)
    if len(letters.hashes):
        at = np.minimum(np.searchsorted(letters.hashes, hashed), len(letters.hashes) - 1)
        again = (letters.hashes[at] == hashed) & (letters.times_ms[at] <= rows["log_time_ms"].to_numpy())
    return rows.with_columns(hash=pl.Series(hashed), sent_again=pl.Series(again))


def unbilled(rows: pl.DataFrame, billed: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """How many events there are of days whose run had begun when they were archived: start of a day → events.

    `billed`: start of a day → for each source partition the offset up to which its run has read.
    """
    found = dict[int, int]()
    times = rows["time_ms"].to_numpy()
    for day_ms, ends in billed.items():
        here = np.flatnonzero((times >= day_ms) & (times < day_ms + DAY_MS))
        if len(here):
            up_to = np.asarray(ends, np.int64)[rows["partition"].gather(here).to_numpy()]
            later = rows["offset"].gather(here).to_numpy() >= up_to
            news = _codes(rows["decision"].gather(here)) != Decision.COPY
            found[day_ms] = int((later & news).sum())
    return {day_ms: events for day_ms, events in found.items() if events}


def alone(rows: pl.DataFrame, day_ms: int) -> Counted:
    """What rows of a day add if each is the only one of its id. Rows of other days are passed over."""
    rows = _of_day(rows, day_ms)
    plain = (_codes(rows["decision"]) == Decision.COUNTED) & (rows["weight"].to_numpy() == 1)
    special = rows[np.flatnonzero(~plain)].with_columns(cause=_CAUSE, factor=_FACTOR).filter(pl.col("factor") != 0)
    return Counted(pl.concat([_winners(rows), weighed(special)]), _totals(rows))


def hashes(rows: pl.DataFrame) -> npt.NDArray[np.uint64]:
    """64 bits for each id, the same wherever they are computed."""
    return rows["event_id"].hash(seed=1).to_numpy()


def repeated(found: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which hashes are there more than once."""
    order = np.argsort(found)
    same = found[order[1:]] == found[order[:-1]]
    twice = np.zeros(len(found), bool)
    twice[order[1:]] = same
    twice[order[:-1]] |= same
    return twice


def correction(rows: pl.DataFrame, day_ms: int) -> Counted:
    """What must be added once rows were counted alone: all rows of some ids, from D−1 … D+1, some of which repeat."""
    counted, before = _settled(rows, day_ms), alone(rows, day_ms)
    back = before.moves.with_columns(-pl.col(*AMOUNTS))
    return Counted(merged([counted.moves, back]), counted.totals - before.totals)


def merged(moves: list[pl.DataFrame]) -> pl.DataFrame:
    """One row for each hour, dimensions and cause, without those that move nothing."""
    together = pl.concat(moves)
    return _summed(together, grouping.rows_of([together[name].to_numpy() for name in AMOUNTS]))


_DECISION, _WEIGHT = pl.col("decision"), pl.col("weight").cast(pl.Int64)
# What has to be added to the stream's number for a row that counts, in rows like it.
_FACTOR = pl.when(_DECISION == "counted").then(1 - _WEIGHT).when(_DECISION == "copy").then(0).otherwise(1)
_CAUSE = (
    pl.when((_DECISION == "too-late") & pl.col("sent_again")).then(pl.lit(SENT_AGAIN))
    .when(_DECISION == "too-late").then(pl.lit(LATE)).when(_DECISION == "doubt").then(pl.lit(DOUBT)).otherwise(pl.lit(SHED))
)  # fmt: skip


def _between(rows: pl.DataFrame, from_ms: int, to_ms: int) -> Ints:
    times = rows["time_ms"].to_numpy()
    return np.flatnonzero((times >= from_ms) & (times < to_ms))


def _of_day(rows: pl.DataFrame, day_ms: int) -> pl.DataFrame:
    return chosen(rows, _between(rows, day_ms, day_ms + DAY_MS))


def _codes(names: pl.Series) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Positions of the names of one of the columns of CODED."""
    assert names.dtype == CODED[names.name], names.dtype
    return names.to_physical().to_numpy()


def _winners(rows: pl.DataFrame) -> pl.DataFrame:
    """Exact sums of rows that count."""
    lateness = rows["lateness"].to_numpy()
    late = (_codes(rows["decision"]) == Decision.COUNTED) & (lateness > 0)
    keyed = rows.with_columns(cause=pl.lit(EXACT, CODED["cause"]))
    return _of_rows(keyed, np.ones(len(rows), np.int64), late, lateness == 2)


def weighed(rows: pl.DataFrame) -> pl.DataFrame:
    """Sums of rows by `cause`, each as often as its `factor` says."""
    none = np.zeros(len(rows), bool)
    return _of_rows(rows, rows["factor"].cast(pl.Int64).to_numpy(), none, none)


def _of_rows(rows: pl.DataFrame, factor: Ints, late: Bools, late_events: Bools) -> pl.DataFrame:
    kind = _codes(rows["event_type"])
    amounts = [*(factor * (kind == n) for n in range(len(events.EVENT_TYPES))), factor * rows["cost_micros"].to_numpy()]
    keyed = rows.with_columns(
        hour_ms=pl.col("time_ms") // HOUR_MS * HOUR_MS, cause=pl.col("cause").cast(CODED["cause"])
    )
    return _summed(keyed, grouping.rows_of([*amounts, late, late_events]))


def _summed(rows: pl.DataFrame, amounts: Ints) -> pl.DataFrame:
    """The sums of `amounts`, (n, AMOUNTS), of rows with the same keys, without those that are all zero."""
    hours = rows["hour_ms"].to_numpy()
    columns = [
        hours // HOUR_MS - hours.min(initial=2**62) // HOUR_MS, *(rows[name].to_numpy() for name in IDS),
        *(_codes(rows[name]) for name in (*NAMES, "cause")),
    ]  # fmt: skip
    first, sums = grouping.sum_by_key(grouping.packed(columns), amounts)
    moved = sums.any(axis=1)
    told = dict(zip(AMOUNTS, sums[moved].T, strict=True))
    return rows.select(_KEYS)[first[moved]].with_columns(pl.Series(name, sums) for name, sums in told.items())


def _totals(rows: pl.DataFrame) -> Totals:
    where = rows["partition"].to_numpy().astype(np.uint64) << np.uint64(48) ^ rows["offset"].to_numpy().astype(
        np.uint64
    )
    return Totals(len(rows), int(_mixed(where).sum(dtype=np.uint64)))


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def _settled(rows: pl.DataFrame, day_ms: int) -> Counted:
    """Rows of some ids, counted as what they are.

    The first row of an id counts. In the stream its first counted row stands for it: where that has the same fields, only its
    weight may differ; else the stream counted another event under this id. Every further row that the stream counted is too many.
    """
    rows = rows.unique(["partition", "offset"]).sort("event_id", "log_time_ms", "partition", "offset")
    rows = rows.with_columns(counted=_DECISION == "counted")
    of_id = rows.group_by("event_id", maintain_order=True)
    first = of_id.first()
    stands = rows.filter("counted").group_by("event_id", maintain_order=True).first()
    pairs = first.join(stands, on="event_id", how="left", suffix="_stands")
    same = pl.all_horizontal(pl.col(f).eq_missing(pl.col(f"{f}_stands")) for f in _FIELDS)
    stood = pl.col("partition_stands").is_not_null()
    missed = pairs.filter(~stood).with_columns(cause=_CAUSE, factor=_FACTOR)
    reweighed = pairs.filter(stood & same).with_columns(
        cause=pl.lit(SHED), factor=1 - pl.col("weight_stands").cast(pl.Int64)
    )
    foreign = pairs.filter(stood & ~same).select("event_id")
    swapped = [
        first.join(foreign, on="event_id", how="semi").with_columns(cause=pl.lit(CONFLICTING), factor=pl.lit(1)),
        stands.join(foreign, on="event_id", how="semi").with_columns(cause=pl.lit(CONFLICTING), factor=-_WEIGHT),
    ]
    told = first.select("event_id", *(pl.col(f).alias(f"{f}_first") for f in _FIELDS))
    beside = stands.select("event_id", pl.col("partition").alias("beside"), pl.col("offset").alias("beside_offset"))
    again = rows.filter("counted").join(beside, on="event_id").join(told, on="event_id")
    again = again.filter((pl.col("partition") != pl.col("beside")) | (pl.col("offset") != pl.col("beside_offset")))
    alike = pl.all_horizontal(pl.col(f).eq_missing(pl.col(f"{f}_first")) for f in _FIELDS)
    too_many = again.with_columns(
        cause=pl.when(~alike).then(pl.lit(CONFLICTING))
        .when(pl.col("partition") != pl.col("beside")).then(pl.lit(CROSS_PARTITION)).otherwise(pl.lit(EXPIRED)),
        factor=-_WEIGHT,
    )  # fmt: skip
    needed = ["time_ms", "event_type", *DIMENSIONS, "cost_micros", "cause"]
    parts = [
        p.select(pl.col(needed).exclude("cause"), pl.col("cause").cast(CODED["cause"]), pl.col("factor").cast(pl.Int64))
        for p in (missed, reweighed, *swapped, too_many)
    ]
    moved = _of_day(pl.concat(parts), day_ms).filter(pl.col("factor") != 0)
    return Counted(
        pl.concat([_winners(_of_day(first, day_ms)), weighed(moved)]), _totals(_of_day(rows, day_ms)),
    )  # fmt: skip


def in_buckets(words: npt.NDArray[np.uint64], buckets: int) -> list[tuple[int, Ints]]:
    """(bucket, rows of it) for each that has any, by hashes."""
    place = (words >> np.uint64(40)).astype(np.int64) % buckets
    order = np.argsort(place.astype(np.uint16), kind="stable")
    edges = np.searchsorted(place[order], np.arange(buckets + 1)).tolist()
    return [(n, order[low:high]) for n, (low, high) in enumerate(pairwise(edges)) if low < high]


def spread(moves: pl.DataFrame, buckets: int) -> list[tuple[int, pl.DataFrame]]:
    """Moves by bucket: all of an hour and its ids in the same one, wherever they are."""
    words = np.zeros(len(moves), np.uint64)
    for name in ("hour_ms", *IDS):
        words = _mixed(words ^ moves[name].to_numpy().astype(np.uint64))
    return [(bucket, moves[rows]) for bucket, rows in in_buckets(words, buckets)]


def as_bytes(table: pl.DataFrame) -> bytes:
    """A table as an Arrow stream, its numbers in as few bytes as they take."""
    into = io.BytesIO()
    wide = [name for name, kind in table.schema.items() if kind == pl.Int64()]
    table.with_columns(table[name].shrink_dtype() for name in wide).write_ipc_stream(into)
    return into.getvalue()


def of_bytes(raw: bytes) -> pl.DataFrame:
    """What `as_bytes` made."""
    return pl.read_ipc_stream(io.BytesIO(raw)).with_columns(selectors.signed_integer().cast(pl.Int64))
