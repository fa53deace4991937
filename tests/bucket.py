"""An S3-compatible store on this machine: moto's server, by that protocol."""

from __future__ import annotations

from moto.server import ThreadedMotoServer


class BucketServer:
    """A store that can be stopped and started again with its contents."""

    def __init__(self) -> None:
        self._port, self._running = 0, ThreadedMotoServer()
        self.start()

    def start(self) -> None:
        """Serve at the address it had before, or at a free port."""
        self._running = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._running.start()
        self.url = "http://{}:{}".format(*self._running.get_host_and_port())
        self._port = self._running.get_host_and_port()[1]

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._running.stop()
