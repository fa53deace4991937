"""MirrorMaker 2 from one stack's ad-events to another's, as docs/regions.md configures it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from infra.embedded import jars, java, start_commands
from infra.embedded.lifeline import die_with_parent
from infra.kafka import topics
from tests.benchmarks.stack import RESULTS

_MODULE = "org.apache.kafka:connect-mirror:4.3.1"
_OPTIONS = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
_LOGGING = start_commands.KAFKA_LOGGING.replace("rootLogger.level = error", "rootLogger.level = warn")
_REFUSED = "Failed to configure MirrorSourceConnector"
PROPERTIES = f"""clusters = source, target
source->target.enabled = true
source->target.topics = {topics.EVENTS}
source->target.groups = none
target->source.enabled = false
replication.policy.class = org.apache.kafka.connect.mirror.IdentityReplicationPolicy
sync.topic.configs.enabled = false
sync.topic.acls.enabled = false
emit.heartbeats.enabled = false
emit.checkpoints.enabled = false
emit.offset-syncs.enabled = false
source.consumer.isolation.level = read_committed
target.producer.max.request.size = 16777216
target.offset.flush.interval.ms = 5000
"""
"""What the page has; addresses and replication factors are added."""
_ONE_BROKER = """replication.factor = 1
target.offset.storage.replication.factor = 1
target.config.storage.replication.factor = 1
target.status.storage.replication.factor = 1
source.offset.storage.replication.factor = 1
source.config.storage.replication.factor = 1
source.status.storage.replication.factor = 1
heartbeats.topic.replication.factor = 1
refresh.topics.interval.seconds = 5
"""


def _libraries() -> Path:
    """The folder with its jars, fetched now where they are not there."""
    folder = (RESULTS / "mirror-maker").absolute()
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        jars.retrieve((_MODULE,), folder)
        (folder / "done").touch()
    return folder


class MirrorMaker:
    """A process that copies `source` to `target`, both bootstrap addresses. `kill` and `start` may alternate."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        addresses = f"source.bootstrap.servers = {source}\ntarget.bootstrap.servers = {target}\n"
        (folder / "mm2.properties").write_text(PROPERTIES + _ONE_BROKER + addresses)
        (folder / "log4j2.properties").write_text(_LOGGING)

    def start(self) -> None:
        """Return at once; it copies some seconds later."""
        class_path = os.pathsep.join([*map(str, jars.logging_jars()), str(_libraries() / "*")])
        command = [
            str(java.find()), *_OPTIONS, "-Dlog4j2.configurationFile=log4j2.properties", "-cp", class_path,
            "org.apache.kafka.connect.mirror.MirrorMaker", "mm2.properties",
        ]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=java.environment(), stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def kill(self) -> None:
        """SIGKILL, as a machine that is lost. May be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def check(self) -> bool:
        """True. Raises AssertionError where it has ended, or does not copy because of its configuration."""
        assert self._process is not None and self._process.poll() is None, f"MirrorMaker has ended: {self.log_end()}"
        assert _REFUSED not in (self._folder / "log").read_text(errors="replace"), self.log_end()
        return True

    def log_end(self) -> str:
        """The last lines of its log."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-15:])
