"""The nightly job on a standalone Spark master with two workers, each a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from psutil import net_if_addrs

from infra.settings import Settings
from tests.clusters.spark_standalone import SparkStandalone
from tests.conftest import adclick
from tests.flow import environment
from tests.integration.test_reconcile import DAY_SHOWN, MOVED, causes_of, planted

__all__ = ["planted"]


def reconcile(settings: Settings, folder: Path, **variables: str) -> list[str]:
    """Reconcile the planted day on a cluster in this folder; returns how each of its two workers started its executor."""
    with SparkStandalone(folder) as cluster:
        words = ["reconcile", "--date", DAY_SHOWN, "--master", cluster.url, "--json"]
        result = adclick(*words, cwd=None, **environment(settings) | variables)
        assert result.returncode == 3, result.stderr
        assert causes_of(result.stdout) == MOVED
        outputs = [next(iter(cluster.work_folder(n).glob("app-*/*/stderr"))) for n in range(2)]
        return [output.read_text().splitlines()[0] for output in outputs]


def driver_host(command: str) -> str:
    """The host at which an executor is told to find the driver."""
    match = re.search(r"CoarseGrainedScheduler@([^:\"]+):", command)
    assert match is not None, command
    return match[1]


def test_a_day_is_reconciled_on_a_cluster_whose_workers_may_be_other_machines(
    planted: Settings, tmp_path: Path
) -> None:
    here = {a.address for found in net_if_addrs().values() for a in found if a.family == socket.AF_INET} - {"127.0.0.1"}
    for command in reconcile(planted, tmp_path):
        assert not here or driver_host(command) in here


def test_properties_of_spark_go_to_its_driver_and_executors(planted: Settings, tmp_path: Path) -> None:
    properties = "spark.driver.host=127.0.0.2, spark.executor.memory=640m"
    for command in reconcile(planted, tmp_path, ADCLICK_SPARK_PROPERTIES=properties):
        assert driver_host(command) == "127.0.0.2" and "-Xmx640M" in command


_SESSION = """
import json, sys
from pathlib import Path
import psutil
from batch.spark_job import start_session
from infra.settings import resolve
folder = Path(sys.argv[1])
context = start_session(resolve().settings, "local[1]", folder).sparkContext
conf, words = context.getConf(), psutil.Process(context._gateway.proc.pid).cmdline()
mode = (folder / "spark-conf/spark-defaults.conf").stat().st_mode
print(json.dumps([conf.get("spark.adclick.secret"), conf.get("spark.ui.enabled"), words, mode & 0o777]))
"""


def test_properties_of_spark_are_on_no_command_line_and_ours_take_precedence(tmp_path: Path) -> None:
    secret = "hunter2\\t = #\u00e9\U0001f600\\"
    variables = os.environ | {
        "ADCLICK_SPARK_PROPERTIES": f"spark.ui.enabled=true,spark.adclick.secret={secret}",
        "PYTHONUTF8": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", _SESSION, str(tmp_path)], env=variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    in_force, ui, words, mode = json.loads(result.stdout.splitlines()[-1])
    assert (in_force, ui, mode) == (secret, "false", 0o600)
    assert "org.apache.spark.deploy.SparkSubmit" in words and not [word for word in words if "hunter2" in word]
