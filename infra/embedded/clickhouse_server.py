"""Runs ClickHouse's own HTTP server out of the chdb-core wheel, in a process of its own.

`python -m infra.embedded.clickhouse_server DIR` with `config.xml` in DIR. The engine starts its listener by
`SYSTEM START LISTEN HTTP` and serves for as long as one call into it lasts, hence the query that never ends.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any
from xml.sax.saxutils import escape

from infra import http_client
from infra.priority import PIPELINE

KEEPER = (
    "SYSTEM START LISTEN HTTP; "
    "SELECT ignore(sleepEachRow(1)) FROM system.numbers"
    " SETTINGS max_block_size=1, max_threads=1, max_execution_time=0 FORMAT Null"
)

BACKUPS = "backups"
"""The folder, beside the server's own, that `BACKUP … TO Disk('backups', 'NAME')` writes to: it stays when the server's is lost."""

CONFIG = """<clickhouse>
  <logger><level>warning</level><log>{logs}/clickhouse.server.log</log><errorlog>{logs}/clickhouse.error.log</errorlog>
    <size>20M</size><count>2</count></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{port}</http_port>
  <path>{path}/</path>
  <max_server_memory_usage>2000000000</max_server_memory_usage>
  <mark_cache_size>268435456</mark_cache_size>
  <primary_index_cache_size>134217728</primary_index_cache_size>
  <max_concurrent_queries>64</max_concurrent_queries>
  <max_connections>256</max_connections>
  <background_pool_size>2</background_pool_size>
  <os_threads_nice_value_merge_mutate>{merges}</os_threads_nice_value_merge_mutate>
  <storage_configuration>
    <disks><slow><path>{slow}/</path></slow><backups><type>local</type><path>{backups}/</path></backups></disks>
    <policies><tiered><volumes>
      <fast><disk>default</disk></fast><slow><disk>slow</disk></slow>
    </volumes></tiered></policies>
  </storage_configuration>
  <backups><allowed_disk>backups</allowed_disk></backups>
  <users_config>{users}</users_config>
</clickhouse>
"""

# The engine reads users only from a file of their own. Its internal session logs in as `default` without a
# password, so that user may start the listener and nothing else.
USERS = """<clickhouse>
  <profiles><default><max_threads>2</max_threads></default></profiles>
  <quotas><default/></quotas>
  <users>
    <default><password></password><networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
      <profile>default</profile><quota>default</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query><query>GRANT SELECT ON system.numbers</query></grants>
    </default>
    <adclick><password_sha256_hex>{password_sha256}</password_sha256_hex>
      <networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
      <profile>default</profile><quota>default</quota>
      <grants>
        <query>GRANT SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP, TRUNCATE, OPTIMIZE ON *.*</query>
        <query>GRANT KILL QUERY ON *.*</query>
        <query>GRANT BACKUP ON *.*</query>
        <query>GRANT READ, WRITE ON DISK</query>
        <query>GRANT TABLE ENGINE ON MergeTree</query>
        <query>GRANT TABLE ENGINE ON ReplacingMergeTree</query>
        <query>GRANT TABLE ENGINE ON AggregatingMergeTree</query>
        <query>GRANT TABLE ENGINE ON Memory</query>
      </grants>
    </adclick>
  </users>
</clickhouse>
"""


def write_config(folder: Path, logs: Path, port: int, password: str) -> None:
    """Lay out the server's folder: its configuration, its data and the slow volume; and that of backups, which is beside it."""
    for name in ("data", "slow"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    backups = folder.parent / BACKUPS
    backups.mkdir(mode=0o700, exist_ok=True)
    (folder / "config.xml").write_text(
        CONFIG.format(
            logs=escape(str(logs.resolve())),
            port=port,
            merges=PIPELINE,
            path=escape(str((folder / "data").resolve())),
            slow=escape(str((folder / "slow").resolve())),
            backups=escape(str(backups.resolve())),
            users=escape(str((folder / "users.xml").resolve())),
        )
    )
    digest = hashlib.sha256(password.encode()).hexdigest()
    (folder / "users.xml").write_text(USERS.format(password_sha256=digest))


def main() -> None:
    """Serve until SIGTERM, then let the engine finish."""
    engine: Any = importlib.import_module("chdb._chdb")  # before the folder changes: importing opens ./config.xml

    folder = Path(sys.argv[1]).resolve()
    port, password = int(sys.argv[2]), os.environ["ADCLICK_CLICKHOUSE_PASSWORD"]
    os.chdir(folder)
    _check_folders(folder)
    ended, stopping = threading.Event(), threading.Event()

    def serve() -> None:
        try:
            # One call for both statements: a second one would set the engine up twice. Its output format becomes
            # the default of the HTTP interface, where clients count on TabSeparated.
            engine.query(KEEPER, "TabSeparated", path=str(folder / "data"))
        finally:
            ended.set()

    def stop(_signum: int, _frame: FrameType | None) -> None:
        stopping.set()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/?query=KILL+QUERY+WHERE+query+LIKE+%27%25sleepEachRow%28%25%27+ASYNC",
            method="POST",
            headers={"X-ClickHouse-User": "adclick", "X-ClickHouse-Key": password},
        )
        try:
            http_client.open_url(request, 3).read()
        except OSError as error:
            print(f"stopping at once: {error}", file=sys.stderr)
            os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=serve, daemon=True).start()
    while not ended.wait(0.5):
        pass
    if not stopping.is_set():
        print("the engine ended; where nothing above says why, its data may be damaged or in use", file=sys.stderr)
    sys.stderr.flush()
    # Interpreter shutdown would tear the engine down a second time.
    os._exit(0 if stopping.is_set() else 1)


def _check_folders(folder: Path) -> None:
    """End with a line that says why where a folder cannot be written: the engine would end, or hang, without one."""
    for name in ("data", "slow"):
        try:
            with tempfile.TemporaryFile(dir=folder / name) as file:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError as error:
            sys.exit(f"{folder / name} cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
