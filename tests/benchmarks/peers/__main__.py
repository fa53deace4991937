"""`make bench-peers`: what else does streams, beside us, on the same events in the same run.

Each peer gets a virtual environment of its own, or a folder of jars where there is a JDK (kept in .bench/peers), and the simplest program its documentation would have
one write, with and without dedup: counts of the three types and the summed cost by minute, campaign, country and
device. Slow ones get fewer events, of the same kind. CPU is that of the peer's whole process tree from its first event to its
totals, which are checked; the broker's is not counted. Flat JSON in `.bench/peers.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from infra.clock import MINUTE_MS
from infra.embedded import jars, java
from infra.kafka.event_producer import EventProducer
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events
from tests.benchmarks.pipeline import bare_loop, measure
from tests.benchmarks.stack import RESULTS, Bench, across_midnight, bench, save

_LIMIT_S = 420
_PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Peer:
    """A program, what it needs, and how many events it can take in the time there is."""

    name: str
    program: str
    packages: tuple[str, ...]
    """Of pip, or group:module:version for a program in Java."""
    events: int

    @property
    def in_java(self) -> bool:
        """Whether it is for a JDK."""
        return self.program.endswith(".java")


PEERS = (
    Peer("faust", "vanilla_faust.py", ("faust-streaming==0.15.3", "cramjam"), 40_000),
    Peer("quix", "quix.py", ("quixstreams==3.28.1",), 150_000),
    Peer("bytewax", "bytewax_flow.py", ("bytewax==0.21.1", "confluent-kafka", "orjson"), 150_000),
    Peer("spark", "spark_structured.py", ("pyspark==4.2.0",), 2_000_000),
    Peer("kafka_streams", "KafkaStreamsPeer.java", ("org.apache.kafka:kafka-streams:4.3.1",), 1_000_000),
    Peer("flink", "FlinkPeer.java", (
        *(f"org.apache.flink:flink-{module}:2.2.1" for module in (
            "clients", "table-planner-loader", "table-runtime", "table-api-java-bridge", "connector-base", "json",
        )),
        "org.apache.flink:flink-connector-kafka:5.0.0-2.2",
    ), 2_000_000),
)  # fmt: skip
# Reflection that Flink and Arrow do, and what Java no longer allows without being told.
_OPENED = ("java.base/java.lang", "java.base/java.util", "java.base/java.nio", "java.base/java.time")


def environment(peer: Peer) -> list[str]:
    """The command line of the peer's program, without its arguments; what it needs is fetched now where it is not there."""
    program = _PROGRAMS.absolute() / peer.program
    folder = (RESULTS / "peers" / peer.name).absolute()
    ready = (folder / "done").exists()
    if peer.in_java:
        if not ready:
            jars.retrieve(peer.packages, folder)
            (folder / "done").touch()
        opened = [f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED]
        path = ":".join(map(str, [folder, *folder.glob("*.jar")]))
        words = ["-m", "jdk.compiler/com.sun.tools.javac.Main", "-cp", path, "-d", str(folder), str(program)]
        subprocess.run([str(java.find()), *words], check=True)
        return [str(java.find()), *opened, "-Xmx4g", "-cp", path, program.stem]
    if not ready:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages], check=True)
        (folder / "done").touch()
    return [str(folder / "bin" / "python"), str(program)]


def has_compiler() -> bool:
    """Whether the Java here is a JDK: the bundled one only runs what is compiled."""
    told = subprocess.run([str(java.find()), "--list-modules"], capture_output=True, text=True).stdout
    return "jdk.compiler" in told


def truth(lines: pl.Series, *, distinct: bool) -> list[int]:
    """Counts of the three types and summed cost."""
    events = lines.cast(pl.String).str.json_decode(
        pl.Struct({"event_id": pl.String, "event_type": pl.String, "cost_micros": pl.Int64})
    ).struct.unnest()  # fmt: skip
    if distinct:
        events = events.unique("event_id")
    kinds = [(events["event_type"] == kind).sum() for kind in ("impression", "click", "conversion")]
    return [*map(int, kinds), int(events["cost_micros"].sum())]


