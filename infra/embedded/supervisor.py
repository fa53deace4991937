"""One process that starts the stack, restarts what dies, and stops it all in order.

Children die with the supervisor, however it ends (PR_SET_PDEATHSIG); a lock on the folder keeps a second
supervisor out. Everything else about a running stack is read from files, see `state`.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from infra import logs, migration
from infra.embedded import exit_reasons, ports, prometheus_server, readiness, schedule, start_commands
from infra.embedded.lifeline import die_with_parent
from infra.embedded.stack_folder import Folder
from infra.embedded.start_commands import ProcessCommand
from infra.errors import AdclickError, UserError
from infra.file_store import is_bucket
from infra.kafka.connection import NO_OTHER_KAFKA
from infra.priority import answer_soon, give_way
from infra.redis.access import NO_OTHER_REDIS
from infra.settings import STORES, Settings, file_variables

# Whatever lies in the working directory, our modules and our packages' are meant.
ADCLICK = [sys.executable, "-P", "-m", "infra"]

BACKOFF_FIRST_S = 0.5
BACKOFF_CAP_S = 15.0
STEADY_S = 30.0
# A machine may be busy with other things.
READY_TIMEOUT_S = 180.0
# A worker that fails this often in a row before all is up will not come up, and sooner where it ends with an error of its own.
FAILED_STARTS, REFUSED_STARTS = 8, 3
OPEN_FILES, FEWEST_OPEN_FILES = 65_536, 1_024
# Workers hand over at once; backends may have to write. Together below 15 s.
WORKER_GRACE_S = 5.0
BACKEND_GRACE_S = 8.0

# Processes are named after their package, also where the command is another word.
_COMMANDS = {"query": "serve"}

WORKER_ENV = {
    # More threads than cores cost CPU and gain nothing: the processes are the parallelism.
    "POLARS_MAX_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # The same for each of the allocators: glibc's, polars' and Arrow's.
    **start_commands.MEMORY_ENV,
    "MALLOC_MMAP_MAX_": "0",
    "_RJEM_MALLOC_CONF": "narenas:1,thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


@dataclass
class Child:
    """A process that is kept running, and its restarts."""

    command: ProcessCommand
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    failures: int = 0
    refusals: int = 0
    """How often in a row it has ended with an error of its own."""
    log_start: int = 0
    """Where the log of this process begins in its file."""
    code: int = 0
    """How the last run of it ended."""

    @property
    def fails_to_start(self) -> bool:
        """Whether it has ended so often that it will not come up."""
        return self.failures >= FAILED_STARTS or self.refusals >= REFUSED_STARTS


class Supervisor:
    """Runs one stack in one folder, in the foreground."""

    def __init__(
        self, folder: Folder, workers: dict[str, int], overrides: dict[str, str], *, observe: bool = False
    ) -> None:
        """`workers`: how many of each kind. `observe`: whether Prometheus runs beside them."""
        self._folder, self._counts, self._overrides, self._observes = folder, workers, overrides, observe
        self._children: dict[str, Child] = {}
        self._stopping = False
        self._env: dict[str, str] = {}
        self._nightly: tuple[dt.date, subprocess.Popen[bytes]] | None = None
        self._nightly_after = 0.0
        self._nightly_log_start, self._is_requested = 0, False
        """Where the log of the last run begins, and whether it was asked for."""
        self._log = logs.get("supervisor")
        self._lock: Any = None
        self._clickhouse_errors_start = 0

    def run(self, on_ready: Callable[[dict[str, str]], None]) -> None:
        """Start everything, call `on_ready` with the endpoints, then watch until a signal. Raises UserError."""
        self._take_folder()
        signals = [signal.SIGINT, signal.SIGTERM]
        # Under nohup the end of a terminal is to be ignored, here and in all that is started from here.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            endpoints = self._start()
            if endpoints is not None:
                self._folder.write_endpoints(endpoints)
                self._folder.mark_ready()
                on_ready(endpoints)
                self._watch()
        finally:
            self._stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _take_folder(self) -> None:
        self._folder.make()
        self._lock = self._folder.lock()
        os.set_inheritable(self._lock.fileno(), False)
        self._folder.forget_pids()
        self._folder.forget_runs()
        self._folder.write_pid("supervisor", os.getpid())

    # -- start ----------------------------------------------------------------------------------------------

    def _start(self) -> dict[str, str] | None:
        state = self._folder.state()
        if self._overrides.get("http"):
            ports.claim_address(self._overrides["http"])
        listen = self._overrides.get("http")
        usual = usual_ports(listen, observe=self._observes)
        port_of = ports.choose_ports(self._folder.path, state.get("ports", {}), usual)
        for name, size in (("api_key", 24), ("user_secret", 24), ("clickhouse_password", 18)):
            state.setdefault(name, secrets.token_urlsafe(size))
        state["ports"] = state.get("ports", {}) | port_of
        state.setdefault("first_up_ms", time.time_ns() // 1_000_000)
        self._folder.write_state(state)
        path, home = self._folder.path, ports.LOOPBACK
        self._clickhouse_errors_start = self._folder.log_size("clickhouse.error")
        endpoints = {
            "kafka": f"{home}:{port_of['kafka']}",
            "redis": f"redis://{home}:{port_of['redis']}/0",
            "clickhouse": f"http://adclick:{state['clickhouse_password']}@{home}:{port_of['clickhouse']}",
            "http": ports.client_address(listen) if listen else f"http://{home}:{port_of['http']}",
            "api_key": self._overrides.get("api_key") or state["api_key"],
            # Of a worker or router that joins by `--dir`, too: with another secret the same user is another one.
            "user_secret": self._overrides.get("user_secret") or state["user_secret"],
            "archive": _absolute(self._overrides.get("archive")) or str((path / "archive").resolve()),
        }
        if self._counts.get("canary"):
            # Whoever looks at this stack knows then that canaries ought to come.
            endpoints["canary_s"] = self._overrides["canary_s"]
        raise_open_files_limit()
        self._launch(start_commands.redis(path / "redis", port_of["redis"]))
        self._launch(
            start_commands.clickhouse(
                path / "clickhouse", self._folder.logs, port_of["clickhouse"], state["clickhouse_password"]
            )
        )
        self._launch(start_commands.kafka(path / "kafka", port_of["kafka"], port_of["controller"]))
        ping = f"http://{home}:{port_of['clickhouse']}/ping"
        if not (
            self._wait("redis", lambda: readiness.redis_ready(endpoints["redis"]))
            and self._wait("clickhouse", lambda: readiness.http_ready(ping))
            and self._wait("kafka", lambda: readiness.kafka_ready(endpoints["kafka"]))
        ):
            return None
        values = self._overrides | NO_OTHER_KAFKA | NO_OTHER_REDIS | endpoints
        env = {f"ADCLICK_{k.upper()}": v for k, v in values.items()}
        env |= WORKER_ENV | {
            "ADCLICK_HTTP": listen or endpoints["http"],
            "ADCLICK_DIR": str(path.resolve()),
        }
        self._env = env
        settings = Settings(**values)
        migration.migrate(settings)
        if not is_bucket(settings.archive):
            _make_archive(Path(settings.archive))
        for kind, count in self._counts.items():
            for number in range(count):
                argv = [*ADCLICK, _COMMANDS.get(kind, kind)]
                name = f"{kind}-{number}"
                self._launch(self._command(name, argv, ADCLICK_WORKER=name))
        probe = "readyz" if self._counts["stream"] and self._counts["ingest"] else "healthz"
        if not self._wait("query-0", lambda: readiness.http_ready(f"{endpoints['http']}/{probe}")):
            return None
        if self._observes and not self._start_prometheus(endpoints, port_of[prometheus_server.NAME]):
            return None
        return endpoints

    def _start_prometheus(self, endpoints: dict[str, str], port: int) -> bool:
        folder = self._folder.path / prometheus_server.NAME
        self._launch(prometheus_server.prometheus(folder, port, endpoints["http"], endpoints["api_key"]))
        ready = f"{prometheus_server.url_at(port)}/-/ready"
        return self._wait(prometheus_server.NAME, lambda: readiness.http_ready(ready))

    def _command(self, name: str, argv: list[str], **more: str) -> ProcessCommand:
        """One of our own commands, with the settings of the stack. Those that stood in files are in its variables, too."""
        return ProcessCommand(name, argv, Path.cwd(), self._env | more, file_variables(os.environ))

    def _launch(self, command: ProcessCommand) -> None:
        child = self._children.setdefault(command.name, Child(command))
        child.log_start = self._folder.log_size(command.name)
        child.process = self._spawn(command)
        child.started_at = time.monotonic()
        try:
            self._folder.write_pid(command.name, child.process.pid)
        except OSError as error:
            # It runs all the same; `status` does not show it.
            self._log.warning("pid not written", name=command.name, error=str(error))

    def _spawn(self, command: ProcessCommand) -> subprocess.Popen[bytes]:
        with self._folder.open_log(command.name) as log_file:
            return subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env={k: v for k, v in os.environ.items() if k not in command.unset} | command.env,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                # A signal from the terminal reaches the supervisor alone, which stops the others in order. One session, though: Linux
                # weighs the processes of different ones against each other without looking at how urgent they are.
                process_group=0,
                preexec_fn=partial(_prepare, command),
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> bool:
        """True once ready, False when asked to stop. Raises AdclickError with the cause otherwise."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._stopping:
            if ready():
                return True
            child = self._children[name]
            if name in STORES and child.process is not None and (code := child.process.poll()) is not None:
                child.code = code
                raise self._failure(child, f"{name} did not start")
            failing = next((c for c in self._children.values() if c.fails_to_start), None)
            if failing is not None:
                raise self._failure(failing, f"{failing.command.name} did not start")
            if time.monotonic() > deadline:
                # A worker that says why it ends is more to the point than the router, which only waits for it.
                refusing = next((c for c in self._children.values() if c.refusals), child)
                raise self._failure(refusing, f"{name} was not ready after {READY_TIMEOUT_S:.0f} s")
            self._revive()
            time.sleep(0.05)
        return False

    def _failure(self, child: Child, what: str) -> AdclickError:
        """What went wrong, by the server's own output. ClickHouse writes a log of its own, and may say nothing else."""
        name = child.command.name
        output = self._folder.log_end(name, child.log_start)
        if name == "clickhouse":
            output += self._folder.log_end("clickhouse.error", self._clickhouse_errors_start)
        cause = exit_reasons.find_cause(output) or (
            exit_reasons.ending(child.code) if child.code else "it says nothing"
        )
        # Kafka knows its folder by that name.
        cause = cause.replace(start_commands.FROM_INSIDE, str(child.command.cwd))
        return AdclickError(f"{what}: {cause}", hint=f"see {self._folder.log(name)}", output=output)

    # -- watch ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping:
            self._revive()
            self._reconcile_when_due()
            time.sleep(0.1)

    def _reconcile_when_due(self) -> None:
        """Run the nightly job once a day; try again later when it failed."""
        if self._nightly is not None:
            day, process = self._nightly
            code = process.poll()
            if code is None:
                return
            self._nightly = None
            self._log.info("reconciliation ended", date=day.isoformat(), code=code)
            self._report_run(day, code)
            if not self._is_requested:
                is_done = code in schedule.DONE and self._remember_reconciled(day)
                self._nightly_after = 0.0 if is_done else time.monotonic() + schedule.RETRY_S
        if (date := self._folder.requested_run()) is not None:
            self._start_run(dt.date.fromisoformat(date), requested=True)
            # Only now: at each moment either the request is there, or the run is at work.
            self._folder.drop_request()
            return
        if time.monotonic() < self._nightly_after:
            return
        self._nightly_after = time.monotonic() + 5.0
        try:
            state = self._folder.state()
        except (UserError, OSError) as error:
            self._log.warning("state not read", error=str(error))
            return
        if "first_up_ms" not in state:
            self._log.warning("state not read", error=f"{self._folder.path / 'state.json'} is gone")
            return
        done = state.get("reconciled_to")
        day_due = schedule.due(
            self._overrides.get("reconcile_at", Settings.model_fields["reconcile_at"].default),
            dt.datetime.now(dt.UTC),
            dt.datetime.fromtimestamp(state["first_up_ms"] / 1000, dt.UTC),
            dt.date.fromisoformat(done) if done else None,
        )
        if day_due is not None:
            self._start_run(day_due, requested=False)

    def _start_run(self, day: dt.date, *, requested: bool) -> None:
        """Start the nightly job; a run that was asked for reports a day without events instead of passing over it."""
        self._log.info("reconciling", date=day.isoformat(), requested=requested)
        argv = [*ADCLICK, "reconcile", *([] if requested else ["--skip-empty"]), "--date", day.isoformat()]
        self._nightly_log_start, self._is_requested = self._folder.log_size("reconcile"), requested
        try:
            self._nightly = (day, self._spawn(self._command("reconcile", argv)))
            self._report_run(day, None)
        except OSError as error:
            self._log.warning("reconciliation not started", error=str(error))

    def _report_run(self, day: dt.date, code: int | None) -> None:
        """Write how a run has ended; without a code, that it is at work."""
        why = None
        if code is not None and code not in schedule.DONE:
            lines = self._folder.log_end("reconcile", self._nightly_log_start).strip().splitlines()
            why = lines[-1][:500] if lines else f"it ended with {code}"
        outcome = {"date": day.isoformat(), "at_ms": time.time_ns() // 1_000_000, "code": code, "why": why}
        try:
            self._folder.write_run_outcome(outcome)
        except OSError as error:
            self._log.warning("outcome not written", error=str(error))

    def _remember_reconciled(self, day: dt.date) -> bool:
        try:
            self._folder.write_state(self._folder.state() | {"reconciled_to": day.isoformat()})
        except (UserError, OSError) as error:
            self._log.warning("reconciled day not written", date=day.isoformat(), error=str(error))
            return False
        return True

    def _revive(self) -> None:
        """Restart what died, each after a pause that doubles, with full jitter, up to a cap."""
        now = time.monotonic()
        for name, child in self._children.items():
            if child.process is None:
                if now >= child.restart_at:
                    self._relaunch(child, now)
                continue
            code = child.process.poll()
            if code is None:
                continue
            if now - child.started_at > STEADY_S:
                child.failures = 0
            ceiling = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** min(child.failures, 10))
            pause = ceiling * (0.5 + random.random() / 2) if child.failures else random.random() * BACKOFF_FIRST_S
            child.failures, child.code = child.failures + 1, code
            child.refusals = child.refusals + 1 if code == 1 else 0
            # Its pid file stays until it runs again: `status` names what does not run.
            child.process, child.restart_at = None, now + pause
            self._log.warning("process ended", name=name, code=code, restart_in_s=round(pause, 2))

    def _relaunch(self, child: Child, now: float) -> None:
        try:
            self._launch(child.command)
        except OSError as error:
            # The disk may be full, or memory short: for a while.
            child.restart_at = now + BACKOFF_CAP_S
            self._log.warning("process not started", name=child.command.name, error=str(error))

    # -- stop -----------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Workers first, so that they can hand over; then the backends."""
        if self._nightly is not None:
            self._nightly[1].kill()  # nothing of an unfinished run is published
        backends = [c for n, c in self._children.items() if n in STORES]
        workers = [c for n, c in self._children.items() if n not in STORES]
        for group, grace in ((workers, WORKER_GRACE_S), (backends, BACKEND_GRACE_S)):
            running = [c for c in group if c.process is not None and c.process.poll() is None]
            for child in running:
                assert child.process is not None
                child.process.terminate()
            deadline = time.monotonic() + grace
            for child in running:
                assert child.process is not None
                try:
                    child.process.wait(max(0.05, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self._log.warning("killed: it did not stop in time", name=child.command.name)
                    child.process.kill()
                    child.process.wait()
        self._folder.forget_pids()


def usual_ports(listen: str | None, *, observe: bool = False) -> dict[str, int]:
    """The ports to look for, without the router's where it has an address of its own, and with Prometheus' where it is to run."""
    usual = {name: port for name, port in ports.USUAL_PORTS.items() if name != "http" or not listen}
    return usual | ({prometheus_server.NAME: prometheus_server.USUAL_PORT} if observe else {})


def _make_archive(folder: Path) -> None:
    """For this user alone. Where it cannot be made, the archive worker waits, and says why."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _absolute(archive: str | None) -> str | None:
    """The archive as every process finds it, whatever its working directory."""
    return str(Path(archive).absolute()) if archive and not is_bucket(archive) else archive


def _prepare(command: ProcessCommand) -> None:
    die_with_parent()
    if command.niceness:
        give_way(command.niceness)
    elif command.answers:
        answer_soon()


def raise_open_files_limit() -> None:
    """Let the servers open as many files as this user may: Kafka and ClickHouse hold thousands. Raises UserError where that is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FEWEST_OPEN_FILES:
        raise UserError(
            f"only {wanted} files may be open at once, and {FEWEST_OPEN_FILES:,} are needed",
            hint=f"raise the hard limit: ulimit -Hn {FEWEST_OPEN_FILES}",
        )


def detach(folder: Folder, argv: list[str]) -> dict[str, str]:
    """Start a supervisor in the background and wait until it is ready; returns the endpoints."""
    folder.make()
    if folder.supervisor_pid() is not None or folder.is_locked():
        raise UserError(f"a stack is already running in {folder.path}", hint="adclick down stops it")
    folder.unmark_ready()
    log_start = folder.log_size("supervisor")
    try:
        log_file = folder.open_log("supervisor")
    except OSError as error:
        raise UserError(f"{folder.path} cannot be written: {error.strerror}", hint="choose another --dir") from error
    with log_file:
        process = subprocess.Popen(
            # What it prints are addresses with their keys, which are no matter for a log: the caller prints them.
            [*ADCLICK, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log_file, start_new_session=True,
        )  # fmt: skip
    try:
        while not folder.ready():
            if (code := process.poll()) is not None:
                output = folder.log_end("supervisor", log_start)
                error_lines = [line for line in output.splitlines() if line.startswith("adclick: ")]
                # It has said which log to see.
                raise AdclickError(
                    error_lines[-1].removeprefix("adclick: ")
                    if error_lines
                    else f"the supervisor did not start: {exit_reasons.find_cause(output) or exit_reasons.ending(code)}",
                    hint="" if error_lines else f"see {folder.log('supervisor')}",
                    output=output,
                )
            time.sleep(0.05)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    endpoints: dict[str, str] = json.loads((folder.path / "endpoints.json").read_text())
    return endpoints
