"""What `adclick query` prints of an answer."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from infra.cli.main import cli
from query import query_command

ANSWER: dict[str, Any] = {
    "meta": [{"name": "time"}, {"name": "clicks"}], "data": [{"time": "2026-11-29T10:00:00Z", "clicks": 3}], "rows": 1,
    "next_cursor": None, "finality": "provisional", "watermark": "2026-11-29T10:00:30Z", "warnings": [],
    "statistics": {"tiers": [{"tier": "hot"}, {"tier": "warm"}, {"tier": "hot"}], "elapsed_ms": 2.5},
}  # fmt: skip
AWAY = "tier hot is not available"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "1 row · provisional · watermark 2026-11-29T10:00:30Z · hot, warm · 2.5 ms"),
        ({"watermark": None}, "1 row · provisional · no watermark yet: no minute is closed · hot, warm · 2.5 ms"),
        ({"watermark": None, "warnings": [AWAY]}, "1 row · provisional · watermark unknown · hot, warm · 2.5 ms"),
        ({"rows": 0}, "0 rows · provisional · watermark 2026-11-29T10:00:30Z · hot, warm · 2.5 ms"),
        ({"rows": 1_000}, "1,000 rows · provisional · watermark 2026-11-29T10:00:30Z · hot, warm · 2.5 ms"),
        ({"users_standard_error": 0.0115}, "users are estimates: 95 of 100 are within 2.3%"),
        ({"statistics": {"tiers": [], "elapsed_ms": 2.5}}, "1 row · provisional · watermark 2026-11-29T10:00:30Z · 2.5 ms"),
    ],
    ids=["known", "nothing closed", "store away", "no rows", "many rows", "users", "no tier read"],
)  # fmt: skip
def test_the_line_below_the_table_states_the_finality_of_the_rows(
    fields: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def __init__(self, _: object) -> None:
            pass

        def get(self, _path: str, _parameters: object) -> dict[str, Any]:
            return ANSWER | fields

    monkeypatch.setattr(query_command, "Client", Client)
    result = CliRunner().invoke(cli, ["query", "--campaign", "7", "--start", "-1h"])
    assert result.exit_code == 0, result.output
    assert line in result.stderr.splitlines()
