"""The nightly job on a standalone Spark master with two workers, each a process of its own."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path

import psutil

from infra.settings import Settings
from tests.clusters.spark_standalone import SparkStandalone
from tests.conftest import adclick
from tests.flow import environment
from tests.integration.test_reconcile import DAY_SHOWN, MOVED, causes_of, planted

__all__ = ["planted"]


def test_a_day_is_reconciled_on_a_cluster(planted: Settings, tmp_path: Path) -> None:
    with SparkStandalone(tmp_path) as cluster:
        words = ["reconcile", "--date", DAY_SHOWN, "--master", cluster.url, "--json"]
        result = adclick(*words, cwd=None, **environment(planted))
        assert result.returncode == 3, result.stderr
        assert causes_of(result.stdout) == MOVED
        # Both workers ran executors of it.
        assert all(list(cluster.work_folder(n).glob("app-*/*")) for n in range(2))
        # Which were told an address that another machine could reach, if this one has any.
        output = "".join(file.read_text() for file in cluster.work_folder(0).glob("app-*/*/stderr"))
        drivers = set(re.findall(r"--driver-url\W+spark://CoarseGrainedScheduler@(\S+):\d+", output))
        assert drivers
        own = [
            a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family == socket.AF_INET
        ]
        if any(not ipaddress.ip_address(address).is_loopback for address in own):
            assert not any(ipaddress.ip_address(socket.gethostbyname(driver)).is_loopback for driver in drivers), (
                drivers
            )
