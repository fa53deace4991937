"""The rights of users of Redis that `adclick doctor` tries are those that the documentation names."""

from __future__ import annotations

import re
from pathlib import Path

from infra.redis.rights import RIGHTS, Rights

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"


def documented() -> dict[str, Rights]:
    rows = re.findall(r"^\| (?:`(\w+)`|all others) \| `(~adclick:[^`]+)` \|$", OPERATING.read_text(), re.MULTILINE)
    return {
        process or "others": Rights(tuple(re.findall(r"~adclick:(\S+)", rules)), tuple(re.findall(r"\+(\S+)", rules)))
        for process, rules in rows
    }


def test_the_documentation_names_what_doctor_tries() -> None:
    assert documented() == RIGHTS
