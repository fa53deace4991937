"""The plan of a campaign on clusters, and its table."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra.errors import Unavailable
from tests.clusters import campaign, recoveries
from tests.clusters.campaign import Campaign, Reader
from tests.clusters.recoveries import HEADER, Recovery
from tests.clusters.strikes import STRIKES, ClusterStrike, plan


def test_no_kind_of_strike_comes_more_than_once_more_often_than_another() -> None:
    assert len({strike.name for strike in STRIKES}) == len(STRIKES)
    for count in (0, 4, len(STRIKES), 100):
        strikes = plan(count, random.Random(1))
        times = Counter(strike.name for strike in strikes)
        assert len(strikes) == count
        assert max(times.values(), default=0) - min(times[strike.name] for strike in STRIKES) <= 1


def test_few_strikes_are_of_any_kind() -> None:
    assert {strike.name for seed in range(200) for strike in plan(4, random.Random(seed))} == {s.name for s in STRIKES}


def test_the_table_has_a_row_for_each_kind_and_says_what_never_became_fresh(tmp_path: Path) -> None:
    file = tmp_path / "bench" / "strikes.jsonl"
    expected = [
        Recovery(1, "kafka: halt a broker", 3.04, 2.2),
        Recovery(1, "s3: network, cut", 0.2, 4.6),
        Recovery(2, "kafka: halt a broker", 1.0, 8.0),
        recoveries.recovery(2, "s3: network, cut", float("inf")),
    ]
    for recovery in expected:
        recoveries.keep(recovery, file)
    assert recoveries.kept(file) == expected
    header, kafka, s3, total = recoveries.table(expected).removeprefix(HEADER).splitlines()
    assert header == ""
    assert kafka == "| kafka: halt a broker | 2 | 2.0 | 3.0 | 2 to 8 |"
    assert s3.startswith("| s3: network, cut | 2 | inf | inf |")
    assert total.startswith("| all | 4 | 2.0 | inf |")


def test_the_table_of_one_kind_has_no_row_for_all() -> None:
    assert recoveries.table([Recovery(1, "a", 1.0, 2.0)]) == f"{HEADER}\n| a | 1 | 1.0 | 1.0 | 2 to 2 |"


class Client:
    """Gives these answers one after the other, and then stops its reader."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.reader: Reader | None = None

    def get(self, _path: str, _parameters: object) -> Any:
        answer = self._answers.pop(0)
        if not self._answers and self.reader is not None:
            self.reader.stop()
        if isinstance(answer, Exception):
            raise answer
        return answer


def problems_of_reading(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    client, running = Client(*answers), SimpleNamespace(settings=None, parameters=list)
    monkeypatch.setattr(campaign, "RouterClient", lambda _: client)
    monkeypatch.setattr(campaign, "_POLL_S", 0.001)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    client.reader = reader = Reader(running)  # type: ignore[arg-type]
    thread = threading.Thread(target=reader.run)
    thread.start()
    thread.join()
    return reader.problems


WHOLE: dict[str, list[str]] = {"warnings": [], "data": []}
PARTIAL: dict[str, list[str]] = {"warnings": ["minutes are missing"], "data": []}


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([PARTIAL, WHOLE], None),
        ([Unavailable("Redis: it is away"), PARTIAL], "no answer was whole: nothing was compared"),
        ([WHOLE, ValueError("no such column")], "the reader ended: ValueError('no such column')"),
    ],
    ids=["whole", "none whole", "reader ended"],
)
def test_a_campaign_whose_reader_compared_nothing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], problem: str | None
) -> None:
    assert problems_of_reading(monkeypatch, *answers) == ([] if problem is None else [problem])


@pytest.mark.parametrize("has_sent_all", [True, False])
def test_answers_that_never_become_fresh_are_wrong_also_when_all_was_sent_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_sent_all: bool
) -> None:
    monkeypatch.setattr(campaign, "countable", lambda _: np.ones(5))
    monkeypatch.setattr(campaign, "_RECOVERY_S", -1.0)
    monkeypatch.chdir(tmp_path)  # where recoveries are kept
    clusters: Any = None
    running: Any = SimpleNamespace(events=None, restart_stopped=lambda: None, restarts=[])
    sender: Any = SimpleNamespace(acknowledged=5, has_sent_all=has_sent_all, failure="")
    reader: Any = SimpleNamespace(fresh_since=lambda *_: None, problems=[], shown=[])
    struck = Campaign(clusters, running, sender, reader, 1)
    struck._carry_out(ClusterStrike("s3: network, cut", lambda *_: None))
    assert struck.never_fresh == ["s3: network, cut: answers did not become fresh"]
    assert len(struck.recoveries) == int(not has_sent_all)
    assert not campaign._report(struck, sender, reader, running)
