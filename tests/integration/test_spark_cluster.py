"""The nightly job on a standalone Spark master with two workers, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from infra.embedded import java
from infra.settings import Settings
from tests.conftest import adclick
from tests.flow import environment
from tests.integration.test_reconcile import DAY_SHOWN, MOVED, causes_of, planted
from tests.ports import unused_port
from tests.product import PATIENCE, wait_until

__all__ = ["planted"]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    spec = find_spec("pyspark")
    assert spec is not None and spec.origin is not None
    home, port, web_port = Path(spec.origin).parent, unused_port(), unused_port()
    env = os.environ | {
        "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1", "SPARK_DAEMON_MEMORY": "256m",
        "JAVA_HOME": str(java.home_for_spark(tmp_path)), "PYSPARK_PYTHON": sys.executable,
    }  # fmt: skip
    url, processes = f"spark://127.0.0.1:{port}", list[subprocess.Popen[bytes]]()

    def start(*words: str) -> None:
        with (tmp_path / f"{len(processes)}.log").open("wb") as log:
            command = [str(home / "bin" / "spark-class"), *words]
            processes.append(
                subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
            )

    def workers() -> int:
        try:
            master_state = httpx.get(f"http://127.0.0.1:{web_port}/json/").json()
        except (httpx.HTTPError, ValueError):
            return 0
        return sum(worker["state"] == "ALIVE" for worker in master_state["workers"])

    try:
        where = ("--host", "127.0.0.1")
        start("org.apache.spark.deploy.master.Master", *where, "--port", str(port), "--webui-port", str(web_port))
        for n in range(2):
            own = ("--cores", "1", "--memory", "1g", "--webui-port", "0", "--work-dir", str(tmp_path / f"worker-{n}"))
            start("org.apache.spark.deploy.worker.Worker", *where, *own, url)
        wait_until(lambda: workers() == 2, 60, "two workers are with the master")
        yield url
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(30 * PATIENCE)


def test_a_day_is_reconciled_on_a_cluster(planted: Settings, master: str, tmp_path: Path) -> None:
    words = ["reconcile", "--date", DAY_SHOWN, "--master", master, "--json"]
    result = adclick(*words, cwd=None, **environment(planted))
    assert result.returncode == 3, result.stderr
    assert causes_of(result.stdout) == MOVED
    # Both workers ran executors of it.
    assert all(list((tmp_path / f"worker-{n}").glob("app-*/*")) for n in range(2))
