"""ClickHouse's server out of the engine of the wheel, by /etc/clickhouse-server with its config.d and users.d."""

import importlib
import os
import signal
import sys
import threading
import urllib.request

sys.path.insert(0, "/opt/chdb")
os.chdir("/opt/chdb/chdb")
engine = importlib.import_module("chdb._chdb")

# The engine reads ./config.xml, and what is beside it.
os.chdir("/etc/clickhouse-server")
KEEPER = (
    "SYSTEM START LISTEN HTTP; "
    "SELECT ignore(sleepEachRow(1)) FROM system.numbers SETTINGS max_block_size=1, max_threads=1, max_execution_time=0 FORMAT Null"
)
END = b"KILL QUERY WHERE query LIKE '%sleepEachRow(%' ASYNC"
ended = threading.Event()


def serve() -> None:
    try:
        engine.query(KEEPER, "TabSeparated", path="/var/lib/clickhouse")
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        ended.set()


def stop(*_: object) -> None:
    try:
        urllib.request.urlopen("http://127.0.0.1:8123/", END, timeout=5).read()
    except OSError as error:
        print(f"stopping at once: {error}", file=sys.stderr, flush=True)
        os._exit(0)


signal.signal(signal.SIGTERM, stop)
threading.Thread(target=serve, daemon=True).start()
while not ended.wait(0.5):
    pass
os._exit(0)
