"""A standalone Spark on this machine: a master and workers, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx

from infra.embedded import java
from infra.embedded.lifeline import die_with_parent
from tests.clusters.started import Started
from tests.ports import unused_port
from tests.product import PATIENCE, wait_until

_DEPLOY = "org.apache.spark.deploy"


class SparkStandalone(Started):
    """A master and its workers, with a core and a gigabyte each."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        """`folder`: where logs and the workers' folders lie."""
        spec = find_spec("pyspark")
        assert spec is not None and spec.origin is not None
        self._folder, self._home = folder, Path(spec.origin).parent
        self._port, self._web_port = unused_port(), unused_port()
        self._count = workers
        self._processes = dict[str, subprocess.Popen[bytes]]()
        self._env = os.environ | {
            "SPARK_HOME": str(self._home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1", "SPARK_DAEMON_MEMORY": "256m",
            "JAVA_HOME": str(java.home_for_spark(folder)), "PYSPARK_PYTHON": sys.executable,
        }  # fmt: skip
        self.url = f"spark://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the master and the workers, and wait until they are with it."""
        ports = ("--port", str(self._port), "--webui-port", str(self._web_port))
        self._launch("master", f"{_DEPLOY}.master.Master", *ports)
        for n in range(self._count):
            self.start_worker(n)
        wait_until(lambda: self.alive() == self._count, 60, f"{self._count} workers are with the master")

    def start_worker(self, number: int) -> None:
        """Start a worker, also one that was killed; it joins when it is up."""
        own = ("--cores", "1", "--memory", "1g", "--webui-port", "0", "--work-dir", str(self.work_folder(number)))
        self._launch(f"worker-{number}", f"{_DEPLOY}.worker.Worker", *own, self.url)

    def kill_worker(self, number: int) -> None:
        """SIGKILL a worker and its executors, and wait until it is gone."""
        self._end(f"worker-{number}", signal.SIGKILL)

    def work_folder(self, number: int) -> Path:
        """Where a worker keeps what its executors run in."""
        return self._folder / f"worker-{number}"

    def alive(self) -> int:
        """How many workers the master counts in."""
        try:
            state = httpx.get(f"http://127.0.0.1:{self._web_port}/json/").json()
        except (httpx.HTTPError, ValueError):
            return 0
        return sum(worker["state"] == "ALIVE" for worker in state["workers"])

    def close(self) -> None:
        """End all of it. May be called twice."""
        for name in list(self._processes):
            self._end(name, signal.SIGTERM)

    def _launch(self, name: str, *words: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            command = [str(self._home / "bin" / "spark-class"), words[0], "--host", "127.0.0.1", *words[1:]]
            self._processes[name] = subprocess.Popen(
                command, env=self._env, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self._processes.pop(name)
        # With the executors, which are its children.
        os.killpg(process.pid, number)
        process.wait(30 * PATIENCE)
