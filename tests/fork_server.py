"""Starts workers as forks of a process that has imported them already: an import takes two seconds of a core, a fork none.

`python -m tests.fork_server` reads a request a line: the words of a command, its variables, and the file for its errors. It answers with
the id of the process, and later with how it ended. A test that needs the start itself runs the command instead.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from infra.embedded.supervisor import WORKER_ENV

_ROOT = Path(__file__).parents[1]
_LOOK_EVERY_S = 0.02


class ForkedProcess:
    """A fork, with what tests use of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.args = f"fork {pid}"

    @property
    def returncode(self) -> int | None:
        """As `poll`."""
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, less than 0 for a signal; None while it runs."""
        return self._server.exit_code(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(_LOOK_EVERY_S)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)


class ForkServer:
    """The process that forks, from the side of the tests. It ends, with all its forks, when its input ends."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.fork_server"]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env=os.environ | WORKER_ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._codes = dict[int, int]()
        self._rest = b""

    def start(self, words: list[str], variables: dict[str, str], errors: Path) -> ForkedProcess:
        """Run the command in a fork, with these variables and no others."""
        assert self._process.stdin is not None
        request = {"words": words, "variables": variables, "errors": str(errors)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        while True:
            for answer in self._answers(wait=True):
                if "pid" in answer:
                    return ForkedProcess(self, answer["pid"])

    def exit_code(self, pid: int) -> int | None:
        """How a fork ended; None while it runs."""
        self._answers(wait=False)
        return self._codes.get(pid)

    def _answers(self, *, wait: bool) -> list[dict[str, Any]]:
        """The answers that have come; exit codes among them are kept."""
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), wait)
        data = self._process.stdout.read(65_536)
        if data == b"":
            raise RuntimeError("the fork server has ended")
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        answers = [json.loads(line) for line in lines]
        self._codes |= {a["ended"]: a["code"] for a in answers if "ended" in a}
        return answers


@cache
def fork_server() -> ForkServer:
    """The one of this process."""
    return ForkServer()


def _serve() -> None:
    """Fork for each request; report each end. Ends with its input, and ends all forks then."""
    children = set[int]()
    inbox, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(inbox, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    rest = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if inbox in ready:
            os.read(inbox, 4_096)
            _report_ended(children)
        if 0 in ready:
            data = os.read(0, 1 << 20)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(line), (inbox, wake))
                children.add(pid)
                _answer({"pid": pid})
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _report_ended(children: set[int]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.remove(pid)
            _answer({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _answer(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _become(request: dict[str, Any], pipes: tuple[int, int]) -> None:
    """Run a command in this process, as a new one would."""
    from infra import faults
    from infra.cli.main import main
    from tests import next_version

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pipe in pipes:
        os.close(pipe)
    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(source, target)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(request["variables"])
    fault = os.environ.get("ADCLICK_FAULT")
    faults.point = faults.armed(fault) if fault else faults.point
    next_version.become(os.environ)
    sys.argv = ["adclick", *request["words"]]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def _prepare() -> None:
    """Import the workers, and load what is compiled; without a thread, which forks would not have. (Polars starts one, so workers that use
    it are not imported. The allocator's are made again in forks.)"""
    import numpy as np

    import ingest.warm_up
    import ingest.worker
    import stream.worker  # noqa: F401
    from stream.insights.detector import DetectorBank

    ingest.warm_up.main()
    DetectorBank(1, counts=True).update(np.arange(1), np.zeros(1, np.int64), np.ones(1))
    gc.collect()
    gc.freeze()
    threads = {
        (task / "comm").read_text().strip()
        for task in Path("/proc/self/task").iterdir()
        if task.name != str(os.getpid())
    }
    assert threads <= {"jemalloc_bg_thd"}, threads


if __name__ == "__main__":
    _prepare()
    _serve()
