"""The comparison at the end of a chaos campaign sees alerts that are there twice, or in part."""

from __future__ import annotations

import pytest

from infra.clickhouse.alerts import Alert
from tests.planted.alerts import faults_of_series


def version(id_: str, number: int, state: str, opened_ms: int = 100, ended_ms: int = 0) -> Alert:
    return Alert(id_, number, "spend-spike", "critical", state, 3, 7, opened_ms, ended_ms, "")


OPENED, CLOSED = version("a", 1, "open"), version("a", 2, "closed", ended_ms=200)


@pytest.mark.parametrize(
    ("versions", "faults"),
    [
        ([OPENED], 0),
        ([OPENED, CLOSED, version("b", 1, "open", 200)], 0),
        ([OPENED, version("a", 2, "withdrawn", ended_ms=200), version("b", 1, "open", 150)], 0),
        ([CLOSED], 1),
        ([OPENED, CLOSED, version("a", 3, "closed", ended_ms=200)], 1),
        ([OPENED, CLOSED, version("b", 1, "open", 199)], 1),
        ([OPENED, version("b", 1, "open", 200)], 1),
    ],
    ids=["open", "one after the other", "after a withdrawn one", "no first version", "closed twice", "overlap", "both open"],
)  # fmt: skip
def test_alerts_that_are_twice_or_in_part_are_faults(versions: list[Alert], faults: int) -> None:
    assert len(faults_of_series(versions)) == faults
