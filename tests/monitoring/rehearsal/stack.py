"""The stack of a rehearsal: backends, archive worker and a router by `adclick up`; workers and a second router are processes of its own,
which nothing restarts."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
from pathlib import Path

import httpx
import psutil

from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, MINUTE_MS, now_ms
from infra.embedded.stack_folder import Folder
from infra.kafka.topics import EVENTS
from infra.redis.client import Redis
from infra.settings import Settings
from query.status import read_status
from tests.clusters.certificates import Authority
from tests.conftest import ADCLICK, NO_WORKERS, adclick
from tests.flow import worker_environment
from tests.monitoring.rehearsal.load import LiveLoad, Message, SteadyQuestions, make_event, send_events
from tests.monitoring.rehearsal.prometheus import RehearsedPrometheus
from tests.ports import unused_port
from tests.product import is_ready, wait_until

ARCHIVE_BYTES = 256 << 20
RATE = 400
TLS_ROUTER = "query-tls"
_ENV = {"ADCLICK_QUERY_CACHE": "off", "ADCLICK_CANARY_S": "2"}
"""Of the stack: what is asked again is read again, so that each question shows the state of its store; and canaries are sent."""


class RehearsedStack:
    """Everything that a scene may touch."""

    def __init__(self, work: Path) -> None:
        """Bring it up, without ingest and stream workers. `work`: an empty folder in a mount namespace of this process."""
        self.folder, self._processes = Folder(work / "stack"), dict[str, subprocess.Popen[bytes]]()
        self.archive = work / "archive"
        self.archive.mkdir()
        # A small file system of its own, which can be filled.
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ARCHIVE_BYTES}", "tmpfs", self.archive], check=True)
        self._env = _ENV | {"ADCLICK_ARCHIVE": str(self.archive)}
        started = adclick("up", "--detach", "--dir", str(self.folder.path), *NO_WORKERS, cwd=None, **self._env)
        assert started.returncode == 0, started.stderr
        self.settings: Settings = App(str(self.folder.path), False, False, True).settings
        self.key = self.settings.api_key.get_secret_value()
        self.router, self.tls_router = self.settings.http, f"https://127.0.0.1:{unused_port()}"
        self.authority = Authority(work / "certificates")
        self.identity = self.authority.issue("router")
        self.start_tls_router()
        self.prometheus = RehearsedPrometheus(work / "prometheus", self.router, self.tls_router, self.key)
        # Days that a nightly run can count come first: the watermark only ever grows.
        self.old_day, self.yesterday = (dt.datetime.now(dt.UTC).date() - dt.timedelta(days=days) for days in (3, 1))
        self.send(self.old_events(self.old_day, 6000))
        self.send(self.old_events(self.yesterday, 200))
        self.load = LiveLoad(self.settings, RATE)
        self.questions = SteadyQuestions(self.router, self.key)
        self.redis = Redis(self.settings.redis_access)

    def close(self) -> None:
        """Stop everything."""
        self.questions.close()
        self.load.close()
        self.prometheus.stop()
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(30)
        adclick("down", "--dir", str(self.folder.path))
        subprocess.run(["umount", "--lazy", self.archive], check=False)

    # -- processes --------------------------------------------------------------------------------------------------

    def start(self, name: str, **env: str) -> None:
        """Start a worker, e.g. `ingest-0`."""
        secret = str(self.folder.state()["user_secret"])
        variables = worker_environment(self.settings, name, **{"ADCLICK_USER_SECRET": secret} | self._env | env)
        command = "serve" if name == TLS_ROUTER else name.split("-")[0]
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen([*ADCLICK, command], env=variables, stdout=log, stderr=log)

    def start_pipeline(self) -> None:
        """An ingest and a stream worker, at work; returns once minutes are shown."""
        self.start("ingest-0")
        self.start("stream-0")
        wait_until(
            lambda: "AdclickSilentShards" not in {name for name, _ in self.prometheus.firing()}, 60, "all shards report"
        )
        wait_until(self.is_ready, 60, "the pipeline is ready")

    def start_tls_router(self) -> None:
        """The second router, with the certificate that is there now."""
        files = {"ADCLICK_TLS_CERTIFICATE": str(self.identity.certificate), "ADCLICK_TLS_KEY": str(self.identity.key)}
        self.start(TLS_ROUTER, ADCLICK_HTTP=self.tls_router, **files)

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process of its own, or of `adclick up`."""
        own = self._processes.get(name)
        process = psutil.Process(own.pid) if own is not None else self.folder.processes()[name]
        process.send_signal(number)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process of its own, and wait for that."""
        self.send_signal(name, number)
        self._processes[name].wait(60)

    def end_all(self, kind: str) -> None:
        """End all workers of a kind of its own."""
        for name, process in self._processes.items():
            if name.startswith(f"{kind}-") and process.poll() is None:
                self.end(name)

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.folder.log(name)

    # -- what is sent, and what can be seen ---------------------------------------------------------------------------

    def send(self, messages: list[Message]) -> None:
        """Send events at once."""
        send_events(self.settings, messages)

    def old_events(self, day: dt.date, count: int) -> list[Message]:
        """Events of a day, from noon on."""
        noon_ms = int(dt.datetime.combine(day, dt.time(12), dt.UTC).timestamp()) * 1000
        return [make_event(noon_ms + n * MINUTE_MS // 10) for n in range(count)]

    def reconcile(self, day: dt.date, *words: str) -> int:
        """Run the nightly job of a day; its exit code, which is 0 or 3."""
        dir_ = ("--dir", str(self.folder.path))
        result = adclick("reconcile", "--date", day.isoformat(), *words, *dir_, cwd=None, **self._env)
        assert result.returncode in (0, 3), result.stderr
        return result.returncode

    def is_ready(self) -> bool:
        """Whether `/readyz` of the first router says so."""
        return is_ready(self.router)

    def look(self, place: str) -> str:
        """What an operator sees at a place that a runbook names: a path of the router, a command, a log, or an expression of a board."""
        if place.startswith("/"):
            try:
                headers = {"Authorization": f"Bearer {self.key}"}
                return httpx.get(f"{self.router}{place}", headers=headers, timeout=20).text
            except httpx.HTTPError as error:
                return f"no answer: {error!r}"
        if place.startswith("log of "):
            return self.log(place.removeprefix("log of ")).read_text(errors="replace")[-20_000:]
        if place.startswith("board: "):
            expression = place.removeprefix("board: ")
            return str(self.prometheus.get("query", query=expression)["result"])
        if place == "targets of Prometheus":
            return str([(t["scrapeUrl"], t["health"]) for t in self.prometheus.get("targets")["activeTargets"]])
        if place == "df":
            return subprocess.run(["df", self.archive], capture_output=True, text=True, check=True).stdout
        if place == "certificate":
            openssl = ["openssl", "x509", "-enddate", "-noout", "-in", str(self.identity.certificate)]
            return subprocess.run(openssl, capture_output=True, text=True, check=True).stdout
        result = adclick(*place.removeprefix("adclick ").split(), "--dir", str(self.folder.path), cwd=None, **self._env)
        return result.stdout + result.stderr

    def clickhouse(self, statement: str) -> None:
        """Run a statement; `{db}` stands for the database."""
        client = ClickHouse(self.settings.clickhouse, self.settings.database)
        client.command(statement.replace("{db}", client.database))

    def lag(self) -> int:
        """Messages that ingest has yet to read."""
        return int(read_status(self.settings)["topics"].get(EVENTS, 0))

    def expect_exit(self, code: int, expected: int) -> None:
        """A nightly run ended as it should."""
        assert code == expected, f"the run ended with {code}, and not {expected}"

    def dated(self, pattern: str) -> str:
        """A regular expression with the day of this rehearsal in place of `{old_day}`."""
        return pattern.replace("{old_day}", f"{self.old_day}")

    def files_of(self, day: dt.date) -> list[Path]:
        """The archive's files of a day."""
        return sorted((self.archive / f"event_date={day.isoformat()}").rglob("*.parquet"))


def backlog(count: int, distinct: int = 1000) -> list[Message]:
    """Many messages that cost little: copies of a few events, from an hour ago on."""
    start_ms = now_ms() - HOUR_MS
    events = [make_event(start_ms + n * MINUTE_MS // 20) for n in range(distinct)]
    return (events * (count // distinct + 1))[:count]
