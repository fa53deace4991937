"""Causes each alert of `infra/monitoring/rules`, and prints when it fired and when it ended.

ONLY=NAMES, by comma, rehearses some groups (first-day, pipeline, stores, bills) or scenes (doubt). Exit 1 where an alert did not fire, the place that its runbook names did
not show what it should, or the alert did not end after the runbook's steps. Needs Prometheus (`make monitoring-tools`), and a mount
namespace: as root, or where users may have their own.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from infra.embedded.prometheus_server import find_program
from infra.errors import UserError
from tests.monitoring.rehearsal import pipeline, stores
from tests.monitoring.rehearsal.prometheus import AlertMonitor
from tests.monitoring.rehearsal.scenes import Expected, Scene
from tests.monitoring.rehearsal.short_rules import DIVISOR, MOST_S
from tests.monitoring.rehearsal.stack import RehearsedStack

GROUPS: dict[str, tuple[Scene, ...]] = {
    "first-day": (pipeline.FIRST_DAY,),
    "pipeline": (
        pipeline.OVERLOAD, pipeline.PRODUCERS, pipeline.SILENCE, pipeline.CANARIES, pipeline.STREAM, pipeline.STOPPED, pipeline.DOUBT, pipeline.POISON, pipeline.ROUTERS,
    ),
    "stores": (stores.LATENCY, stores.MEMORY, stores.CLICKHOUSE),
    "bills": (stores.NEVER, stores.LATE_RUN, stores.UNBILLED, stores.RUN_ALERT),
}  # fmt: skip
"""Scenes on a stack of their own, in their order."""
NOT_CAUSED: dict[str, str] = {}
"""Alerts that cannot be caused here, and why."""
_FIRES_WITHIN_S, _ENDS_WITHIN_S = 300, 400
_INSIDE = "--inside"


@dataclass
class Outcome:
    """An alert of a scene that was carried out. Moments are those of `time.monotonic`."""

    expected: Expected
    began_s: float
    fired_s: float | None = None
    repaired_s: float = 0.0
    ended_s: float | None = None
    fault: str = ""

    def row(self) -> str:
        """A line of the table."""
        fired = "never" if self.fired_s is None else f"{self.fired_s - self.began_s:.0f}"
        ended = "never" if self.ended_s is None else f"{self.ended_s - self.repaired_s:.0f}"
        e = self.expected
        return f"| {e.alert} | {e.severity} | {e.how} | {fired} | {e.step} | {ended} |{' ' + self.fault if self.fault else ''}"


def play(stack: RehearsedStack, monitor: AlertMonitor, scene: Scene) -> list[Outcome]:
    """Cause the alerts of a scene, look where the runbooks look, and do what they say."""
    began_s = time.monotonic()
    outcomes = [Outcome(expected, began_s) for expected in scene.expected]
    scene.cause(stack)
    while any(o.fired_s is None for o in outcomes) and time.monotonic() < began_s + _FIRES_WITHIN_S:
        for outcome in outcomes:
            outcome.fired_s = outcome.fired_s or monitor.fired_after(outcome.expected.key, began_s)
        time.sleep(0.5)
    for outcome in outcomes:
        expected, seen = outcome.expected, stack.look(outcome.expected.look)
        if outcome.fired_s is None:
            outcome.fault = "it did not fire"
        elif not re.search(stack.dated(expected.shows), seen):
            outcome.fault = f"{expected.look} does not show {expected.shows}: {seen[-600:]!r}"
    end_s = time.monotonic()
    others = monitor.fired_between(began_s, end_s) - {e.key for e in scene.expected}
    also = f"; also {', '.join(sorted(f'{name} ({severity})' for name, severity in others))}" if others else ""
    print(f"{scene.name}: {end_s - began_s:.0f} s until all fired{also}", flush=True)
    for outcome in outcomes:
        outcome.repaired_s = time.monotonic()
    scene.repair(stack)
    return outcomes


def choose(only: str) -> dict[str, tuple[Scene, ...]]:
    """Groups with their scenes, of names by comma; all for none. Raises KeyError for a name that is neither."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(names) - set(_names()):
        raise KeyError(min(unknown))
    return {
        group: chosen
        for group, scenes in GROUPS.items()
        if (chosen := tuple(s for s in scenes if not names or group in names or s.name in names))
    }


def _names() -> list[str]:
    return [*GROUPS, *(scene.name for scenes in GROUPS.values() for scene in scenes)]


def rehearse(group: str, scenes: tuple[Scene, ...]) -> list[Outcome]:
    """Scenes of a group on one stack, and then their alerts until all have ended."""
    with tempfile.TemporaryDirectory(prefix="adclick-alerts-") as work:
        stack = RehearsedStack(Path(work))
        monitor = AlertMonitor(stack.prometheus)
        try:
            if group != "first-day":
                stack.start_pipeline()
            outcomes = [outcome for scene in scenes for outcome in play(stack, monitor, scene)]
            deadline = time.monotonic() + _ENDS_WITHIN_S
            while any(o.ended_s is None for o in outcomes) and time.monotonic() < deadline:
                for outcome in outcomes:
                    outcome.ended_s = outcome.ended_s or monitor.ended_after(outcome.expected.key, outcome.repaired_s)
                time.sleep(0.5)
            for outcome in outcomes:
                if outcome.ended_s is None and not outcome.fault:
                    outcome.fault = "it did not end"
            return outcomes
        finally:
            monitor.close()
            stack.close()


def main() -> None:
    """Read the environment and run."""
    # What was started is stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        chosen = choose(os.environ.get("ONLY", ""))
    except KeyError as error:
        sys.exit(f"ONLY={error.args[0]} is no group and no scene; use some of {', '.join(_names())}")
    try:
        find_program()
    except UserError as error:
        sys.exit(f"rehearse-alerts: failed: {error}; make monitoring-tools")
    if _INSIDE not in sys.argv:
        own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        os.execvp(own[0], [*own, sys.executable, "-m", "tests.monitoring.rehearsal", _INSIDE])
    print(f"durations of the rules are divided by {DIVISOR}, and are {MOST_S} s at most", flush=True)
    outcomes = [outcome for group, scenes in chosen.items() for outcome in rehearse(group, scenes)]
    print("| alert | severity | caused by | fired after s | the runbook's step | ended after s |")
    print("|---|---|---|---:|---|---:|")
    print(*(outcome.row() for outcome in outcomes), sep="\n")
    for alert, reason in NOT_CAUSED.items():
        print(f"{alert} was not caused: {reason}")
    sys.exit(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    main()
