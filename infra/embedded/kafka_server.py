"""Becomes Kafka; after an unclean end, only once the controller has taken note of it.

A broker that comes back as it was killed is, for a moment, still the leader of all partitions by its own metadata, and then of
none, until its old session has timed out. Its transaction coordinator uses that moment: markers of transactions that were
being committed find no leader, are taken to be for deleted partitions, and are dropped (Kafka 4.3.1). Such a transaction hangs, and
ends with whatever its producer does next. So the controller runs alone first, with a short session time-out, and fences
the broker that died: what follows is a plain start. It also comes up sooner, since no session is waited for.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from infra.embedded.lifeline import die_with_parent

_SESSION_MS = 1_000
_FENCED_AFTER_S = 3.5
_START_LIMIT_S = 40.0


def ended_uncleanly(data: Path) -> bool:
    """Whether a broker has run here and not said good-bye: it leaves a file when it does."""
    return (data / "__cluster_metadata-0").exists() and not (data / ".kafka_cleanshutdown").exists()


def controller_only(properties: str) -> str:
    """The broker's configuration, for its controller alone."""
    kept = [line for line in properties.splitlines() if not line.startswith(("advertised.listeners=", "listeners="))]
    listeners = next(line for line in properties.splitlines() if line.startswith("listeners="))
    own = next(part for part in listeners.removeprefix("listeners=").split(",") if part.startswith("CONTROLLER"))
    text = "\n".join(kept).replace("process.roles=broker,controller", "process.roles=controller")
    return f"{text}\nlisteners={own}\nbroker.session.timeout.ms={_SESSION_MS}\nbroker.heartbeat.interval.ms=300\n"


def fence_the_dead(java: list[str], properties: Path, port: int) -> None:
    """Run the controller until the old broker's session is over. `java` is the command line up to the configuration."""
    alone = properties.with_name("controller.properties")
    alone.write_text(controller_only(properties.read_text()))
    with subprocess.Popen([*java, str(alone)], preexec_fn=die_with_parent) as controller:
        deadline = time.monotonic() + _START_LIMIT_S
        while controller.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    time.sleep(_FENCED_AFTER_S)
                    break
            time.sleep(0.1)
        controller.terminate()
        try:
            controller.wait(10)
        except subprocess.TimeoutExpired:
            controller.kill()


def main() -> None:
    """argv: configuration, data folder, the controller's port, and the java command line without the configuration."""
    properties, data, port, java = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    if ended_uncleanly(data):
        print("the last end was unclean: the controller runs alone first", flush=True)
        fence_the_dead(java, properties, port)
    os.execv(java[0], [*java, str(properties)])


if __name__ == "__main__":
    main()
