"""Becomes Kafka; after an unclean end, only once the controller has taken note of it.

A broker that comes back as it was killed is, for a moment, still the leader of all partitions by its own metadata, and then of
none, until its old session has timed out. Its transaction coordinator uses that moment: markers of transactions that were
being committed find no leader, are taken to be for deleted partitions, and are dropped (Kafka 4.3.1). Such a transaction hangs, and
ends with whatever its producer does next. So the controller runs alone first, with a short session time-out, until its
log says that the broker that died is fenced: what follows is a plain start. It also comes up sooner, since no session is
waited for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from infra.embedded.lifeline import die_with_parent

_SESSION_MS = 1_000
_FENCED_WITHIN_S = 30.0
# A BrokerRegistrationChangeRecord of node 1 in the metadata log: frame version 1, type 17, its version, the broker's id and
# epoch, and one tagged field: number 0 (fenced), a byte long, 1 (fence) or -1 (unfence).
_CHANGE = re.compile(rb"\x01\x11.\x00\x00\x00\x01.{8}\x01\x00\x01([\x01\xff])", re.DOTALL)
# What a restart reads of that log: hours of it, where a fence is seconds old.
_TAIL_BYTES = 1 << 20


def ended_uncleanly(data: Path) -> bool:
    """Whether a broker ran here and did not shut down in order: it leaves a file when it does."""
    return (data / "__cluster_metadata-0").exists() and not (data / ".kafka_cleanshutdown").exists()


def controller_only(properties: str) -> str:
    """The broker's configuration, for its controller alone."""
    kept = [line for line in properties.splitlines() if not line.startswith(("advertised.listeners=", "listeners="))]
    listeners = next(line for line in properties.splitlines() if line.startswith("listeners="))
    own = next(part for part in listeners.removeprefix("listeners=").split(",") if part.startswith("CONTROLLER"))
    text = "\n".join(kept).replace("process.roles=broker,controller", "process.roles=controller")
    return f"{text}\nlisteners={own}\nbroker.session.timeout.ms={_SESSION_MS}\nbroker.heartbeat.interval.ms=300\n"


def fenced(data: Path) -> bool:
    """Whether the newest change of the broker's registration fenced it, as far as the end of the metadata log shows."""
    newest = max((data / "__cluster_metadata-0").glob("*.log"), default=None)
    if newest is None:
        return False
    with newest.open("rb") as log:
        log.seek(max(0, newest.stat().st_size - _TAIL_BYTES))
        changes = _CHANGE.findall(log.read())
    return bool(changes and changes[-1] == b"\x01")


def fence_the_dead(java: list[str], properties: Path, data: Path) -> None:
    """Run the controller until the old broker's session is over. `java` is the command line up to the configuration."""
    alone = properties.with_name("controller.properties")
    alone.write_text(controller_only(properties.read_text()))
    # The configuration names its folders from there.
    folder = properties.parent
    with subprocess.Popen([*java, alone.name], cwd=folder, preexec_fn=die_with_parent) as controller:
        deadline = time.monotonic() + _FENCED_WITHIN_S
        while not fenced(data):
            if controller.poll() is not None or time.monotonic() > deadline:
                print("the broker that died was not seen fenced: going on all the same", flush=True)
                break
            time.sleep(0.1)
        controller.terminate()
        try:
            controller.wait(10)
        except subprocess.TimeoutExpired:
            controller.kill()


def main() -> None:
    """argv: configuration, data folder, and the java command line without the configuration."""
    properties, data, java = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    if ended_uncleanly(data):
        print("the last end was unclean: the controller runs alone first", flush=True)
        fence_the_dead(java, properties, data)
    os.execv(java[0], [*java, str(properties)])


if __name__ == "__main__":
    main()
