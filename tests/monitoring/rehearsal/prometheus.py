"""Prometheus of a rehearsal: short rules, short intervals, two routers; and a thread that notes when each alert fires and ends."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx

from infra.embedded import prometheus_server
from tests.monitoring.rehearsal.short_rules import write_short_rules
from tests.ports import unused_port
from tests.product import wait_until

SCRAPE_S = 3
_LOOK_EVERY_S = 0.5
AlertKey = tuple[str, str]
"""Name and severity."""


class RehearsedPrometheus:
    """The process. `url`: where it listens."""

    def __init__(self, folder: Path, router: str, tls_router: str, api_key: str) -> None:
        port = unused_port()
        self.url = prometheus_server.url_at(port)
        command = prometheus_server.prometheus(folder, port, router, api_key)
        write_short_rules(prometheus_server.RULES, folder / "rules")
        settings = folder / "prometheus.yml"
        config = json.loads(settings.read_text())
        config["global"] = {
            "scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s", "evaluation_interval": "1s",
        }  # fmt: skip
        config["rule_files"] = [str(folder / "rules" / "*.yml")]
        tls = prometheus_server.configuration(tls_router, folder / "api_key")
        (second,) = json.loads(tls)["scrape_configs"]
        # Both are routers of one installation.
        second |= {"job_name": "adclick-tls", "relabel_configs": [{"target_label": "job", "replacement": "adclick"}]}
        config["scrape_configs"].append(second)
        settings.write_text(json.dumps(config, indent=1))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command.argv, stdout=log, stderr=log)
        wait_until(self._is_ready, 10, "Prometheus is ready")

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        response.raise_for_status()
        return response.json()["data"]

    def firing(self) -> set[AlertKey]:
        """The alerts that fire now."""
        alerts = self.get("alerts")["alerts"]
        labels = (alert["labels"] for alert in alerts if alert["state"] == "firing")
        return {(each["alertname"], each["severity"]) for each in labels}

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(30)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


class AlertMonitor:
    """Looks at the alerts twice a second. Times are those of `time.monotonic`."""

    def __init__(self, prometheus: RehearsedPrometheus) -> None:
        self._prometheus, self._stop, self._lock = prometheus, threading.Event(), threading.Lock()
        self._fired: dict[AlertKey, list[list[float]]] = defaultdict(list)
        """Beginning and end of each time that it fired; the end is infinite while it fires."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def fired_after(self, alert: AlertKey, moment_s: float) -> float | None:
        """When it was first seen firing after a moment; the moment itself where it fired then."""
        with self._lock:
            spans = [span for span in self._fired[alert] if span[1] > moment_s]
        return max(moment_s, spans[0][0]) if spans else None

    def ended_after(self, alert: AlertKey, moment_s: float) -> float | None:
        """When it was first seen not firing after a moment; None while it fires."""
        with self._lock:
            ends = [end for began, end in self._fired[alert] if began <= moment_s < end]
        end = ends[0] if ends else moment_s
        return end if end != float("inf") else None

    def fired_between(self, start_s: float, end_s: float) -> set[AlertKey]:
        """The alerts that began to fire then."""
        with self._lock:
            return {alert for alert, spans in self._fired.items() if any(start_s <= s[0] < end_s for s in spans)}

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            try:
                firing = self._prometheus.firing()
            except httpx.HTTPError:
                continue
            self.note(firing, time.monotonic())

    def note(self, firing: set[AlertKey], now_s: float) -> None:
        """What fires now."""
        with self._lock:
            for alert in firing | self._fired.keys():
                spans = self._fired[alert]
                is_open = bool(spans) and spans[-1][1] == float("inf")
                if alert in firing and not is_open:
                    spans.append([now_s, float("inf")])
                elif alert not in firing and is_open:
                    spans[-1][1] = now_s
