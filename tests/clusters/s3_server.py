"""An S3-compatible store on this machine: moto's server in a process of its own, behind a proxy that can take it away."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request

from infra.embedded.lifeline import die_with_parent
from tests.clusters.started import Started
from tests.clusters.tcp_proxy import Proxy
from tests.ports import unused_port
from tests.product import wait_until


class S3Server(Started):
    """A store in memory. Its contents outlast `network.cut()`, `.drop()` and the like; they end with `close`."""

    def __init__(self) -> None:
        port = unused_port()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent,
        )  # fmt: skip
        self.network = Proxy(f"127.0.0.1:{port}")
        """What is between clients and the store."""
        self.url = f"http://{self.network.address}"

    def start(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, 20, "the store answers")

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the AWS SDK finds the store in place of Amazon's."""
        return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": self.url}

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket. Its name has three characters or more."""
        self._request("PUT", f"/{name}")

    def close(self) -> None:
        """End the store and its contents. May be called twice."""
        self.network.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"the store ended with {self._process.returncode}"
        try:
            self._request("GET", "/")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def _request(self, method: str, path: str) -> None:
        request = urllib.request.Request(f"{self.url}{path}", method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(request, timeout=10).close()
