"""The routes of alerts and mutes, among them the stream of new versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from query.api import document, document_alerts
from query.api.access import Gate
from query.api.alerts import AlertsApi
from query.api.bills import encode
from query.api.live import Live, LiveEvent
from query.api.routes import Routes


def add_alert_routes(routes: Routes, add_api_route: Callable[..., None], gate: Gate, live: Live, alerts: AlertsApi) -> None:  # fmt: skip
    """`add_api_route`: of the web application."""
    of_alert, of_mute = [document_alerts.ALERT_ID], [document_alerts.MUTE_ID]
    routes.add("/v1/alerts", alerts.list, "Alerts, newest first", document.ALERTS, "alerts")
    # Before the route of one alert, whose path matches these as well.
    routes.add(
        "/v1/alerts/summary", alerts.summary, "How many alerts of campaigns were false in the last 28 days, by kind",
        document.ALERT_SUMMARY, "alert summary",
    )  # fmt: skip
    add_api_route(
        "/v1/alerts/stream", _make_stream(gate, live, alerts), summary="New versions of alerts, as server-sent events",
        response_model=None, response_class=Response, responses=document.RESPONSES["live alerts"],
        openapi_extra={"parameters": document.LIVE_ALERTS},
    )  # fmt: skip
    routes.add("/v1/alerts/{id}", alerts.get, "An alert with all its versions", of_alert, "alert")
    routes.add(
        "/v1/alerts/{id}/acknowledge", alerts.acknowledge, "Acknowledge an alert", of_alert, "acknowledged", method="POST",
        waits=True, body=document_alerts.ACKNOWLEDGE_REQUEST,
    )  # fmt: skip
    routes.add("/v1/mutes", alerts.mutes, "Mutes that have not ended", document.MUTES, "mutes")
    routes.add(
        "/v1/mutes", alerts.put_mute, "Mute alerts of an advertiser or campaign until a moment", [], "mute", method="PUT",
        waits=True, body=document_alerts.MUTE_REQUEST,
    )  # fmt: skip
    routes.add("/v1/mutes/{id}", alerts.delete_mute, "End a mute", of_mute, "ended mute", method="DELETE", waits=True)


def _make_stream(gate: Gate, live: Live, alerts: AlertsApi) -> Callable[..., object]:
    async def stream(request: Request) -> Response:
        access, allowance = await asyncio.to_thread(gate.enter, request)
        slot = live.take(access)
        try:
            # A bad question is answered with a problem document, not with a stream.
            position = await asyncio.to_thread(alerts.begin, request, access)
        except BaseException:
            slot.release()
            raise
        begun = False

        def next_event() -> LiveEvent | None:
            nonlocal position, begun
            current = gate.authenticate(request)
            step = alerts.next(position, alerts.filter_of(request, current))
            gate.charge(current, step.rows_read)
            position = step.position
            if not step.alerts and begun:
                return None
            # The first event comes at once, so that its client has an id to reconnect with.
            begun = True
            return LiveEvent(encode(step.alerts).decode(), alerts.encode(position))

        return live.follow(slot, next_event, allowance.headers())

    return stream
