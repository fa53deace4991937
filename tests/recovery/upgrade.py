"""Docs/runbooks.md, "A rolling upgrade, and back": workers are replaced one by one under load, over a migration and a new format of messages."""

from __future__ import annotations

import time
from pathlib import Path

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import pending
from ingest.blocks import SCHEMA_VERSION
from query.status import find_unready
from tests import next_version
from tests.flow import Flow
from tests.product import PATIENCE, wait_until
from tests.recovery.load import backends, counting, installation, under_load

_ORDER = ("archive-0", "archive-1", "stream-0", "stream-1", "ingest-0", "ingest-1", "notify-0")
_MIGRATION = next_version.variables(SCHEMA_VERSION, migration=True)
_FORMAT = next_version.variables(SCHEMA_VERSION + 1, migration=True)


def upgrade(work: Path) -> float:
    """To a release with a migration, back, forward again, and to one that writes another format, from which there is no way back."""
    with backends(work) as folder:
        settings = installation(folder)
        log = work / "log"
        with counting(settings, work) as running, under_load(running):
            for name in _ORDER:
                running.start(name)
            running.wait_until_something_is_shown()
            began = time.monotonic()

            assert _end(running, "stream-2", **_MIGRATION) == 1, "before its migration a new worker refuses"
            assert f"lacks the tables of {next_version.SQL_FILE} (adclick migrate makes them)" in log.read_text()
            assert _end(running, "migrate-0", **_MIGRATION) == 0
            _roll(running, "to the release with a migration", **_MIGRATION)
            _roll(running, "back to the former release")
            assert pending(ClickHouse.of(settings)) == [], "the former release has nothing to migrate"
            _roll(running, "to the release with another format", **_FORMAT)

            # Now it is too late: a worker of the former release says so, and changes nothing.
            running.stop("stream-1")
            running.variables = {}
            assert _end(running, "stream-1") == 1
            assert f"schema version {SCHEMA_VERSION + 1}, this program reads" in log.read_text()
            running.start("stream-1", **_FORMAT)
        return time.monotonic() - began


def _roll(running: Flow, what: str, **variables: str) -> None:
    """Replace the workers one at a time."""
    began = time.monotonic()
    running.variables = variables
    for name in _ORDER:
        running.stop(name)
        running.start(name)
        wait_until(lambda: not find_unready(running.settings), 40, lambda: f"{find_unready(running.settings)}")
    print(f"  {what}: {len(_ORDER)} workers in {time.monotonic() - began:.1f} s", flush=True)


def _end(running: Flow, name: str, **variables: str) -> int:
    """Run a command until it ends by itself; returns its exit code."""
    process = running.start(name, **variables)
    try:
        return process.wait(60 * PATIENCE)
    finally:
        del running.workers[name]
