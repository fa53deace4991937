"""The folder of an embedded stack: process records, logs, secrets, endpoints. What `down` and `status` read.

`run/NAME.pid` is for people and scripts. `run/processes.json` is what we rely on: it says which process a pid meant when it was
written, by facts that neither a clock nor a copied folder changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_IRWXO
from typing import IO, Any

import psutil

from infra.errors import AdclickError, UserError
from infra.settings import ENDPOINTS_FILE, STORES

LOG_LIMIT_BYTES = 20 << 20
_LOG_END_BYTES = 64 << 10
# Below PATH_MAX (4096) by what the servers add to it.
_LONGEST_PATH = 3_500
# The `starttime` of /proc/PID/stat, counted from the field behind the command's name.
_START_TICKS = 19
# `status` and `down` hold the lock for an instant while they look.
_LOCK_PATIENCE_S = 2.0


def process_start(pid: int) -> str | None:
    """Which boot and which clock tick of it a process began at; None where there is no such process, or only a zombie.

    With its pid that names one process for ever: a pid is used again, file times and the clock may be set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if stat[0] in "ZX" else f"{boot}/{stat[_START_TICKS]}"


def check_name(path: Path) -> None:
    """Raises UserError for a folder whose name some of the servers cannot take."""
    name = os.fsencode(path)
    if any(byte < 0x20 or byte == 0x7F for byte in name):
        raise UserError(f"the folder's name has a control character: {str(path)!r}", hint="choose another --dir")
    try:
        name.decode()
    except UnicodeDecodeError:
        raise UserError(f"the folder's name is not UTF-8: {name!r}", hint="choose another --dir") from None
    if len(name) > _LONGEST_PATH:
        raise UserError(
            f"the folder's name has {len(name):,} bytes, {_LONGEST_PATH:,} at most", hint="choose a shorter --dir"
        )


