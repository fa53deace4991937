"""Who may change webhooks, and when the worker disables one."""

from __future__ import annotations

import json
from typing import Any

from query.keys import Keys
from query.webhooks.queues import RetryPolicy
from tests.installation import Installation, worker
from tests.product import wait_until
from tests.webhook_targets import answer, target


def test_a_webhook_that_takes_nothing_for_long_is_disabled_with_an_alert_to_the_operator(
    installation: Installation,
) -> None:
    with target(lambda request, _: answer(request, 500)) as failing, target() as operator:
        webhook = installation.webhook(failing.url)
        installation.webhook(operator.url, installation.admin, advertiser_id=None, kinds=["webhook-disabled"])
        impatient = RetryPolicy(first_s=0.2, longest_s=0.5, for_ms=60_000, disable_ms=500)
        path = f"/v1/webhooks/{webhook['id']}"

        def is_enabled() -> bool:
            return bool(installation.http.get(path, headers=installation.tenant).json()["enabled"])

        with worker(installation, policy=impatient):
            installation.raise_alert("a")
            wait_until(lambda: not is_enabled(), 20, "it is disabled")
            wait_until(lambda: len(operator.messages) == 1, 20, "the operator is told")
            assert installation.http.post(f"{path}/test", headers=installation.tenant).status_code == 409
            enabled = installation.http.patch(path, json={"enabled": True}, headers=installation.tenant)
            assert (enabled.status_code, enabled.json()["disabled_why"]) == (200, None)
            wait_until(lambda: len(operator.messages) == 2, 20, "the alert is closed")
    types = [json.loads(body)["type"] for _, body in operator.messages]
    assert types == ["alert.opened", "alert.closed"]
    assert json.loads(operator.messages[0][1])["data"]["detail"]["problem"] == "answered 500"
    audit = installation.http.get("/v1/audit", headers=installation.admin).json()["data"]
    actions = {entry["action"] for entry in audit if entry["subject"] == f"webhook/{webhook['id']}"}
    assert actions == {"create", "disable", "change"}
    assert "/hook" not in json.dumps(audit) and "whsec" not in json.dumps(audit)


def test_keys_change_webhooks_of_their_own_advertisers_alone(installation: Installation) -> None:
    http, keys, own_id = installation.http, Keys(installation.client), installation.advertiser

    def key(advertisers: frozenset[int] | None, **more: Any) -> dict[str, str]:
        _, secret = keys.create(
            "k", advertisers, **{"admin": False} | more, rate=1000, burst=1000, lasts_ms=None, actor="test"
        )
        return {"Authorization": f"Bearer {secret}"}

    body: dict[str, Any] = {"url": "https://hooks.example.com/a", "advertiser_id": own_id}
    token = http.post("/v1/tokens", json={}, headers=installation.tenant).json()["token"]
    refused = {
        "a token": {"Authorization": f"Bearer {token}"},
        "another advertiser's": key(frozenset({own_id + 1_000_000})),
        "the key of a link": key(frozenset({own_id}), share=True),
        "of some campaigns": key(frozenset({own_id}), campaigns=frozenset({7})),
        "of all, but no admin": key(None),
        "an admin key of others": key(frozenset({own_id + 1_000_000}), admin=True),
    }
    own = installation.webhook(body["url"])
    path = f"/v1/webhooks/{own['id']}"
    for who, headers in refused.items():
        assert http.post("/v1/webhooks", json=body, headers=headers).status_code == 403, who
        assert http.get(path, headers=headers).status_code in (403, 404), who
        assert http.patch(path, json={"enabled": False}, headers=headers).status_code in (403, 404), who
        assert http.delete(path, headers=headers).status_code in (403, 404), who
        assert http.post(f"{path}/rotate", headers=headers).status_code in (403, 404), who
        assert http.get("/v1/webhooks", headers=headers).json().get("data", []) == [], who
    operator = {"url": body["url"]}
    assert http.post("/v1/webhooks", json=operator, headers=installation.tenant).status_code == 403
    assert http.post("/v1/webhooks", json=operator, headers=key(frozenset({own_id}), admin=True)).status_code == 403
    assert http.post("/v1/webhooks", json=operator, headers=installation.admin).status_code == 201
    listed = http.get("/v1/webhooks", headers=installation.tenant).json()
    assert [w["id"] for w in listed["data"]] == [own["id"]] and "secret" not in listed["data"][0]
    assert len(http.get("/v1/webhooks", headers=installation.admin).json()["data"]) == 2
    rotated = http.post(f"{path}/rotate", json={"grace_s": 3600}, headers=installation.tenant).json()
    assert rotated["secret"].startswith("whsec_") and rotated["secret"] != own["secret"]
    assert rotated["former_secret_until"] is not None
    changed = http.patch(path, json={"description": " ours ", "kinds": ["budget"]}, headers=installation.tenant).json()
    assert (changed["description"], changed["kinds"], changed["url"]) == ("ours", ["budget"], body["url"])
    for wrong in ({"url": "http://10.0.0.1/"}, {"url": "ftp://a/"}, {"kinds": ["No"]}, {"format": "xml"}, {"nope": 1}):
        assert http.patch(path, json=wrong, headers=installation.tenant).status_code == 400, wrong
    assert http.delete(path, headers=installation.tenant).status_code == 200
    assert http.get(path, headers=installation.tenant).status_code == 404
    for _ in range(20):
        installation.webhook(body["url"])
    assert http.post("/v1/webhooks", json=body, headers=installation.tenant).status_code == 409
