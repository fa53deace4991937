"""The plan of a campaign on clusters, and its table."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from tests.clusters import recoveries
from tests.clusters.recoveries import HEADER, Recovery
from tests.clusters.strikes import STRIKES, plan


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
    found = [
        Recovery(1, "kafka: halt a broker", 3.04, 2.2),
        Recovery(1, "s3: network, cut", 0.2, 4.6),
        Recovery(2, "kafka: halt a broker", 1.0, 8.0),
        recoveries.recovery(2, "s3: network, cut", float("inf")),
    ]
    for recovery in found:
        recoveries.keep(recovery, file)
    assert recoveries.kept(file) == found
    header, kafka, s3, total = recoveries.table(found).removeprefix(HEADER).splitlines()
    assert header == ""
    assert kafka == "| kafka: halt a broker | 2 | 2.0 | 3.0 | 2 to 8 |"
    assert s3.startswith("| s3: network, cut | 2 | inf | inf |")
    assert total.startswith("| all | 4 | 2.0 | inf |")


def test_the_table_of_one_kind_has_no_row_for_all() -> None:
    assert recoveries.table([Recovery(1, "a", 1.0, 2.0)]) == f"{HEADER}\n| a | 1 | 1.0 | 1.0 | 2 to 2 |"
