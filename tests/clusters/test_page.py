"""Every command of the page on operation that is about clusters is run on clusters, as it stands there but for addresses and secrets."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.clock import DAY_MS, MINUTE_MS, now_ms
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.settings import Settings
from ingest.synthetic.generator import Spec, generate_events
from tests.clusters import adclick_without_keeper, page
from tests.clusters.clickhouse_cluster import NAME
from tests.clusters.everything import BUCKET, Clusters
from tests.clusters.kafka_config import PASSWORDS
from tests.clusters.spark_standalone import SparkStandalone
from tests.conftest import ADCLICK, product_environment
from tests.ports import unused_port
from tests.product import PATIENCE, wait_until

_EVENTS = 3_000
_DAY_MS = now_ms() // DAY_MS * DAY_MS - DAY_MS
"""Yesterday."""
DATE = dt.datetime.fromtimestamp(_DAY_MS / 1000, dt.UTC).date().isoformat()

PRINTED = {
    "adclick migrate": "",
    "adclick migrate --print-grants": "GRANT ",
    "adclick replay s3://BUCKET/PREFIX": "acknowledged",
    "adclick doctor": "right to write in transactions",
    "adclick doctor --process ingest": "right to write in transactions",
    "adclick status": "watermark",
    "adclick reconcile --date 2026-11-29": DATE,
    "adclick reconcile --date 2026-11-29 --master spark://spark-master:7077": DATE,
    "adclick audit --date 2026-11-29 --master spark://spark-master:7077": DATE,
}
"""Commands that end with 0, and what a line of their output has."""
WORKERS = ("ingest", "archive", "stream", "serve", "notify", "canary")
IN_SENTENCES = {"adclick migrate --print-grants", "adclick replay s3://BUCKET/PREFIX"}
"""Commands that no block has."""
ELSEWHERE = {"adclick up", "adclick plan"}
"""Commands of a stack, or of no cluster: other tests run them."""
UNTESTED = {
    "adclick reconcile --date 2026-11-29 --master yarn",
    "adclick reconcile --date 2026-11-29 --master k8s://https://kubernetes:6443",
}


def test_each_command_of_the_page_is_run_or_said_to_be_untested() -> None:
    run = {command for block in page.blocks() if not block.is_untested for command in block.commands}
    assert run | IN_SENTENCES == set(PRINTED) | {f"adclick {worker}" for worker in WORKERS}
    assert {command for block in page.blocks() if block.is_untested for command in block.commands} == UNTESTED
    for command in page.commands_in_sentences() - IN_SENTENCES - ELSEWHERE:
        # `D` in a sentence is any date, and `…` any word.
        pattern = re.compile(re.sub(r"\b[A-Z]+\b|…", r"\\S+", re.escape(command)))
        assert any(pattern.match(line) for line in run), f"no block has {command}"


class Session:
    """A shell in which the page's commands run."""

    def __init__(self, clusters: Clusters, spark: SparkStandalone, folder: Path) -> None:
        self._clusters, self._spark, self._folder = clusters, spark, folder
        self._workers: dict[str, subprocess.Popen[str]] = {}
        self._port = unused_port()
        self._variables = product_environment() | {"ADCLICK_EVENT_PARTITIONS": "2", "ADCLICK_BLOCK_PARTITIONS": "2"}
        self._variables[adclick_without_keeper.NODES] = " ".join(clusters.clickhouse.urls)
        kafka, secured = clusters.kafka.addresses(), clusters.kafka.addresses("SASL_SSL")
        secret, s3 = "of-this-test-and-32-characters-long", clusters.s3.environment
        self._values = {
            "ADCLICK_KAFKA=kafka-1:9092,kafka-2:9092,kafka-3:9092": kafka,
            "ADCLICK_REDIS=redis+cluster://redis-1:6379,redis-2:6379": clusters.redis.url,
            "ADCLICK_CLICKHOUSE=http://adclick:…@clickhouse:8123": clusters.clickhouse.urls[0],
            "ADCLICK_CLICKHOUSE_CLUSTER=blue": NAME,
            "ADCLICK_ARCHIVE=s3://billing/clicks": f"s3://{BUCKET}/page",
            "ADCLICK_HTTP=http://0.0.0.0:8080": f"http://127.0.0.1:{self._port}",
            "ADCLICK_CANARY_S=5": "5",
            "ADCLICK_API_KEY=…": secret,
            "ADCLICK_USER_SECRET=…": secret,
            "ADCLICK_KAFKA=kafka-1:9093,kafka-2:9093": secured,
            "ADCLICK_KAFKA_SECURITY_PROTOCOL=SASL_SSL": "SASL_SSL",
            "ADCLICK_KAFKA_CA=/etc/adclick/ca.pem": str(clusters.kafka.authority.file),
            "ADCLICK_KAFKA_USER=adclick": "alice",
            "ADCLICK_KAFKA_PASSWORD=…": PASSWORDS["alice"],
            "AWS_ACCESS_KEY_ID=…": s3["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY=…": s3["AWS_SECRET_ACCESS_KEY"],
            "AWS_REGION=eu-central-1": "eu-central-1",
            "AWS_ENDPOINT_URL=http://minio.internal:9000": s3["AWS_ENDPOINT_URL"],
        }
        self._words = {
            "2026-11-29": DATE, "spark://spark-master:7077": spark.url, "s3://BUCKET/PREFIX": f"s3://{BUCKET}/page",
        }  # fmt: skip
        # The store of the tests is not Amazon's, which the first block takes it to be.
        self._variables["AWS_ENDPOINT_URL"] = s3["AWS_ENDPOINT_URL"]

    def run(self, block: page.Block) -> None:
        """Run the commands of a block; one that has only settings is tried by `adclick doctor`."""
        for setting in block.settings:
            self._variables[setting.partition("=")[0]] = self._values[setting]
        # The first one is before there are topics and tables.
        for command in block.commands or (["adclick doctor"] if self._workers else []):
            worker = command.removeprefix("adclick ")
            if worker in WORKERS:
                self._start(worker)
            else:
                if command == "adclick status":
                    self._send_a_day()
                self.run_command(command)

    def run_command(self, command: str) -> None:
        """Run one that ends."""
        line = PRINTED[command]
        for word, value in self._words.items():
            command = command.replace(word, value)
        words = command.split()[1:]
        result = subprocess.run(
            [*self._adclick(words), *words], env=self._variables, capture_output=True, text=True, timeout=120 * PATIENCE
        )
        assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
        assert line in result.stdout + result.stderr, f"{command}: {result.stdout}\n{result.stderr}"

    def stop(self) -> None:
        """End the workers in order."""
        for name, worker in self._workers.items():
            worker.terminate()
            assert worker.wait(20 * PATIENCE) == 0, f"{name}: {self._log(name).read_text()}"

    def kill(self) -> None:
        """End what still runs."""
        for worker in self._workers.values():
            worker.kill()
            worker.wait()

    def _log(self, worker: str) -> Path:
        return self._folder / f"{worker}.log"

    @staticmethod
    def _adclick(words: list[str]) -> list[str]:
        if words[0] in ("migrate", "audit"):  # which make tables
            return [sys.executable, "-m", adclick_without_keeper.__name__]
        return ADCLICK

    def _start(self, worker: str) -> None:
        with self._log(worker).open("w") as log:
            self._workers[worker] = subprocess.Popen(
                [*ADCLICK, worker], env=self._variables, stdout=log, stderr=log, text=True
            )

    def _send_a_day(self) -> None:
        """Events since yesterday; returns once they are counted, archived, and that day is over for all shards."""
        settings = Settings.model_validate({"kafka": self._variables["ADCLICK_KAFKA"]})
        events = generate_events(
            Spec(start_ms=_DAY_MS, span_ms=now_ms() - MINUTE_MS - _DAY_MS, events=_EVENTS, campaigns=10, seed=3)
        )
        producer = EventProducer(settings.kafka_connection)
        keys = [None if key is None else key.encode() for key in events.keys.to_list()]
        producer.send(settings.topic(EVENTS), keys, events.lines.to_list())
        assert producer.flush(30) == 0
        wait_until(self._is_closed, 60, self._describe)
        assert httpx.get(f"http://127.0.0.1:{self._port}/readyz").status_code == 200

    def _is_closed(self) -> bool:
        words = [*ADCLICK, "status", "--json"]
        output = subprocess.run(words, env=self._variables, capture_output=True, text=True).stdout
        status = json.loads(output)
        lag = status["topics"]
        end = dt.datetime.fromtimestamp((_DAY_MS + DAY_MS) / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M")
        return bool(lag) and not any(lag.values()) and (status["watermark"] or "") >= end

    def _describe(self) -> str:
        logs = "\n".join(f"{name}: {self._log(name).read_text()[-1500:]}" for name in self._workers)
        status = subprocess.run([*ADCLICK, "status"], env=self._variables, capture_output=True, text=True)
        return f"the day is over\n{status.stdout}{status.stderr}\n{logs}"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """On new clusters."""
    folder, spark_folder = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("spark")
    environment = dict(os.environ)
    with Clusters(folder / "clusters").running() as clusters, SparkStandalone(spark_folder) as spark:
        running = Session(clusters, spark, folder)
        try:
            yield running
        finally:
            running.kill()
            os.environ.clear()
            os.environ.update(environment)


@pytest.mark.timeout(1800)
def test_the_commands_of_the_page_work_in_its_order(session: Session) -> None:
    for block in page.blocks():
        if not block.is_untested:
            session.run(block)
    for command in sorted(IN_SENTENCES):
        session.run_command(command)
    session.stop()