def fill(stack: Bench, made: SyntheticEvents, events: int) -> str:
    """A topic with the first events, keyed by what is counted, so that no peer has to re-key them; returns its name."""
    topic = f"peers-{events}"
    stack.admin.create({topic: (4, {})})
    producer = EventProducer(stack.settings.kafka_connection)
    lines = made.lines.head(events)
    text = lines.cast(pl.String)
    parts = [text.str.extract(rf'"{name}":"?(\w+)') for name in ("campaign_id", "country", "device")]
    keys = pl.select(pl.concat_str(parts, separator="|")).to_series().cast(pl.Binary).to_list()
    producer.send(topic, keys, lines.to_list())
    assert producer.flush(60) == 0
    return topic


def tree_cpu_s(process: psutil.Process) -> float:
    """User and system time of a process and all below it."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        times = one.cpu_times()
        total += times.user + times.system
    return total


def run(peer: Peer, stack: Bench, topic: str, wanted: list[int], *, dedup: bool) -> dict[str, Any]:
    """One run: from the line FIRST to the line STOP, if there is one, or DONE, which has the totals."""
    command = environment(peer)
    with tempfile.TemporaryDirectory() as folder:
        words = [stack.settings.kafka, topic, str(peer.events), str(int(dedup)), folder]
        program = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE, stderr=(RESULTS / "peers" / f"{peer.name}.log").open("w"), text=True, cwd=folder,
        )  # fmt: skip
        watched = psutil.Process(program.pid)
        assert program.stdout is not None
        began = before = seconds = cpu = 0.0
        try:
            for line in program.stdout:
                if line.startswith("FIRST"):
                    began, before = time.monotonic(), tree_cpu_s(watched)
                elif line.startswith(("STOP", "DONE", "MISSED")) and not seconds:
                    seconds, cpu = time.monotonic() - began, tree_cpu_s(watched) - before
                if line.startswith(("DONE", "MISSED")):
                    found = [int(float(x)) for x in line.split()[1:]]
                    return {
                        "events_per_s": round(peer.events / seconds), "cpu_s_per_million": round(cpu / peer.events * 1e6, 1),
                        "exact": found == wanted,
                    }  # fmt: skip
                if began and time.monotonic() - began > _LIMIT_S:
                    break
            return {"events_per_s": 0, "cpu_s_per_million": 0.0, "exact": False}
        finally:
            for one in [*watched.children(recursive=True), watched]:
                one.kill()
            program.wait()


def main() -> None:
    """All of them, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one peer")
    parser.add_argument("--events", type=int, default=3_000_000, help="for us and the bare loop")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if options.only in (None, peer.name)]
    if not has_compiler():
        print("no JDK here: the peers in Java are left out", file=sys.stderr)
        peers = [peer for peer in peers if not peer.in_java]
    for peer in peers:
        environment(peer)
    span_ms = 30 * MINUTE_MS
    spec = Spec(
        events=options.events, start_ms=across_midnight(span_ms), span_ms=span_ms, late=0.001, malformed=0.0, future=0.0,
        iso_times=0.0,
    )  # fmt: skip
    report: dict[str, Any] = {}
    rows = []
    with bench() as stack:
        made = generate_events(spec)
        for peer in peers:
            topic = fill(stack, made, peer.events)
            lines = made.lines.head(peer.events)
            for dedup in (False, True):
                found = run(peer, stack, topic, truth(lines, distinct=dedup), dedup=dedup)
                name = peer.name + ("_dedup" if dedup else "")
                report |= {f"{name}_{key}": value for key, value in found.items()}
                rows.append((name, f"{peer.events:,}", *found.values()))
                stack.app.say(f"{name}: {found}")
        del made
        filled = stack.fill(spec)
        bare = bare_loop(stack, filled.total)
        stack.start(1, 1)
        ours = measure(stack, filled, bare)
    for name, figures in (("bare", bare), ("adclick", ours)):
        report |= {f"{name}_{key}": round(figures[key], 2) for key in ("events_per_s", "cpu_s_per_million")}
        rows.append(
            (name, f"{options.events:,}", report[f"{name}_events_per_s"], report[f"{name}_cpu_s_per_million"], True)
        )
    report["adclick_exact"] = ours["exact"]
    save("peers", report)
    stack.app.table(["", "events", "events/s", "CPU s per million", "exact"], rows)
    sys.exit(0 if ours["exact"] else 1)


if __name__ == "__main__":
    main()
