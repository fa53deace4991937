"""An image that was built, run restricted as the chart runs it. Without `IMAGE` there is none to run."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.errors import AdclickError
from infra.kafka import topics
from infra.settings import Settings, resolve
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events
from query.client import Client
from query.demo.oracle import CheckedAnswer, Oracle
from query.demo.questions import DemoQuestion, make_questions, make_reconciled_questions
from query.status import read_status
from tests.conftest import adclick
from tests.deploy.image import Containers, named_image, run
from tests.flow import environment
from tests.ports import unused_port
from tests.product import SPAN_MS, wait_until

IMAGE = named_image()
pytestmark = pytest.mark.skipif(not IMAGE, reason="no IMAGE is named")
EVENTS = 40_000
WORKERS = ("ingest", "archive", "stream", "serve", "notify")

_MISSES = """
import gc
import stream.warm_up
stream.warm_up.main()
from numba.core.registry import CPUDispatcher
functions = [o for o in gc.get_objects() if isinstance(o, CPUDispatcher) and o.stats.cache_path]
print(sum(sum(f.stats.cache_hits.values()) for f in functions), sum(sum(f.stats.cache_misses.values()) for f in functions))
"""


def test_settings_come_from_variables_and_files() -> None:
    result = run(IMAGE, "config", "--json", options=("--env", "ADCLICK_CURRENCY=EUR"))
    assert result.returncode == 0, result.stderr
    assert '"EUR"' in json.dumps(json.loads(result.stdout))


def test_there_is_no_compiler_and_nothing_can_be_installed_beside_the_packages() -> None:
    tools = "cc gcc g++ c++ clang ld as make"
    result = run(
        IMAGE, "-c", f"for tool in {tools}; do command -v $tool; done; true", options=("--entrypoint", "/bin/sh")
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert run(IMAGE, "-c", "import pip", options=("--entrypoint", "python")).returncode == 1


def test_compiled_loops_are_taken_from_the_image() -> None:
    result = run(IMAGE, "-c", _MISSES, options=("--entrypoint", "python"))
    assert result.returncode == 0, result.stderr
    hits, misses = map(int, result.stdout.split())
    assert hits > 10
    assert misses == 0


def test_servers_that_are_not_in_it_are_named_without_a_traceback() -> None:
    result = run(IMAGE, "up", "--dir", "/tmp/stack")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2, result.stderr


# -- the pipeline ----------------------------------------------------------------------------------------------------


class Sent:
    """Containers, and the truth about the events that were sent to them."""

    def __init__(self, containers: Containers, events: SyntheticEvents, start_ms: int) -> None:
        self.containers, self.events, self.start_ms, self.end_ms = containers, events, start_ms, start_ms + SPAN_MS
        self.oracle, self.client = Oracle(events.truth), Client(containers.settings)

    def differences(self, questions: list[DemoQuestion]) -> list[str]:
        """Of the router's answers from the truth."""
        answers: list[CheckedAnswer] = [self.oracle.check(self.client, question) for question in questions]
        return [f"{a.question.parameters()}: {a.difference}" for a in answers if a.difference]

    def is_counted(self) -> bool:
        """Whether all is ingested, the watermark is near the end, and the busiest campaigns have all their events."""
        try:
            status = read_status(self.containers.settings)
            left = status["topics"].get(self.containers.settings.topic(topics.EVENTS))
            if left != 0 or (status["watermark"] or "") < iso(self.end_ms - 10 * MINUTE_MS):
                return False
            # The watermark is ahead of the answers by a flush or two. Totals from before the minutes that are held begin with their hour.
            return all(
                self.oracle.total_is_exact(self.client, campaign, self.start_ms + 3 * HOUR_MS, self.end_ms)
                for campaign in self.oracle.busiest(5)
            )
        except AdclickError:
            return False


@pytest.fixture(scope="module")
def sent(backends: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """Every kind of worker in a container of its own, and a day of events."""
    work = tmp_path_factory.mktemp("image")
    archive = work / "archive"
    archive.mkdir()
    settings = _settings(backends, archive)
    end = now_ms() // MINUTE_MS * MINUTE_MS
    spec = Spec(
        events=EVENTS, seed=23, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=100, late=0.01, malformed=0.005
    )
    events, containers = generate_events(spec), Containers(IMAGE, settings, work)
    file = work / "events.ndjson"
    file.write_bytes(b"\n".join(events.lines.to_list()) + b"\n")
    try:
        migrated = containers.run("migrate")
        assert migrated.returncode == 0, migrated.stderr
        for kind in WORKERS:
            containers.start(kind)
        replayed = adclick("replay", str(file), cwd=None, **environment(settings))
        assert replayed.returncode == 0, replayed.stderr
        sent = Sent(containers, events, spec.start_ms)
        wait_until(sent.is_counted, 60, containers.logs)
        yield sent
    finally:
        containers.close()


def _settings(backends: Path, archive: Path) -> Settings:
    changes = {
        "namespace": f"image{now_ms()}_", "archive": str(archive), "event_partitions": 2, "block_partitions": 2,
        "http": f"http://127.0.0.1:{unused_port()}", "api_key": SecretStr("a-key-of-the-image-test"), "reconcile_at": "off",
    }  # fmt: skip
    return resolve(str(backends)).settings.model_copy(update=changes)


def test_answers_of_a_pipeline_of_containers_are_exact(sent: Sent) -> None:
    questions = make_questions(sent.oracle, sent.start_ms, sent.end_ms)
    assert len(questions) > 60
    assert sent.differences(questions) == [], sent.containers.logs()


def test_the_health_check_is_about_the_router_alone(sent: Sent) -> None:
    for kind in ("serve", "ingest"):
        result = sent.containers.inside(kind, "adclick-healthcheck")
        assert result.returncode == 0, result.stderr
    result = sent.containers.inside("serve", "env", "ADCLICK_HTTP=http://127.0.0.1:1", "adclick-healthcheck")
    assert result.returncode == 1
    assert "the router does not answer" in result.stderr


def test_workers_write_nothing_into_the_image(sent: Sent) -> None:
    for kind in WORKERS:
        result = sent.containers.inside(kind, "touch", "/opt/adclick/probe")
        assert result.returncode != 0
        assert "Read-only file system" in result.stderr


def test_the_nightly_run_in_a_container_publishes_exact_numbers(sent: Sent) -> None:
    """Spark starts Java of the image, as a user without a name or a home."""
    day_ms = sent.end_ms // DAY_MS * DAY_MS - DAY_MS
    day = dt.datetime.fromtimestamp(day_ms // 1000, dt.UTC).date()
    result = sent.containers.run_spark("reconcile", "--date", day.isoformat())
    assert result.returncode == 0, result.stderr
    questions = make_questions(sent.oracle, sent.start_ms, sent.end_ms)
    about_day = make_reconciled_questions(questions, day_ms)
    assert about_day
    assert sent.differences(about_day) == []


def test_workers_end_in_order_within_the_time_that_the_chart_gives_them(sent: Sent) -> None:
    codes = {kind: sent.containers.stop(kind) for kind in WORKERS}
    assert codes == dict.fromkeys(WORKERS, 0), sent.containers.logs()