class Folder:
    """Paths and small files of one stack."""

    def __init__(self, path: Path) -> None:
        # Absolute: the servers run in folders of their own.
        self.path = path.absolute()
        self.run, self.logs = self.path / "run", self.path / "logs"

    def make(self) -> None:
        """Create the folders that are missing, for this user alone. Raises UserError when that is not possible."""
        check_name(self.path)
        # Events, user ids' digests and copies of keys are in what the servers store and log, and their files are made by the umask.
        servers = (self.path / name for name in STORES)
        try:
            for folder in (self.path, self.run, self.logs, *servers):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"{error.filename} is a file, not a folder", hint="choose another --dir") from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}", hint="choose another --dir") from error

    def is_open_to_others(self) -> bool:
        """Whether any user of this machine may look into the folder: one that was made by hand, or by an older release."""
        return bool(self.path.stat().st_mode & S_IRWXO)

    # -- processes ------------------------------------------------------------------------------------------

    def lock(self) -> IO[str]:
        """Keep other supervisors out for as long as the file returned is open. Raises UserError when one is at work here."""
        try:
            file = open(self.run / "lock", "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}", hint="choose another --dir") from error
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except OSError:
                if time.monotonic() > deadline:
                    file.close()
                    raise UserError(
                        f"a stack is already running in {self.path}", hint="adclick down stops it"
                    ) from None
            time.sleep(0.05)

    def is_locked(self) -> bool:
        """Whether a supervisor is at work here, on this machine, whatever its pid is to us."""
        try:
            with open(self.run / "lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def write_pid(self, name: str, pid: int) -> None:
        """Record a process that has just been started, in `run/NAME.pid`, too."""
        with self._changing_processes() as processes:
            processes[name] = {"pid": pid, "start": process_start(pid)}
        self._replace(self.run / f"{name}.pid", f"{pid}\n")

    def forget_pids(self) -> None:
        """No process of this folder runs any more."""
        for file in (*self.run.glob("*.pid"), self.run / "processes.json"):
            file.unlink(missing_ok=True)
        self.unmark_ready()

    def pids(self) -> dict[str, int]:
        """name → pid as written, running or not."""
        pids = {}
        for file in self.run.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pids[file.stem] = int(file.read_text())
        pids |= {name: entry["pid"] for name, entry in self._processes().items()}
        return dict(sorted(pids.items()))

    def processes(self) -> dict[str, psutil.Process]:
        """name → process, for those that run and are ours."""
        running = {}
        for name, entry in sorted(self._processes().items()):
            if entry["start"] is not None and process_start(entry["pid"]) == entry["start"]:
                with contextlib.suppress(psutil.Error):
                    running[name] = psutil.Process(entry["pid"])
        return running

    def _processes(self) -> dict[str, dict[str, Any]]:
        try:
            record = json.loads((self.run / "processes.json").read_text())
            # A copy of the folder of a running stack names its processes, too.
            processes: dict[str, dict[str, Any]] = record["processes"] if record["folder"] == self._identity() else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return processes

    @contextlib.contextmanager
    def _changing_processes(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Write the processes; called by the supervisor alone."""
        processes = self._processes()
        yield processes
        self._replace(
            self.run / "processes.json", json.dumps({"folder": self._identity(), "processes": processes}, indent=1)
        )

    def _identity(self) -> list[int]:
        status = self.run.stat()
        return [status.st_dev, status.st_ino]

    def supervisor_pid(self) -> int | None:
        """The running supervisor of this folder."""
        process = self.processes().get("supervisor")
        return process.pid if process else None

    def mark_ready(self) -> None:
        """Mark the stack as ready: all processes are up."""
        self._replace(self.run / "ready", "")

    def unmark_ready(self) -> None:
        """Mark the stack as not ready: some process is not up."""
        (self.run / "ready").unlink(missing_ok=True)

    def ready(self) -> bool:
        """Whether the supervisor has said so."""
        return (self.run / "ready").exists()

    # -- nightly runs that are asked for --------------------------------------------------------------------

    def request_run(self, date: str) -> bool:
        """Ask the supervisor for a nightly run of a day; False where another request waits for it. Raises OSError."""
        try:
            # Linked, so that of two requests at once one is refused, and none is read half-written.
            temporary = self.run / f"reconcile.{os.getpid()}.{time.monotonic_ns()}"
            temporary.write_text(date)
            os.link(temporary, self.run / "reconcile.request")
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def requested_run(self) -> str | None:
        """The day that was asked for; None where none is."""
        try:
            return (self.run / "reconcile.request").read_text()
        except OSError:
            return None

    def drop_request(self) -> None:
        """The run that was asked for is started; called by the supervisor."""
        (self.run / "reconcile.request").unlink(missing_ok=True)

    def forget_runs(self) -> None:
        """No run of this folder is at work any more, nor asked for."""
        for name in ("reconcile.request", "reconcile.outcome"):
            (self.run / name).unlink(missing_ok=True)

    def write_run_outcome(self, outcome: dict[str, Any]) -> None:
        """How the run that the supervisor started last has ended; `code` None: it is at work."""
        self._replace(self.run / "reconcile.outcome", json.dumps(outcome))

    def run_outcome(self) -> dict[str, Any] | None:
        """The same; None where none was started."""
        try:
            outcome: dict[str, Any] = json.loads((self.run / "reconcile.outcome").read_text())
        except (OSError, ValueError):
            return None
        return outcome

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

    def log_end(self, name: str, start: int = 0) -> str:
        """What a log has from byte `start` on, its last 64 KiB at most."""
        try:
            with self.log(name).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                # A log that is shorter than it was has been begun anew.
                log.seek(max(start if start <= size else 0, size - _LOG_END_BYTES))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def log_size(self, name: str) -> int:
        """Bytes that a log has now."""
        try:
            return self.log(name).stat().st_size
        except OSError:
            return 0

    # -- state and endpoints --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Ports and secrets of earlier starts."""
        try:
            fields: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(
                f"{self.path / 'state.json'} is damaged: {error}", hint="restore it: it holds the keys"
            ) from error
        return fields

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

    def stop(self, timeout_s: float = 60.0) -> bool:
        """Stop the supervisor and wait until it is gone; False when none was running. Raises AdclickError when it cannot be reached."""
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while (pid := self.supervisor_pid()) is None and self.is_locked() and time.monotonic() < deadline:
            time.sleep(0.05)  # it may be about to write who it is
        if pid is None:
            if self.is_locked():
                raise AdclickError(
                    f"a stack is running in {self.path}, but its process cannot be seen from here",
                    hint="stop it where it was started: in another container, or by its terminal",
                )
            return False
        start = process_start(pid)
        # What starts other processes may never ask how they ended: such a zombie has ended all the same.
        for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + patience_s
            while start is not None and process_start(pid) == start:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            else:
                break
        else:
            raise AdclickError(f"the supervisor (pid {pid}) does not end")
        if number == signal.SIGKILL:
            time.sleep(0.5)  # its children die with it
        return True
