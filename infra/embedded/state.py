"""The folder of an embedded stack: pid files, logs, secrets, endpoints. What `down` and `status` read."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import IO, Any

import psutil

from infra.errors import AdclickError, UserError
from infra.settings import ENDPOINTS_FILE

LOG_LIMIT_BYTES = 20 << 20


class Folder:
    """Paths and small files of one stack."""

    def __init__(self, path: Path) -> None:
        # Absolute: the servers run in folders of their own.
        self.path = path.absolute()
        self.run, self.logs = self.path / "run", self.path / "logs"

    def make(self) -> None:
        """Create the folders. Raises UserError when that is not allowed."""
        try:
            for folder in (self.path, self.run, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}", hint="choose another --dir") from error

    # -- pid files ------------------------------------------------------------------------------------------

    def write_pid(self, name: str, pid: int) -> None:
        """`run/NAME.pid`."""
        self._replace(self.run / f"{name}.pid", f"{pid}\n")

    def remove_pid(self, name: str) -> None:
        """The process is gone."""
        (self.run / f"{name}.pid").unlink(missing_ok=True)

    def forget_pids(self) -> None:
        """No process of this folder runs any more."""
        for file in self.run.glob("*.pid"):
            file.unlink(missing_ok=True)
        self.unmark_ready()

    def pids(self) -> dict[str, int]:
        """name → pid as written, running or not."""
        found = {}
        for file in sorted(self.run.glob("*.pid")):
            try:
                found[file.stem] = int(file.read_text())
            except (OSError, ValueError):
                continue
        return found

    def processes(self) -> dict[str, psutil.Process]:
        """name → process, for those that run and are ours."""
        found = {}
        for name, pid in self.pids().items():
            try:
                process = psutil.Process(pid)
                written_at = (self.run / f"{name}.pid").stat().st_mtime
                # A pid is used again sooner or later: ours was started before its file was written.
                if process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written_at + 1:
                    found[name] = process
            except (psutil.Error, OSError):
                continue
        return found

    def supervisor_pid(self) -> int | None:
        """The running supervisor of this folder."""
        process = self.processes().get("supervisor")
        return process.pid if process else None

    def mark_ready(self) -> None:
        """All processes are up."""
        self._replace(self.run / "ready", "")

    def unmark_ready(self) -> None:
        """Not (or no longer) all up."""
        (self.run / "ready").unlink(missing_ok=True)

    def ready(self) -> bool:
        """Whether the supervisor has said so."""
        return (self.run / "ready").exists()

    # -- logs -----------------------------------------------------------------------------------------------

    def log(self, name: str) -> Path:
        """`logs/NAME.log`."""
        return self.logs / f"{name}.log"

    def open_log(self, name: str) -> IO[bytes]:
        """The log, for appending; a big one is put aside first."""
        path = self.log(name)
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def log_tail(self, name: str) -> str:
        """The last line that says something."""
        try:
            told = self.log(name).read_text(errors="replace").splitlines()
            lines = [line for line in told if line.strip() and not line.startswith("SLF4J")]
        except OSError:
            return ""
        return lines[-1][:600] if lines else ""

    # -- state and endpoints --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Ports and secrets of earlier starts."""
        try:
            found: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(
                f"{self.path / 'state.json'} is damaged: {error}", hint="restore it: it holds the keys"
            ) from error
        return found

    def write_state(self, state: dict[str, Any]) -> None:
        """Keep ports and secrets, readable for this user alone."""
        self._replace(self.path / "state.json", json.dumps(state, indent=1))

    def write_endpoints(self, endpoints: dict[str, str]) -> None:
        """`endpoints.json`, readable for this user alone."""
        self._replace(self.path / ENDPOINTS_FILE, json.dumps(endpoints, indent=1) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        temporary = path.with_name(path.name + ".new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(text)
        temporary.replace(path)

    # -- stop -----------------------------------------------------------------------------------------------

    def stop(self, timeout_s: float = 25.0) -> bool:
        """Stop the supervisor and wait until it is gone; False when none was running."""
        pid = self.supervisor_pid()
        if pid is None:
            return False
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            # Its children die with it.
            process.kill()
            try:
                process.wait(5)
            except psutil.TimeoutExpired:
                raise AdclickError(f"the supervisor (pid {pid}) does not end") from None
            time.sleep(0.5)
        return True
