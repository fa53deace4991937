"""The directory at one version, by column, and what a key may see of it. Pure: nothing here changes once it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from infra.columnar.columns import Bools, Ints
from query.directory.entries import KINDS, PARENTS, Entry, fields_of
from query.row_scope import RowScope

KIND_OF_DIMENSION = {
    "advertiser_id": "advertiser",
    "campaign_id": "campaign",
    "ad_id": "ad",
    "publisher_id": "publisher",
}
"""Whose ids a dimension has."""
_TYPES: dict[str, Any] = {
    "id": pl.Int64, "name": pl.String, "advertiser_id": pl.Int64, "campaign_id": pl.Int64, "timezone": pl.String,
    "status": pl.String, "start": pl.Date, "end": pl.Date, "budget": pl.String, "budget_micros": pl.Int64,
}  # fmt: skip
# As names are searched and sorted; and by what a snapshot is compared with the table.
_FOLDED, _VERSION = "_folded", "_version"


@dataclass(frozen=True)
class Search:
    """Which entries of a kind. `text`: part of a name, whatever its case, or an id; `equal`: values of fields; `after`: the sort key
    of the last entry of the page before."""

    kind: str
    text: str = ""
    equal: tuple[tuple[str, str | int], ...] = ()
    limit: int = 10_000
    after: tuple[str, int] | None = None


class _Table:
    """The entries of a kind, by ascending id."""

    def __init__(self, kind: str, frame: pl.DataFrame) -> None:
        self.kind, self.frame = kind, frame
        self.ids: Ints = frame["id"].to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Ints) -> tuple[Ints, Bools]:
        """The row of each id, and whether there is one."""
        if not len(self):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        rows = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return rows, self.ids[rows] == ids


class Snapshot:
    """All entries at a version."""

    def __init__(self, tables: Mapping[str, pl.DataFrame], version: int) -> None:
        """`tables`: by kind, with the fields of the kind, `_folded` and `_version`, by ascending id."""
        self._tables = {kind: _Table(kind, frame) for kind, frame in tables.items()}
        self.version = version

    @classmethod
    def empty(cls) -> Snapshot:
        """Before anything was read."""
        kinds = {kind: {name: _TYPES[name] for name in fields_of(kind)} for kind in KINDS}
        more = {_FOLDED: pl.String, _VERSION: pl.Int64}
        return cls({kind: pl.DataFrame(schema=schema | more) for kind, schema in kinds.items()}, 0)

    def with_rows(self, rows: pl.DataFrame) -> Snapshot:
        """This one and newer rows of the table, each the whole entry, in any order; the newest version of an id counts."""
        if not rows.height:
            return self
        tables = {kind: table.frame for kind, table in self._tables.items()}
        for kind in rows["kind"].unique().to_list():
            if kind not in tables:
                continue  # of a newer version of this program
            newest = rows.filter(pl.col("kind") == kind).sort("version").unique("id", keep="last", maintain_order=True)
            present = newest.filter(pl.col("deleted") == 0).select(
                *(pl.col(name).cast(_TYPES[name]) for name in fields_of(kind)),
                pl.col("name").str.to_lowercase().alias(_FOLDED),
                pl.col("version").cast(pl.Int64).alias(_VERSION),
            )
            ids = newest.select(pl.col("id").cast(pl.Int64))
            others = tables[kind].join(ids, on="id", how="anti") if tables[kind].height else tables[kind]
            tables[kind] = pl.concat([others, present], rechunk=True).sort("id")
        return Snapshot(tables, max(self.version, int(rows["version"].max())))  # type: ignore[arg-type]

    @property
    def summary(self) -> tuple[int, int]:
        """How many entries there are, and the sum of their versions: the same as the table's, unless a row was missed."""
        frames = [table.frame for table in self._tables.values()]
        return sum(frame.height for frame in frames), sum(int(frame[_VERSION].sum()) for frame in frames)

    def count(self, kind: str) -> int:
        """How many entries of a kind there are."""
        return len(self._tables[kind])

    def labelled(self, kind: str, columns: Sequence[str]) -> pl.DataFrame:
        """All entries of a kind, by ascending id, with these columns: `kind`, and fields, null where the kind has none."""
        frame = self._tables[kind].frame.select(fields_of(kind)).with_columns(pl.lit(kind).alias("kind"))
        absent = (pl.lit(None, dtype=_TYPES[name]).alias(name) for name in columns if name not in frame.columns)
        return frame.with_columns(*absent).select(columns)

    def present(self, kind: str, ids: Sequence[int]) -> list[bool]:
        """Whether there is an entry of each id."""
        flags: list[bool] = self._tables[kind].find(np.array(ids, np.int64))[1].tolist()
        return flags

    def entries(self, kind: str, ids: Sequence[int]) -> list[Entry | None]:
        """The entry of each id; None where there is none."""
        table, type_ = self._tables[kind], KINDS[kind]
        rows, present = table.find(np.array(ids, np.int64))
        if not present.any():
            return [None] * len(ids)
        values = iter(table.frame.select(fields_of(kind))[rows[present]].rows())
        return [type_(*next(values)) if is_present else None for is_present in present.tolist()]

    def entry(self, kind: str, id_: int, scope: RowScope) -> Entry | None:
        """One entry; None where there is none that may be seen."""
        rows, present = self._tables[kind].find(np.array([id_], np.int64))
        if not present[0] or not self._visible(kind, rows, scope)[0]:
            return None
        return self.entries(kind, [id_])[0]

    def children(self, kind: str, id_: int) -> tuple[str, int]:
        """The kind of which entries name this one, and how many there are; empty for none."""
        for child, (field, parent) in PARENTS.items():
            if parent == kind:
                return child, int((self._tables[child].frame[field] == id_).sum())
        return "", 0

    def search(self, search: Search, scope: RowScope) -> tuple[list[dict[str, Any]], tuple[str, int] | None]:
        """A page of the entries that may be seen, by name and id, as they go over HTTP, and the sort key of its last one if there
        are more."""
        table = self._tables[search.kind]
        frame = table.frame.filter(pl.Series(self._visible(search.kind, np.arange(len(table)), scope)))
        for field, value in search.equal:
            frame = self._of_parent(search.kind, frame, field, int(value)) if field not in frame.columns else frame.filter(
                pl.col(field) == value
            )  # fmt: skip
        if search.text:
            matches = pl.col(_FOLDED).str.contains(fold(search.text), literal=True)
            if search.text.isascii() and search.text.isdigit() and int(search.text) < 1 << 63:
                matches |= pl.col("id") == int(search.text)
            frame = frame.filter(matches)
        if search.after is not None:
            name, id_ = search.after
            frame = frame.filter((pl.col(_FOLDED) > name) | ((pl.col(_FOLDED) == name) & (pl.col("id") > id_)))
        page = frame.sort(_FOLDED, "id").head(search.limit)
        entries = page.select(fields_of(search.kind)).to_dicts()
        more = frame.height > page.height
        return entries, (page[_FOLDED][-1], int(page["id"][-1])) if more else None

    def _of_parent(self, kind: str, frame: pl.DataFrame, field: str, value: int) -> pl.DataFrame:
        """The entries whose parent has a value in a field: the ads of an advertiser, say."""
        parent_field, parent = PARENTS[kind]
        ids = self._tables[parent].frame.filter(pl.col(field) == value)["id"]
        return frame.filter(pl.col(parent_field).is_in(ids.implode()))

    def _visible(self, kind: str, rows: Ints, scope: RowScope) -> Bools:
        """Which rows of a kind may be seen: the one place that decides it. Publishers may be seen by all."""
        if kind == "publisher" or (scope.advertisers is None and scope.campaigns is None):
            return np.ones(len(rows), bool)
        table = self._tables[kind]
        if not len(table):
            return np.zeros(len(rows), bool)
        if kind == "ad":
            campaigns = table.frame["campaign_id"].to_numpy()[rows]
            campaign_rows, present = self._tables["campaign"].find(campaigns)
            return present & self._visible("campaign", campaign_rows, scope)
        ids = table.ids[rows]
        advertisers = ids if kind == "advertiser" else table.frame["advertiser_id"].to_numpy()[rows]
        visible = np.ones(len(rows), bool) if scope.advertisers is None else _among(advertisers, scope.advertisers)
        if kind == "campaign" and scope.campaigns is not None:
            visible &= _among(ids, scope.campaigns)
        return visible

    def names(self, kind: str, ids: Ints, scope: RowScope) -> list[str]:
        """The name of each id; its digits where there is no entry that may be seen."""
        table = self._tables[kind]
        names = [str(id_) for id_ in ids.tolist()]
        rows, present = table.find(ids)
        if present.any():
            numbers = np.flatnonzero(present & self._visible(kind, rows, scope))
            for number, name in zip(numbers.tolist(), table.frame["name"].gather(rows[numbers]).to_list(), strict=True):
                names[number] = name
        return names


@dataclass(frozen=True)
class Names:
    """What rows of numbers are labelled with."""

    snapshot: Snapshot
    scope: RowScope

    def of(self, dimension: str, ids: Ints) -> tuple[list[str], Ints]:
        """The distinct names of a column of ids, and which of them each row has."""
        distinct, numbers = np.unique(ids, return_inverse=True)
        return self.snapshot.names(KIND_OF_DIMENSION[dimension], distinct, self.scope), numbers


def name_column(dimension: str) -> str:
    """The column beside a dimension that has its names."""
    return f"{KIND_OF_DIMENSION[dimension]}_name"


def fold(text: str) -> str:
    """A text as names are compared, by the same rule as the column of a snapshot."""
    return str(pl.Series([text]).str.to_lowercase()[0])


def _among(ids: Ints, allowed: frozenset[int]) -> Bools:
    # An id beyond 63 bits is none of an entry's.
    return np.isin(ids, np.array([id_ for id_ in allowed if id_ < 1 << 63], np.int64))
