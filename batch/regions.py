"""The regions whose events a run bills: its own, and those that ADCLICK_OTHER_REGIONS names. What makes a bill of them wrong is refused.

Each region has a Kafka, a stream and an archive of its own. A run reads all archives, proves each by its own region's Kafka, and compares
what it counts with the stream of its own region.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from batch import coverage, publish
from batch.coverage import Proof, Stretch
from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError, UserError
from infra.file_store import FileStore, place_of
from infra.settings import Settings, read_other_installation
from ingest.archive import files as archive_files
from ingest.archive.files import File

_REQUIRED = ("kafka", "clickhouse", "archive")
# The digest of a run's input has 16 bits for a partition, and 4,096 of them are a region's.
_MOST = 15


@dataclass(frozen=True)
class Region:
    """A region of a run. `number`: its place among them, 0 for the own one, whose `name` is empty."""

    number: int
    name: str
    settings: Settings

    @property
    def archive(self) -> str:
        """Where its archive is: see `FileStore.where`."""
        return place_of(self.settings.archive)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors name the region, where it is another one."""
        try:
            yield
        except AdclickError as error:
            if not self.name:
                raise
            hint = error.hint or "nothing was published"
            kind = UserError if isinstance(error, UserError) else AdclickError
            raise kind(f"region {self.name}: {error.message}", hint=hint) from error

    def read_watermark(self) -> int | None:
        """Windows that end at or before this (epoch ms) are in the region's ClickHouse; None while a shard has published none."""
        with self.named():
            return publish.read_watermark(ClickHouse.of(self.settings), self.settings.block_partitions)

    def wait_for_archive(self, wait_s: float, say: Callable[[str], None], *, force: bool) -> list[int]:
        """See `coverage.wait_for_archive`."""
        with self.named():
            return coverage.wait_for_archive(self.settings, wait_s, self._say(say), force=force)

    def files_around(self, date: dt.date) -> list[File]:
        """See `ingest.archive.files.files_around`."""
        with self.named():
            files = archive_files.files_around(FileStore(self.settings.archive), date)
            return [replace(file, region=self.number) for file in files]

    def prove(self, files: Sequence[File], date: dt.date, ends: Sequence[int]) -> Proof:
        """See `coverage.prove`. `files`: of all regions."""
        with self.named():
            return coverage.prove(self.settings, [f for f in files if f.region == self.number], date, ends)

    def _say(self, say: Callable[[str], None]) -> Callable[[str], None]:
        return (lambda text: say(f"region {self.name}: {text}")) if self.name else say


def read_regions(settings: Settings) -> list[Region]:
    """The own region, and the others in the order of the setting. Raises UserError for a file that is wrong, and for regions that cannot
    be billed together."""
    regions = [Region(0, "", settings)]
    for word in filter(None, map(str.strip, settings.other_regions.split(","))):
        file = Path(word)
        region = Region(len(regions), file.stem, read_other_installation(file, _REQUIRED, "ADCLICK_OTHER_REGIONS"))
        for other in regions:
            _refuse_mismatch(region, other, file)
        regions.append(region)
    if len(regions) > 1 + _MOST:
        raise UserError(f"ADCLICK_OTHER_REGIONS names {len(regions) - 1} regions", hint=f"{_MOST} at most")
    return regions


def describe_lost_regions(regions: Sequence[Region], date: dt.date, run_id: str, billed: Sequence[str]) -> str:
    """A sentence on the regions that the day's current run bills, and that this run lacks; empty where it has all of them.

    `billed`: the names of other regions in that run.
    """
    names = {region.name for region in regions}
    lost = [name for name in billed if name not in names]
    return f"run {run_id} of {date} bills events of region {', '.join(lost)}, which this run lacks" if lost else ""


def _refuse_mismatch(region: Region, other: Region, file: Path) -> None:
    """Raise UserError where the two are not two, or their events do not add up."""
    new, old = region.settings, other.settings
    whom = f"region {other.name}" if other.name else "this region"
    if region.name == other.name:
        raise UserError(f"ADCLICK_OTHER_REGIONS names {region.name} twice", hint="name each file once, by its region")
    if (new.kafka, new.namespace) == (old.kafka, old.namespace) or region.archive == other.archive:
        raise UserError(f"{file} has the Kafka or the archive of {whom}", hint="a region's file has its own addresses")
    if new.currency != old.currency:
        raise UserError(
            f"region {region.name} bills in {new.currency}, {whom} in {old.currency}", hint="set one currency"
        )
    if new.user_secret != old.user_secret:
        raise UserError(
            f"region {region.name} hashes user ids with another secret than {whom}: users of both would count twice",
            hint=f"set user_secret in {file}, and use one secret in all regions",
        )


def join_proofs(regions: Sequence[Region], proofs: Sequence[Proof]) -> Proof:
    """One proof of all regions: that of the own one, with files and stretches of the others."""
    own = proofs[0]
    others = {region.name: proof for region, proof in zip(regions[1:], proofs[1:], strict=True)}
    return Proof(
        [file for proof in proofs for file in proof.files],
        [*own.looked_at, *_named_stretches({name: proof.looked_at for name, proof in others.items()})],
        [*own.missing, *_named_stretches({name: proof.missing for name, proof in others.items()})],
        own.rejected,
        own.ends,
        other_ends={name: proof.ends for name, proof in others.items()},
        set_aside=[*own.set_aside, *_named_stretches({name: proof.set_aside for name, proof in others.items()})],
    )


def _named_stretches(stretches: Mapping[str, Sequence[Stretch]]) -> list[Stretch]:
    return [replace(stretch, region=name) for name, of_region in stretches.items() for stretch in of_region]
