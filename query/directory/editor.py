"""Changes of the directory: checked against what is there, and written one batch at a time in the whole installation.

A lease in Redis orders the batches, so that each is checked against the ones before, versions rise in the order in which they can be
read, and what is unchanged is neither written nor audited, also where two imports run at once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from infra.redis.client import Redis
from query.directory.entries import PARENTS, BadEntry, Entry, kind_of
from query.directory.reader import DirectoryReader
from query.directory.snapshot import Snapshot
from query.directory.store import Change, DirectoryStore
from query.row_scope import ALL_ROWS

_LEASE_S, _WAIT_S = 30, 20.0


@dataclass
class Outcome:
    """What became of entries. `refused`: where each stands that was not taken (its position in a batch, its line in a file), and why."""

    created: int = 0
    changed: int = 0
    unchanged: int = 0
    refused: list[tuple[int, BadEntry]] = field(default_factory=list)


class InUse(Exception):
    """An entry cannot be deleted, since others name it."""


class DirectoryEditor:
    """Every method may raise Unavailable."""

    def __init__(self, store: DirectoryStore, reader: DirectoryReader, redis: Redis, key_prefix: str) -> None:
        self._store, self._reader, self._redis, self._lock = store, reader, redis, f"{key_prefix}directory"

    def put(self, entries: Sequence[Entry], actor: str) -> Outcome:
        """Write entries of distinct kind and id, whole: what a former one had is replaced. One whose parent is not there, nor
        earlier in the batch, is refused; the others are written."""
        with self._exclusively() as fence:
            snapshot = self._reader.newest()
            outcome, changes = _compare(entries, snapshot)
            self._write(changes, snapshot, fence, actor)
        return outcome

    def delete(self, kind: str, id_: int, actor: str) -> Entry | None:
        """Delete an entry; returns what it was, None where there was none. Raises InUse."""
        with self._exclusively() as fence:
            snapshot = self._reader.newest()
            former = snapshot.entry(kind, id_, ALL_ROWS)
            if former is None:
                return None
            child, count = snapshot.children(kind, id_)
            if count:
                raise InUse(f"{kind} {id_} has {count:,} {child}{'' if count == 1 else 's'}; delete these first")
            self._write([Change(former, None)], snapshot, fence, actor)
        return former

    def _write(self, changes: Sequence[Change], snapshot: Snapshot, fence: int, actor: str) -> None:
        if changes:
            # The lease's number orders a batch behind those of earlier holders, also one that was held up in writing.
            try:
                self._store.write(changes, max(fence, snapshot.version + 1), actor, dt.datetime.now(dt.UTC))
            finally:
                self._reader.expire()

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[int]:
        busy = "the directory is being changed"
        with self._redis.wait_for_lease(self._lock, _LEASE_S, _WAIT_S, busy) as fence:
            yield fence


def _compare(entries: Sequence[Entry], snapshot: Snapshot) -> tuple[Outcome, list[Change]]:
    """What is new or differs, and the entries that cannot be taken."""
    positions: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        positions.setdefault(kind_of(entry), []).append(position)
    formers: list[Entry | None] = [None] * len(entries)
    for kind, of_kind in positions.items():
        present = snapshot.entries(kind, [entries[position].id for position in of_kind])
        for position, former in zip(of_kind, present, strict=True):
            formers[position] = former
    outcome, changes = Outcome(), list[Change]()
    missing = _missing_parents(entries, positions, snapshot)
    earlier = set[tuple[str, int]]()
    for position, (entry, former) in enumerate(zip(entries, formers, strict=True)):
        if position in missing and missing[position] not in earlier:
            parent, id_ = missing[position]
            detail = f"no such {parent}: {id_}; it must be in the directory before its {kind_of(entry)}s"
            outcome.refused.append((position, BadEntry(f"{parent}_id", detail)))
            continue
        earlier.add((kind_of(entry), entry.id))
        if former == entry:
            outcome.unchanged += 1
            continue
        outcome.created += former is None
        outcome.changed += former is not None
        changes.append(Change(former, entry))
    return outcome, changes


def _missing_parents(
    entries: Sequence[Entry], positions: Mapping[str, Sequence[int]], snapshot: Snapshot
) -> dict[int, tuple[str, int]]:
    """The entries whose parent is not in the directory, and its kind and id."""
    missing: dict[int, tuple[str, int]] = {}
    for kind, (name, parent) in PARENTS.items():
        of_kind = positions.get(kind, ())
        ids = [getattr(entries[position], name) for position in of_kind]
        present = snapshot.present(parent, ids)
        missing |= {
            position: (parent, id_)
            for position, id_, is_present in zip(of_kind, ids, present, strict=True)
            if not is_present
        }
    return missing
