"""Over HTTP: whose requests `/metrics` counts by key, and who may see that."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from infra.clickhouse.client import ClickHouse
from infra.settings import Settings
from query.api.app import create_app
from query.keys import ROOT, Keys

_QUESTION = "/v1/metrics?campaign_id=1&start=-1h&end=now"


def series(text: str) -> dict[tuple[str, str], float]:
    """(key, outcome) → requests."""
    pattern = r'^adclick_key_requests_total\{key="([^"]+)",outcome="(\w+)"\} (\S+)$'
    return {(key, outcome): float(value) for key, outcome, value in re.findall(pattern, text, re.M)}


def test_requests_are_counted_by_key_and_shown_to_operators_alone(settings: Settings) -> None:
    keys = Keys(ClickHouse.of(settings))

    def create(name: str, advertisers: frozenset[int] | None, admin: bool, rate: float) -> tuple[str, dict[str, str]]:
        made, token = keys.create(name, advertisers, admin=admin, rate=rate, burst=rate, lasts_ms=None)
        return made.id, {"Authorization": f"Bearer {token}"}

    tenant, limited = create("tenant", frozenset({1}), False, 1000), create("limited", frozenset({2}), False, 1)
    agency, operator = create("agency", frozenset({1}), True, 1000), create("operator", None, True, 1000)
    root = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    with TestClient(create_app(settings), client=("127.0.0.1", 1234)) as http:
        statuses = [
            http.get(_QUESTION, headers=headers).status_code for _, headers in (tenant, tenant, limited, limited)
        ]
        assert statuses == [200, 200, 200, 429]
        assert http.get("/v1/keys", headers=tenant[1]).status_code == 403
        assert http.get(_QUESTION, headers={"Authorization": "Bearer adk_nobody_x"}).status_code == 401
        expected = {
            (tenant[0], "answered"): 2, (tenant[0], "refused"): 1, (limited[0], "answered"): 1, (limited[0], "limited"): 1,
        }  # fmt: skip
        for headers in (operator[1], root):
            assert series(http.get("/metrics", headers=headers).text) == expected
        # A scrape is no use of a key: else each would be in all later ones.
        assert not {operator[0], ROOT} & {key for key, _ in series(http.get("/metrics", headers=root).text)}
        for headers in ({}, tenant[1], agency[1], {"Authorization": "Bearer wrong"}):
            response = http.get("/metrics", headers=headers)
            assert response.status_code == 200 and "adclick_build_info" in response.text
            assert "adclick_key_" not in response.text
            assert not [id_ for id_, _ in (tenant, limited, agency, operator) if id_ in response.text]
    with TestClient(create_app(settings), client=("192.0.2.1", 1234)) as http:
        assert [http.get("/metrics", headers=h).status_code for h in ({}, tenant[1], root)] == [401, 403, 200]


@pytest.mark.parametrize("header", ["Bearer", "Basic Og==", "Bearer " + "x" * 5000])
def test_a_header_that_is_no_key_does_not_hinder_a_scrape_on_loopback(settings: Settings, header: str) -> None:
    with TestClient(create_app(settings), client=("127.0.0.1", 1234)) as http:
        response = http.get("/metrics", headers={"Authorization": header})
        assert response.status_code == 200
        assert "adclick_key_" not in response.text
