"""How many bytes the stores have on disk, for `/metrics`: of each topic, of each table, of the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from infra.clickhouse.client import ClickHouse
from infra.file_store import FileStore
from infra.kafka.log_sizes import read_log_sizes
from infra.kafka.topics import NAMES
from infra.settings import Settings
from query.api.latest_reading import LatestReading
from query.api.pipeline_samples import MetricSample

_TIMEOUT_S = 5
_FRESH_S = 60.0
Sizes = dict[str, int]


class StoredBytes:
    """Reads each store once a minute, and less often where that takes long: an archive may have very many files. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        reads: dict[str, Callable[[], Sizes]] = {
            "kafka": lambda: read_log_sizes(
                settings.kafka_connection, map(settings.topic, NAMES), timeout_s=_TIMEOUT_S
            ),
            "clickhouse": lambda: _read_tables(ClickHouse.of(settings, timeout_s=_TIMEOUT_S)),
            "archive": lambda: _read_archive(FileStore(settings.archive)),
        }
        self._readings = {store: LatestReading(read, fresh_s=_FRESH_S) for store, read in reads.items()}

    def samples(self, away: Iterable[str]) -> Iterator[MetricSample]:
        """What is known. `away`: stores that are not asked; one that could not be read has no sample, either."""
        for store in self._readings.keys() - set(away):
            for name, size in sorted((self._readings[store].get() or {}).items()):
                yield MetricSample("adclick_stored_bytes", (store, name), size)


def _read_tables(client: ClickHouse) -> Sizes:
    """Table → bytes of the server that answers. Raises Unavailable."""
    rows = client.rows(
        "SELECT name, total_bytes FROM system.tables WHERE database = {database:String} AND total_bytes > 0",
        {"database": client.database},
    )
    return {str(name): int(size) for name, size in rows}


def _read_archive(store: FileStore) -> Sizes:
    """The sum of all files; none where the folder is on another machine. Raises Unavailable."""
    if store.folder is not None and not store.folder.exists():
        return {}
    return {"files": sum(file.bytes for file in store.files())}
