"""Alerts of runs that need a person, to the webhook in the setting `alert_webhook`."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import tenacity

from infra import http_client
from infra.addresses import mask_webhook
from infra.cli.app import App

_TIMEOUT_S = 10


def send(app: App, alert: dict[str, Any]) -> None:
    """POST an alert as JSON; nothing where no webhook is set. A failure is printed and fails nothing: the run's record has the alert."""
    url = app.settings.alert_webhook
    if not url:
        return
    body, kind = json.dumps(alert, default=str).encode(), {"Content-Type": "application/json"}
    try:
        _post(urllib.request.Request(url, body, kind, method="POST"))
    except (OSError, ValueError) as error:  # the latter for what is no address
        app.say(f"the alert could not be delivered to {mask_webhook(url)}: {error}")


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(OSError), stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_exponential_jitter(0.5, 5), reraise=True,
)  # fmt: skip
def _post(request: urllib.request.Request) -> None:
    with http_client.open_anywhere(request, _TIMEOUT_S):
        pass
