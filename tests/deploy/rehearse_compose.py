"""`make rehearse-compose`: an installation by compose.yaml, from nothing through what an operator does to it, exact at each step.

Needs compose 2, docker or podman with the backends' images (or `python -m tests.deploy.stand_ins`), and adclick's image in IMAGE. STEPS
names some of the steps, by comma; RATE is that of the events that are sent meanwhile (200 a second). A client reads all along: no count of a closed hour
may ever decrease. Exit 1 where an answer differs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import polars as pl
from pydantic import SecretStr

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.errors import AdclickError
from infra.kafka.admin import Admin
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.settings import Settings
from ingest.synthetic.generator import Spec, SyntheticEvents, Truth, generate_events
from query.canaries import TIERS
from query.client import Client
from query.demo.oracle import Oracle
from query.demo.questions import DemoQuestion, make_questions, make_reconciled_questions
from tests.chaos.watcher import Watcher, countable
from tests.conftest import adclick
from tests.deploy.compose import Deployment, engine_socket
from tests.deploy.image import engine
from tests.ports import unused_port
from tests.product import COUNTS, SPAN_MS, assert_stays, is_ready, wait_until

_FIRST, _LATER = 40_000, 60_000
_LATER_MS = 2 * HOUR_MS
_COPIES = 2_000
_SLICE_S = 0.2
_VOLUMES = ("kafka", "redis", "clickhouse", "archive")
# Readers before writers (docs/operating.md).
_ORDER = ("archive", "stream", "ingest", "router", "notify", "canary")


def make_events(start_ms: int) -> tuple[SyntheticEvents, SyntheticEvents]:
    """The first events, of 24 hours, and all: those and two hours more. No copy has its first occurrence in the other part."""
    border = start_ms + SPAN_MS - _LATER_MS
    shape = {"campaigns": 60, "late": 0.01, "malformed": 0.005}
    first = generate_events(Spec(_FIRST, seed=31, start_ms=start_ms, span_ms=border - start_ms, **shape))  # type: ignore[arg-type]
    # Event times are up to five seconds before the arrival.
    later_start = border + MINUTE_MS
    later = generate_events(
        Spec(_LATER, seed=32, start_ms=later_start, span_ms=_LATER_MS - 2 * MINUTE_MS, **shape)  # type: ignore[arg-type]
    )
    dead = later.truth.dead.with_columns(pl.col("line") + len(first.lines))
    truth = Truth(pl.concat([first.truth.counts, later.truth.counts]), pl.concat([first.truth.dead, dead]))
    arrival = np.concatenate([first.arrival_ms, later.arrival_ms])
    return first, SyntheticEvents(
        pl.concat([first.lines, later.lines]), arrival, pl.concat([first.keys, later.keys]), truth
    )


class Load:
    """Sends the later events in the background, at a rate, but while it is paused."""

    def __init__(self, settings: Settings, events: SyntheticEvents, first: int, rate: int) -> None:
        self.sent: list[tuple[float, int]] = []
        """(moment, lines acknowledged so far)."""
        self.position = first
        """The line that is sent next."""
        self._settings, self._events, self._rate = settings, events, rate
        self._running, self._end, self._error = threading.Event(), threading.Event(), list[BaseException]()
        self._idle = threading.Event()
        self._idle.set()
        self._first = first
        self._is_stale = False
        threading.Thread(target=self._run, daemon=True).start()

    def resume(self) -> None:
        """Go on sending."""
        self._idle.clear()
        self._running.set()

    def pause(self) -> None:
        """Send no more, once all that was sent is acknowledged."""
        self._running.clear()
        self._idle.wait(120)
        assert not self._error, self._error

    def reconnect(self, settings: Settings) -> None:
        """Go on with other settings, once they are needed: a new password. To be called while it is paused."""
        self._settings, self._is_stale = settings, True

    def finish(self) -> None:
        """Send all that is left, quickly."""
        self._rate = 5_000
        self.resume()
        wait_until(lambda: self.position >= len(self._events.lines), 60, "all events are sent")
        self.pause()

    def _run(self) -> None:
        producer = EventProducer(self._settings.kafka_connection)
        lines, keys = self._events.lines, self._events.keys
        try:
            while True:
                if not self._running.is_set() or self.position >= len(lines):
                    producer.flush(60)
                    self.sent.append((time.monotonic(), self._first + producer.acknowledged))
                    self._idle.set()
                    self._running.wait()
                    if self.position >= len(lines):
                        time.sleep(_SLICE_S)
                        continue
                if self._is_stale:
                    self._first += producer.acknowledged
                    producer, self._is_stale = EventProducer(self._settings.kafka_connection), False
                end = self.position + max(1, int(self._rate * _SLICE_S))
                part = slice(self.position, end)
                producer.send(EVENTS, [None if k is None else k.encode() for k in keys[part]], lines[part].to_list())
                self.position = min(end, len(lines))
                self.sent.append((time.monotonic(), self._first + producer.acknowledged))
                time.sleep(_SLICE_S)
        except BaseException as error:
            self._error.append(error)
            self._idle.set()


@dataclass
class Story:
    """The deployment, its events, and what watches it."""

    deployment: Deployment
    image: str
    start_ms: int
    first: SyntheticEvents
    events: SyntheticEvents
    work: Path
    rows: list[tuple[str, float, str]] = field(default_factory=list)
    """(step, seconds, what was seen)."""
    is_reconciled: bool = False
    """Whether the nightly run has published the day that has ended."""

    def __post_init__(self) -> None:
        self.load = Load(self.settings, self.events, len(self.first.lines), int(os.environ.get("RATE") or 200))
        self.watcher = Watcher(self, self.load.sent)
        self.countable = np.concatenate(([0], np.cumsum(countable(self.events))))

    @property
    def settings(self) -> Settings:
        """Of clients on the host: Kafka and the router at their published ports, the key from its file."""
        ports = self.deployment.variables
        return Settings.model_validate(
            {
                "kafka": f"127.0.0.1:{ports['KAFKA_PORT']}",
                "kafka_security_protocol": "SASL_PLAINTEXT",
                "kafka_sasl_mechanism": "PLAIN",
                "kafka_user": "adclick",
                "kafka_password": SecretStr(self.deployment.secret("kafka")),
                "http": f"http://127.0.0.1:{ports['ROUTER_PORT']}",
                "api_key": SecretStr(self.deployment.secret("api_key")),
            }
        )

    def replay(self, file: Path) -> None:
        """Send a file's events from the host."""
        settings = self.settings.model_dump(
            include={name for name in Settings.model_fields if name.startswith("kafka")}
        )
        plain = {k: v.get_secret_value() if isinstance(v, SecretStr) else str(v) for k, v in settings.items()}
        result = adclick(
            "replay", str(file), cwd=None, **{f"ADCLICK_{name.upper()}": value for name, value in plain.items()}
        )
        assert result.returncode == 0, result.stderr

    @property
    def oracle(self) -> Oracle:
        """Of all events."""
        return Oracle(self.events.truth)

    @property
    def day_ms(self) -> int:
        """The day that has ended."""
        return (self.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS

    def is_ready(self) -> bool:
        """Whether the router says that all of the pipeline is up."""
        return is_ready(self.settings.http)

    def canary_tiers(self) -> set[str]:
        """The tiers that report the age of a canary."""
        with suppress(AdclickError):
            return {canary["tier"] for canary in Client(self.settings).get("/v1/pipeline", [])["canaries"]}
        return set()

    def shown(self) -> int:
        """How many events the answers have, of all campaigns; -1 while there is none that lacks nothing."""
        parameters = [("campaign_id", ",".join(map(str, self.oracle.campaigns()))), ("granularity", "hour")]
        parameters += [("start", iso(self.start_ms - HOUR_MS)), ("end", iso(self.start_ms + SPAN_MS))]
        try:
            answer = Client(self.settings).get("/v1/metrics", parameters)
        except AdclickError:
            return -1
        if answer["warnings"]:
            return -1
        return sum(row[name] for row in answer["data"] for name in COUNTS)

    def expected(self) -> int:
        """How many events the answers ought to have: those that the stream counts, and what the nightly run has added to its day."""
        count = int(self.countable[self.load.position])
        if self.is_reconciled:
            day = self.events.truth.counts.filter(pl.col("minute_ms").is_between(self.day_ms, self.day_ms + DAY_MS - 1))
            sums = day.select(pl.sum(f"{view}_{name}") for view in ("batch", "stream") for name in COUNTS).row(0)
            count += sum(sums[: len(COUNTS)]) - sum(sums[len(COUNTS) :])
        return count

    def wait_until_all_is_shown(self) -> None:
        """All that was acknowledged is in the answers, once, and stays so."""
        expected = self.expected()
        wait_until(lambda: self.shown() == expected, 60, lambda: f"{expected} events are shown, not {self.shown()}")
        assert_stays(lambda: self.shown() in (expected, -1), 2, lambda: f"{expected} events, not {self.shown()}")

    def compare(self, questions: list[DemoQuestion]) -> int:
        """Raise AssertionError where an answer is not the truth; returns how many questions there were."""
        client = Client(self.settings)

        def difference(question: DemoQuestion) -> str:
            try:
                return self.oracle.check(client, question).difference
            except AdclickError as error:
                return str(error)

        left = questions

        def all_exact() -> bool:
            nonlocal left
            left = [q for q in left if difference(q)]
            return not left

        wait_until(all_exact, 10, lambda: f"{len(left)} differ: {left[0].parameters()}: {difference(left[0])}")
        assert not (wrong := [d for q in questions if (d := difference(q))]), wrong[:3]
        return len(questions)

    def questions(self) -> list[DemoQuestion]:
        """About all that was sent, by the truth of the part that it is of; that of the reconciled day by the nightly run."""
        is_all = self.load.position >= len(self.events.lines)
        end_ms = self.start_ms + SPAN_MS - (0 if is_all else _LATER_MS)
        questions = make_questions(self.oracle, self.start_ms, end_ms, minute_hours=23 if is_all else 21)
        since_ms = self.day_ms + DAY_MS
        open_days = [q for q in questions if q.start_ms >= since_ms and q.end_ms <= end_ms + (DAY_MS if is_all else 0)]
        return open_days + make_reconciled_questions(questions, self.day_ms)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what it appends to the list is in its line."""
        began, seen = time.monotonic(), list[str]()
        print(f"{name} ...", flush=True)
        yield seen
        took_s = time.monotonic() - began
        self.rows.append((name, took_s, "; ".join(seen)))
        print(f"{name:32} {took_s:6.1f} s  {self.rows[-1][2]}", flush=True)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Events are sent meanwhile; at the end all that was acknowledged is shown, once."""
        self.load.resume()
        try:
            yield
        finally:
            self.load.pause()
        self.wait_until_all_is_shown()

    def refuses(self, name: str, secret: str) -> bool:
        """Whether the server of a secret refuses it."""
        password = secret.split(":")[2].partition("@")[0] if "@" in secret else secret
        if name == "kafka":
            settings = self.settings.model_copy(update={"kafka_password": SecretStr(password)})
            with suppress(AdclickError):
                Admin(settings.kafka_connection, timeout_s=5).partitions(5)
                return False
            return True
        if name == "redis":
            ping = ("exec", "-T", "redis", "redis-cli", "-a", password, "ping")
            return "WRONGPASS" in self.deployment.run(*ping, codes=(0, 1))
        if name == "clickhouse":
            url = f"http://clickhouse:8123/?query=SELECT+1&user=adclick&password={password}"
            script = f"import urllib.request as u; u.urlopen({url!r})"
            return "403" in self.deployment.run("exec", "-T", "router", "python", "-c", script, codes=(0, 1))
        headers = {"Authorization": f"Bearer {password}"}
        return httpx.get(f"{self.settings.http}/v1/pipeline", headers=headers, trust_env=False).status_code == 401

    def recreate(self, *services: str) -> None:
        """Make containers of services anew, without those that they depend on."""
        self.deployment.run("up", "--detach", "--no-deps", "--force-recreate", *services)


def fresh(story: Story) -> None:
    """From nothing to exact answers, and a reconciled day."""
    with story.step("from nothing to ready") as seen:
        story.deployment.run("up", "--detach")
        seen.append(f"`up` returned, {len(story.deployment.states())} containers")
        wait_until(story.is_ready, 60, lambda: f"/readyz; {story.deployment.run('ps', '--all')}")
    threading.Thread(target=story.watcher.run, daemon=True).start()
    with story.step("a canary in every tier") as seen:
        wait_until(
            lambda: story.canary_tiers() == set(TIERS), 90, lambda: f"canaries got to {story.canary_tiers()} alone"
        )
        seen.append(f"{len(TIERS)} tiers report a canary's age")
    with story.step("first events") as seen:
        file = story.work / "events.ndjson"
        file.write_bytes(b"\n".join(story.first.lines.to_list()) + b"\n")
        story.replay(file)
        story.wait_until_all_is_shown()
        seen.append(f"{len(story.first.lines):,} lines replayed, all shown")
    with story.step("nightly run") as seen:
        # 3: with an alert, since some events were too late for the stream.
        story.deployment.run_once("reconcile", "--date", iso(story.day_ms)[:10], codes=(0, 3))
        story.is_reconciled = True
        seen.append(f"{story.compare(story.questions())} answers exact")


def partitions(story: Story) -> None:
    """Twice as many partitions of `ad-events`, while no producer is at work."""
    with story.step("8 partitions instead of 4") as seen:
        story.deployment.variables["EVENT_PARTITIONS"] = "8"
        story.deployment.run("up", "--detach")
        wait_until(story.is_ready, 60, "all 8 partitions have a worker")
        pipeline = Client(story.settings).get("/v1/pipeline", [])
        owned = {p for worker in pipeline["ingest_workers"] for p in worker["partitions"]}
        assert owned == set(map(str, range(8))), owned
        seen.append(f"{story.compare(story.questions())} answers exact")


def workers(story: Story) -> None:
    """A second worker of ingest and stream, under load."""
    with story.step("2 + 2 workers, under load") as seen, story.loaded():
        story.deployment.variables |= {"INGEST_WORKERS": "2", "STREAM_WORKERS": "2"}
        story.deployment.run("up", "--detach")

        def both_work() -> bool:
            try:
                pipeline = Client(story.settings).get("/v1/pipeline", [])
            except AdclickError:
                return False
            return [bool(worker["partitions"]) for worker in pipeline["ingest_workers"]] == [True, True]

        wait_until(both_work, 60, "both ingest workers have partitions")
        time.sleep(10)
        seen.append("both ingest workers have partitions")
    assert len(story.watcher.decreases) == 0, story.watcher.decreases[:3]


def upgrade(story: Story) -> None:
    """Another tag of the image and back, one service after the other, under load."""
    other = f"{story.image}-next"
    folder = story.work / "next"
    folder.mkdir()
    (folder / "Containerfile").write_text(f"FROM {story.image}\nLABEL org.opencontainers.image.version=next\n")
    command = [engine(), "build", "--tag", other, "--file", str(folder / "Containerfile"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for name, image in (("upgrade, under load", other), ("and back, under load", story.image)):
        with story.step(name) as seen, story.loaded():
            story.deployment.variables["IMAGE"] = image
            story.deployment.run_once("--no-deps", "migrate")
            former, ready = story.deployment.containers(*_ORDER), list[str]()
            for service in _ORDER:
                began = time.monotonic()
                story.deployment.run("up", "--detach", "--no-deps", service)
                wait_until(story.is_ready, 30, f"ready after {service}")
                ready.append(f"{service} {time.monotonic() - began:.0f} s")
            assert not former & story.deployment.containers(*_ORDER), "a service was not replaced"
            states = story.deployment.states().items()
            assert {state.split(" ")[0] for name, state in states if name.split("-")[1] in _ORDER} == {image}, states
            seen.append(f"ready after {', '.join(ready)}")
    assert len(story.watcher.decreases) == 0, story.watcher.decreases[:3]


def restore(story: Story) -> None:
    """All volumes saved, lost, and back; copies of the newest events do not count."""
    backup = story.work / "backup"
    backup.mkdir(exist_ok=True)
    story.deployment.variables["BACKUP"] = str(backup)
    with story.step("saving the volumes") as seen:
        refusal = story.deployment.run_once("backup", "save", codes=(1,))
        assert "not shut down in order" in refusal, refusal
        story.deployment.run("down")
        story.deployment.run_once("backup", "save")
        assert {file.name for file in backup.iterdir()} == {f"{name}.tar" for name in _VOLUMES}
        seen.append(f"{sum(file.stat().st_size for file in backup.iterdir()) >> 20} MB")
    with story.step("restoring them") as seen:
        refusal = story.deployment.run_once("backup", "restore", codes=(1,))
        assert "is not empty" in refusal, refusal
        story.deployment.run("down", "--volumes")
        story.deployment.run_once("backup", "restore")
        story.deployment.run("up", "--detach")
        wait_until(story.is_ready, 60, "ready")
        story.wait_until_all_is_shown()
        seen.append(f"{story.compare(story.questions())} answers exact")
    with story.step("copies after that") as seen:
        before = story.load.position
        file = story.work / "copies.ndjson"
        file.write_bytes(b"\n".join(story.events.lines[before - _COPIES : before].to_list()) + b"\n")
        story.replay(file)
        time.sleep(5)
        story.wait_until_all_is_shown()
        seen.append(f"{_COPIES:,} copies sent again, none counted")


def secrets(story: Story) -> None:
    """Each secret renewed; the former one is refused."""
    with story.step("a new kafka secret") as seen:
        # Producers have it, too: these are stopped before, and go on with the new one.
        renew(story, "kafka", "kafka", "ingest", "archive", "stream", "router", "notify", "canary")
        story.load.reconnect(story.settings)
        with story.loaded():
            time.sleep(2)
        seen.append("the former one is refused")
    for name, services in (
        ("redis", ("redis", "ingest", "archive", "stream", "router", "notify")),
        ("clickhouse", ("clickhouse", "stream", "router", "notify")),
        ("api_key", ("router",)),
    ):
        with story.step(f"a new {name} secret, under load") as seen, story.loaded():
            renew(story, name, *services)
            seen.append("the former one is refused")


def renew(story: Story, name: str, *services: str) -> None:
    """A new secret in place of one, and its containers made anew."""
    former = story.deployment.secret(name)
    said = story.deployment.make_secrets("renew", name)
    assert said.strip().endswith(" ".join(services)), said
    assert story.deployment.secret(name) != former
    story.recreate(*services)
    wait_until(story.is_ready, 60, "ready")
    assert story.refuses(name, former), f"the former {name} secret is still taken"
    assert not story.refuses(name, story.deployment.secret(name)), f"the new {name} secret is refused"


def again(story: Story) -> None:
    """`down` and `up` keep everything."""
    story.load.finish()
    story.wait_until_all_is_shown()
    with story.step("down and up again") as seen:
        story.deployment.run("down")
        story.deployment.run("up", "--detach")
        wait_until(story.is_ready, 60, "ready")
        story.wait_until_all_is_shown()
        seen.append(f"{story.compare(story.questions())} answers exact")


STEPS: tuple[Callable[[Story], None], ...] = (fresh, partitions, workers, upgrade, restore, secrets, again)


def main() -> None:
    """Rehearse all steps, or some of them: `fresh` is always the first."""
    wanted = [name for name in os.environ.get("STEPS", "").split(",") if name]
    if unknown := set(wanted) - {step.__name__ for step in STEPS}:
        sys.exit(f"STEPS: {', '.join(unknown)} is none of {', '.join(step.__name__ for step in STEPS)}")
    chosen = [step for step in STEPS if step is fresh or not wanted or step.__name__ in wanted]
    image = os.environ.get("IMAGE")
    if not image:
        sys.exit("rehearse-compose: failed: IMAGE must name the image; make image builds it")
    # So that what was started is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    start_ms = now_ms() // MINUTE_MS * MINUTE_MS - SPAN_MS
    first, events = make_events(start_ms)
    with tempfile.TemporaryDirectory(prefix="adclick-compose-") as folder, engine_socket(Path(folder)) as environment:
        deploy = Path(folder) / "deploy"
        deploy.mkdir()
        port = unused_port(2)
        variables = {"IMAGE": image, "ROUTER_PORT": str(port), "KAFKA_PORT": str(port + 1)}
        deployment = Deployment(deploy, f"rehearsal{os.getpid()}", environment, variables)
        deployment.make_secrets()
        story = Story(deployment, image, start_ms, first, events, Path(folder))
        failed = True
        try:
            with deployment.checked():
                for step in chosen:
                    step(story)
                failed = bool(story.watcher.decreases)
        except AssertionError as error:
            print(f"FAILED: {error}\n{deployment.run('ps', '--all')}", flush=True)
            workers = ("migrate", "ingest", "archive", "stream", "notify", "canary", "kafka", "clickhouse", "redis")
            print(deployment.run("logs", "--tail", "10", "--no-color", *workers), flush=True)
        finally:
            story.watcher.stop()
            if not os.environ.get("KEEP"):
                deployment.run("down", "--volumes", "--timeout", "5")
        print("\n| step | s | seen |\n|---|---|---|")
        for name, took_s, seen in story.rows:
            print(f"| {name} | {took_s:.0f} | {seen} |")
        print(f"{story.watcher.answers} answers of hours read meanwhile; decreases: {story.watcher.decreases[:3]}")
        for message, count in story.watcher.messages.most_common(8):
            print(f"  {count} × {message}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
