"""Every alert is caused by a rehearsal, or named with the reason; its rules are the real ones with other durations."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from tests.monitoring.rehearsal.__main__ import GROUPS, NOT_CAUSED, choose
from tests.monitoring.rehearsal.short_rules import DURATION, THRESHOLDS, shorten_duration, shorten_rules
from tests.unit.test_monitoring import RULES, alerts


def test_every_alert_is_caused_or_named_with_the_reason() -> None:
    caused = {expected.key for scenes in GROUPS.values() for scene in scenes for expected in scene.expected}
    real = {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}
    assert real - caused == {key for key in real if key[0] in NOT_CAUSED}
    assert caused <= real


@pytest.mark.parametrize(
    ("real", "short"),
    [("30s", "1s"), ("1m", "3s"), ("5m", "15s"), ("30m", "90s"), ("1h", "120s"), ("3d", "120s"), ("55h", "120s")],
)
def test_a_twentieth_of_a_duration_and_two_minutes_at_most(real: str, short: str) -> None:
    assert shorten_duration(real) == short


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_short_rules_differ_in_durations_and_in_the_thresholds_that_are_listed(file: Path) -> None:
    real, short = file.read_text(), shorten_rules(file.read_text())
    for high, low in THRESHOLDS.items():
        short = short.replace(low, high)
    assert re.sub(DURATION, "D", real) == re.sub(DURATION, "D", short)
    for group in yaml.safe_load(short)["groups"]:
        for rule in group["rules"]:
            promql_parser.parse(rule["expr"])
            # None is left as it is: the longest here is two minutes.
            assert not re.search(r"\[\d+[mhd]\]|offset \d+[mhd]", rule["expr"])
            assert re.fullmatch(r"\d+s", str(rule.get("for", "0s")))


def test_a_lowered_threshold_is_in_one_rule() -> None:
    text = "".join(file.read_text() for file in RULES)
    assert [text.count(real) for real in THRESHOLDS] == [1] * len(THRESHOLDS)


def test_groups_and_scenes_are_chosen_by_name() -> None:
    chosen = choose("bills, doubt")
    assert {group: [scene.name for scene in scenes] for group, scenes in chosen.items()} == {
        "pipeline": ["doubt"],
        "bills": [scene.name for scene in GROUPS["bills"]],
    }
    assert choose("") == GROUPS
    with pytest.raises(KeyError, match="dout"):
        choose("dout")
