"""`make profile`: a flame graph of each of our workers, while the pipeline runs at full speed.

Py-spy samples them from outside, a hundred times a second, threads that wait left out, in Python and in compiled code.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from infra.clock import MINUTE_MS
from ingest.synthetic.generator import Spec
from tests.benchmarks.pipeline import measure
from tests.benchmarks.stack import RESULTS, across_midnight, bench

_WARM_S, _RECORDED_S = 4, 20
_OURS = ("ingest", "stream", "archive", "query")


def main() -> None:
    """Record one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=int(os.environ.get("EVENTS", "10000000")))
    options = parser.parse_args()
    span_ms = 30 * MINUTE_MS
    spec = Spec(
        events=options.events, start_ms=across_midnight(span_ms), span_ms=span_ms, late=0.001, malformed=0.0, future=0.0
    )
    RESULTS.mkdir(exist_ok=True)
    spy = Path(sys.executable).with_name("py-spy")
    with bench() as stack:
        filled = stack.fill(spec)
        stack.start(1, 1)
        while not stack.consumed():
            time.sleep(0.1)
        time.sleep(_WARM_S)
        recording = {
            name: subprocess.Popen(
                [str(spy), "record", "--pid", str(process.pid), "--duration", str(_RECORDED_S), "--native", "--output",
                 str(RESULTS / f"profile-{name}.svg")],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for name, process in stack.processes().items()
            if name.startswith(_OURS)
        }  # fmt: skip
        measure(stack, filled, {"cpu_s_per_million": 1.0, "events_per_s": 1.0})
        failed = [name for name, recorder in recording.items() if recorder.wait(60)]
    for name in recording:
        print("failed" if name in failed else RESULTS / f"profile-{name}.svg", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
