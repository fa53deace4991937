"""What `adclick doctor` demands of each process is what the documentation says that it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.kafka import topics
from infra.kafka.topics import NAMES, wanted
from infra.process_needs import ALL_BUT_MIGRATE, NEEDS, Needs
from infra.settings import Settings

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
_ROW = re.compile(r"^\| (?:`(\w+)`|all others) \|(.*)\|(.*)\|(.*)\| (yes|no) \|(.*)\|(.*)\|$", re.MULTILINE)


def documented() -> dict[str, Needs]:
    rows = dict[str, Needs]()
    for process, reads, writes, groups, transacts, clickhouse, archive in _ROW.findall(OPERATING.read_text()):
        read, written, on_groups = (tuple(re.findall(r"`([\w-]+)`", cell)) for cell in (reads, writes, groups))
        read = NAMES if reads.strip() == "all" else read + (written if "and those" in reads else ())
        is_member = groups.strip().startswith("Read")
        rows[process or "others"] = Needs(
            read,
            written,
            on_groups * is_member,
            on_groups * (not is_member),
            transacts == "yes",
            clickhouse=clickhouse.strip(),
            archive=archive.strip(),
            **dict.fromkeys(("uses_redis", "describes_all"), process != "canary"),
        )
    return rows


@pytest.mark.parametrize("process", NEEDS)
def test_the_documentation_says_what_doctor_demands(process: str) -> None:
    assert documented()[process] == NEEDS[process]


def test_all_topics_and_groups_of_an_installation_are_among_the_needs() -> None:
    assert {topic.name for topic in wanted(Settings.model_validate({}))} == {*NAMES}
    assert {group for needs in NEEDS.values() for group in needs.joins} == {*topics.GROUPS} == {*ALL_BUT_MIGRATE.joins}
    assert {topic for needs in NEEDS.values() for topic in needs.writes} == {*NAMES} <= {*ALL_BUT_MIGRATE.writes}
