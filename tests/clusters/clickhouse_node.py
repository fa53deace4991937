"""One node of a cluster of the tests: `python -m tests.clusters.clickhouse_node DIR` with `config.xml` in DIR.

Like `infra.embedded.clickhouse_server`, which has no port for other nodes.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

SERVE = (
    "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; SELECT ignore(sleepEachRow(1)) FROM system.numbers"
    " SETTINGS max_block_size=1, max_threads=1, max_execution_time=0 FORMAT Null"
)


def main() -> None:
    """Serve until killed."""
    engine: Any = importlib.import_module("chdb._chdb")  # before the folder changes: importing opens ./config.xml
    folder = Path(sys.argv[1]).resolve()
    os.chdir(folder)
    engine.query(SERVE, "TabSeparated", path=str(folder / "data"))
    os._exit(1)


if __name__ == "__main__":
    main()
