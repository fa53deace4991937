"""The routes of webhooks."""

from __future__ import annotations

from query.api import document, document_webhooks
from query.api.routes import Routes
from query.api.webhooks import Webhooks

_KEYS = "with an admin key, or the advertiser's own"


def add_webhook_routes(routes: Routes, webhooks: Webhooks) -> None:
    """Add them to those under /v1."""
    route, one = routes.add, [document_webhooks.ID]
    path = "/v1/webhooks/{id}"
    route(
        "/v1/webhooks",
        webhooks.list,
        f"Addresses that alerts are delivered to; {_KEYS}",
        [document_webhooks.OF_ADVERTISER],
        "webhooks",
    )
    route(
        "/v1/webhooks", webhooks.create, f"Make a webhook; {_KEYS}", [], "new webhook", method="POST",
        waits=True, body=document_webhooks.REQUEST,
    )  # fmt: skip
    route(path, webhooks.get, f"One of the webhooks; {_KEYS}", one, "webhook")
    route(
        path, webhooks.change, f"Change a webhook, or enable it again; {_KEYS}", one, "webhook", method="PATCH",
        waits=True, body=document_webhooks.CHANGE,
    )  # fmt: skip
    route(path, webhooks.delete, f"Delete a webhook; {_KEYS}", one, "webhook", method="DELETE", waits=True)
    route(
        f"{path}/rotate", webhooks.rotate, f"Give a webhook a new secret; {_KEYS}", one, "webhook secret", method="POST",
        waits=True, body=document_webhooks.ROTATE,
    )  # fmt: skip
    route(
        f"{path}/test", webhooks.test, f"Have a test message sent; {_KEYS}", one, "attempt", method="POST", waits=True
    )
    route(
        f"{path}/deliveries", webhooks.deliveries, f"What was sent to a webhook, newest first; {_KEYS}", [*one, document.AUDITED[0] | {"description": "attempts at most; 100 by default"}],
        "attempts",
    )  # fmt: skip
    route(
        "/v1/webhooks/deliveries/{id}/replay", webhooks.replay, f"Have a message sent again; {_KEYS}",
        [document_webhooks.DELIVERY_ID], "attempt", method="POST",
    )  # fmt: skip
