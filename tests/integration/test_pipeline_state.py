"""What `status` and `/metrics` say of the pipeline, on workers that run, stand still and go on."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

from infra import pipeline_state
from infra.settings import Settings
from query.api.metrics import Metrics
from tests.flow import STEP, flow
from tests.product import wait_until


def test_the_streams_lag_grows_while_it_stands_still(settings: Settings, tmp_path: Path) -> None:
    def lag_s() -> float:
        found = pipeline_state.collect(settings)["stream_lag_s"]
        return math.inf if found is None else float(found)

    assert lag_s() == math.inf
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 2)
        running.true_in_part()
        wait_until(lambda: lag_s() == 0, 20, "all is shown")
        running.workers["stream-0"].send_signal(signal.SIGSTOP)
        time.sleep(1)
        running.send()
        wait_until(lambda: 0.9 < lag_s() < math.inf, 20, "the lag is told")
        running.workers["stream-0"].send_signal(signal.SIGCONT)
        wait_until(lambda: lag_s() == 0, 20, "all is shown again")
        metrics = Metrics(settings)
        wait_until(lambda: b"adclick_stream_lag_seconds 0." in metrics.render(), 20, "the metric says so")
