"""Alert rules by promtool, Prometheus' own checker: `make monitoring-test` brings it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_monitoring import CASES, RULES


def promtool(*words: str, cwd: Path | None = None) -> str:
    """Run it; its output. Fails where it is not installed: no test of rules is skipped."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is not installed; make monitoring-test brings it"
    result = subprocess.run([program, *words], capture_output=True, text=True, cwd=cwd, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_prometheus_accepts_all_rules() -> None:
    output = promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))
    assert output.count("SUCCESS") == len(RULES) > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_the_right_alerts_fire_and_no_others(case: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", case.name, cwd=case.parent)
