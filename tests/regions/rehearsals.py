"""`make rehearse-regions`: the runbooks of docs/regions.md, each on two stacks with a network between them that can be cut.

Each ends with every answer compared with the generator's truth. EVENTS changes how many there are (20,000), ONLY=name takes one
rehearsal alone. Exit 1 where an answer differs.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from batch import publish
from infra.clickhouse.client import ClickHouse
from infra.clock import MINUTE_MS, now_ms
from infra.errors import AdclickError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.client import make_producer
from infra.settings import Settings
from ingest.dead_letters import letters as dead_letters
from ingest.partials import BILLED
from ingest.synthetic.generator import Spec, generate_events
from query.client import Client
from query.demo.questions import DemoQuestion
from query.status import read_status
from tests.clusters.tcp_proxy import Proxy
from tests.conftest import adclick
from tests.product import SPAN_MS, Product, wait_until
from tests.recovery.scene import Scene, check
from tests.regions.mirror_maker import MirrorMaker
from tests.regions.producers import Producers

_SHARED = {"ADCLICK_USER_SECRET": "of both regions"}
_WORKERS = ("--ingest-workers", "1", "--stream-workers", "1", "--notify-workers", "0")


def say(text: str) -> None:
    """A line of what was seen."""
    print(f"  {text}", flush=True)


@contextmanager
def region(scene: Scene, name: str, **env: str) -> Iterator[Product]:
    """A stack that is up; it is stopped at the end."""
    product = scene.product(name)
    try:
        product.up(*_WORKERS, **_SHARED | env)
        yield product
    finally:
        adclick("down", "--dir", str(product.folder.path))


def run(product: Product, *words: str, code: int = 0, env: Mapping[str, str] = {}) -> tuple[str, str]:
    """Run a command on a region; returns its output and what it wrote to standard error."""
    result = adclick(*words, "--dir", str(product.folder.path), cwd=None, **_SHARED | dict(env))
    assert result.returncode == code, f"{words} ended with {result.returncode}: {result.stderr}"
    return result.stdout, result.stderr


def is_ingested(product: Product) -> bool:
    """Whether ingest has read all of ad-events."""
    try:
        return bool(read_status(product.settings)["topics"].get(topics.EVENTS) == 0)
    except AdclickError:
        return False


def reconcile(product: Product, scene: Scene, *words: str, **env: str) -> str:
    """Recount the day, once it is no longer open; returns the SHA-256 of what was published."""

    def is_done() -> bool:
        result = adclick(
            "reconcile", "--date", scene.date, *words, "--dir", str(product.folder.path), cwd=None, **_SHARED | env
        )
        is_open = result.returncode == 1 and "still open" in result.stderr
        assert is_open or result.returncode in (0, 3), result.stderr
        if not is_open:
            say(f"{product.folder.path.name}: {result.stderr.strip().splitlines()[-1]}")
        return not is_open

    wait_until(is_done, 60, "the day has ended")
    client = ClickHouse.of(product.settings)
    current = publish.current_run(client, dt.date.fromisoformat(scene.date))
    assert current is not None
    return publish.recorded_digest(client, current[0])


def refusal(product: Product, scene: Scene, env: Mapping[str, str]) -> str:
    """Why a run is refused that cannot have another region, once the day has closed in its own."""
    said = ""

    def is_named() -> bool:
        nonlocal said
        said = run(product, "reconcile", "--date", scene.date, code=1, env=env)[1].strip().splitlines()[-1]
        assert "region us" in said or "still open" in said, said
        return "region us" in said

    wait_until(is_named, 60, "the day has ended")
    return said


def log_size(settings: Settings) -> int:
    """How many offsets of ad-events there are."""
    return sum(
        Admin(settings.kafka_connection).high_watermarks(settings.topic(topics.EVENTS), settings.event_partitions)
    )


def newest(settings: Settings) -> list[int]:
    """The newest timestamp of each partition of ad-events."""
    return Admin(settings.kafka_connection).newest_timestamps_ms(
        settings.topic(topics.EVENTS), settings.event_partitions
    )


def seconds_until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> float:
    """How long a condition took to hold."""
    began = time.monotonic()
    wait_until(condition, seconds, what)
    return time.monotonic() - began


def abort_a_transaction(settings: Settings, scene: Scene) -> None:
    """Write an event that never counts: its transaction is aborted."""
    line = scene.events.lines.gather(scene.events.keys.is_not_null().arg_max() or 0)[0]
    event = json.loads(line) | {"event_id": "of an aborted transaction"}
    producer = make_producer(settings.kafka_connection, {"transactional.id": "rehearsal"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.topic(topics.EVENTS), json.dumps(event).encode(), b"aborted")
    assert producer.flush(30) == 0
    producer.abort_transaction(30)


def active_passive(scene: Scene) -> None:
    """One region counts, the other follows by MirrorMaker; it is promoted when the first is lost, and the way back has no loss."""
    producers = Producers(scene.events)
    with region(scene, "eu") as eu, region(scene, "us", ADCLICK_PASSIVE="on") as us:
        with Proxy(eu.settings.kafka, advertises=True) as link:
            mirror = MirrorMaker(scene.work / "mirror", link.address, us.settings.kafka)
            try:
                again = _follow(scene, producers, mirror, eu, us)
                digest = _lose(scene, producers, mirror, link, eu, us, again)
            finally:
                mirror.kill()
        _fail_back(scene, us, digest)


def _follow(scene: Scene, producers: Producers, mirror: MirrorMaker, eu: Product, us: Product) -> int:
    """The passive region comes to the same numbers, also after the replicator was killed, which sends some events twice; returns how many."""
    mirror.start()
    abort_a_transaction(eu.settings, scene)
    producers.send_to(eu.settings, producers.count // 4)
    wait_until(lambda: mirror.check() and log_size(us.settings) > 0, 60, mirror.log_end)
    mirror.kill()
    mirror.start()
    producers.send_to(eu.settings, producers.count // 2)
    wait_until(lambda: mirror.check() and newest(us.settings) == newest(eu.settings), 60, mirror.log_end)
    wait_until(lambda: log_size(us.settings) >= producers.sent, 60, mirror.log_end)
    time.sleep(3)  # some may be on the way for a second time
    again = log_size(us.settings) - producers.sent
    say(f"the replicator was killed, and sent {again:,} events again")
    delays = []
    for _ in range(20):
        producers.send_to(eu.settings, producers.sent + 50)
        delays.append(seconds_until(lambda: log_size(us.settings) >= producers.sent + again, 30, mirror.log_end))
    say(f"replicated {sorted(delays)[10]:.2f} s after the acknowledgement (median), {max(delays):.2f} s at most")
    for product in (eu, us):
        wait_until(lambda p=product: is_ingested(p), 60, "all is ingested")
    # The day may still be open, half-way.
    digests = [reconcile(product, scene, "--force") for product in (eu, us)]
    assert digests[0] == digests[1], f"the regions have published different days: {digests}"
    say(f"both regions published the same day: SHA-256 {digests[0][:16]}…")
    return again


def _lose(
    scene: Scene, producers: Producers, mirror: MirrorMaker, link: Proxy, eu: Product, us: Product, again: int
) -> str:
    """The network is cut, then the first region is lost: the other one is promoted, and gets what it lacks from producers; returns the
    SHA-256 of the day."""
    held = log_size(us.settings)
    link.cut()
    cut_at = time.monotonic()
    producers.send_to(eu.settings, producers.count * 3 // 4)
    time.sleep(max(0.0, 12 - (time.monotonic() - cut_at)))
    assert log_size(us.settings) == held, "events have passed the cut"
    lacking = producers.sent - (held - again)
    for name in ["supervisor", *eu.folder.processes()]:
        eu.kill(name)
    lost_at = time.monotonic()
    say(f"lost {lost_at - cut_at:.0f} s after the cut: {lacking:,} acknowledged events are not in the other region")
    mirror.kill()
    output, _ = run(us, "replicated", "--json")
    say(run(us, "replicated")[1].strip().splitlines()[-1])
    since = json.loads(output)["resend_from"]
    run(us, "migrate", env={"ADCLICK_PASSIVE": "off"})
    promoted_s = time.monotonic() - lost_at
    resent = producers.send_again(us.settings, int(dt.datetime.fromisoformat(since).timestamp() * 1000))
    producers.send_to(us.settings, producers.sent + 1)
    accepts_s = time.monotonic() - lost_at
    producers.send_to(us.settings, producers.count)
    wait_until(us.caught_up, 120, "all is ingested")
    questions = scene.questions(us)
    check(us, questions)
    say(
        f"promoted {promoted_s:.0f} s after the loss, first new event {accepts_s:.0f} s, all answers exact"
        f" {time.monotonic() - lost_at:.0f} s after it; producers sent {resent:,} events again"
    )
    digest = reconcile(us, scene)
    check(us, scene.reconciled_questions(us))
    values = scene.events.lines.gather(scene.events.truth.dead["line"]).to_list()
    letters = {letter.value or b"" for letter in dead_letters.read_letters(us.settings)}
    assert letters == set(values), "dead letters differ"
    return digest


def _fail_back(scene: Scene, us: Product, digest: str) -> None:
    """A new stack in the first region follows the second one, and takes over once it has all."""
    with region(scene, "eu-new", ADCLICK_PASSIVE="on") as eu:
        mirror = MirrorMaker(scene.work / "mirror-back", us.settings.kafka, eu.settings.kafka)
        try:
            mirror.start()
            took_s = seconds_until(
                lambda: mirror.check() and log_size(eu.settings) >= log_size(us.settings), 120, mirror.log_end
            )
        finally:
            mirror.kill()
        say(
            f"way back: {log_size(eu.settings):,} events are in the new stack {took_s:.0f} s after the replicator's start"
        )
        run(eu, "migrate", env={"ADCLICK_PASSIVE": "off"})
        wait_until(eu.caught_up, 120, "all is ingested")
        check(eu, scene.questions(eu))
        assert reconcile(eu, scene) == digest, "the regions have published different days"
        check(eu, scene.reconciled_questions(eu))


def active_active(scene: Scene) -> None:
    """Both regions count what is sent to them, copies of one event to either; the night bills all of it once."""
    producers = Producers(scene.events)
    with region(scene, "eu") as eu, region(scene, "us") as us:
        producers.send_split([eu.settings, us.settings])
        for product in (eu, us):
            wait_until(lambda p=product: p.caught_up(), 120, "all is ingested, and the watermark moves with the clock")
        with (
            Proxy(us.settings.kafka, advertises=True) as kafka,
            Proxy(us.settings.clickhouse) as clickhouse,
        ):
            file = describe(scene.work / "us.toml", us.settings, kafka.address, clickhouse.url)
            others = {"ADCLICK_OTHER_REGIONS": str(file)}
            kafka.cut()
            clickhouse.cut()
            say(f"while the network is cut: {refusal(eu, scene, others)}")
            kafka.restore()
            clickhouse.restore()
            digest = reconcile(eu, scene, **others)
            check(eu, scene.reconciled_questions(eu))
            wrong = describe(
                scene.work / "us-wrong.toml", us.settings, kafka.address, clickhouse.url, user_secret="other"
            )
            say(f"with another user secret: {refusal(eu, scene, {'ADCLICK_OTHER_REGIONS': str(wrong)})}")
            run(eu, "audit", "--date", scene.date, env=others)
        file = describe(scene.work / "eu.toml", eu.settings, eu.settings.kafka, eu.settings.clickhouse)
        assert reconcile(us, scene, ADCLICK_OTHER_REGIONS=str(file)) == digest
        check(us, scene.reconciled_questions(us))
        say(f"both regions published the same day: SHA-256 {digest[:16]}…")
        for name in ["supervisor", *eu.folder.processes()]:
            eu.kill(name)
        _, said = run(us, "replay", str(eu.folder.path / "archive"))
        say(f"the other region is lost, and its archive sent into this one: {said.strip().splitlines()[-1]}")
        wait_until(us.caught_up, 120, "all is ingested")
        reconcile(us, scene)
        check_billed(us, scene.reconciled_questions(us))


def check_billed(product: Product, questions: list[DemoQuestion]) -> None:
    """Raise AssertionError where what is billed is not the truth. That an event was late where it came first is no longer known once it
    was sent into another region."""
    client, count = Client(product.settings), len(BILLED)
    for question in questions:
        answered: dict[tuple[object, ...], tuple[int, ...]] = {}
        cursor: list[tuple[str, str]] | None = []
        while cursor is not None:
            body = client.get("/v1/metrics", [*question.parameters(), *cursor])
            for row in body["data"]:
                answered[(row["time"], *(row[name] for name in question.group_by))] = tuple(row[m] for m in BILLED)
            cursor = [("cursor", body["next_cursor"])] if body["next_cursor"] else None
        expected = {key: row[:count] for key, row in product.oracle.expected_rows(question).items()}
        assert {k: v for k, v in answered.items() if any(v)} == {k: v for k, v in expected.items() if any(v)}, question


def describe(file: Path, settings: Settings, kafka: str, clickhouse: str, **changes: str) -> Path:
    """Write the file of a region for the other one."""
    values = {
        "kafka": kafka, "clickhouse": clickhouse, "archive": settings.archive, "user_secret": _SHARED["ADCLICK_USER_SECRET"],
    } | changes  # fmt: skip
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    file.chmod(0o600)
    return file


REHEARSALS = (active_passive, active_active)


def main() -> None:
    """Rehearse both, or one."""
    only = os.environ.get("ONLY", "")
    chosen = [rehearsal for rehearsal in REHEARSALS if only in ("", rehearsal.__name__)]
    if not chosen:
        sys.exit(f"ONLY must be one of {', '.join(rehearsal.__name__ for rehearsal in REHEARSALS)}")
    failed = False
    for rehearsal in chosen:
        with tempfile.TemporaryDirectory(prefix="adclick-regions-") as folder:
            end = now_ms() // MINUTE_MS * MINUTE_MS
            spec = Spec(
                events=int(os.environ.get("EVENTS") or 20_000),
                seed=29,
                start_ms=end - SPAN_MS,
                span_ms=SPAN_MS,
                campaigns=100,
                late=0.01,
            )
            scene = Scene(Path(folder), Path(folder) / "none", generate_events(spec), spec.start_ms)
            began = time.monotonic()
            try:
                rehearsal(scene)
            except AssertionError as error:
                failed = True
                print(f"{rehearsal.__name__:15} FAILED: {error}", flush=True)
            else:
                print(f"{rehearsal.__name__:15} exact, in {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
