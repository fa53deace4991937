"""Hostile messages on the real Kafka and Redis; `make hostile` sends a million."""

from __future__ import annotations

from pathlib import Path

from infra.settings import Settings
from tests.chaos import hostile


def test_every_hostile_message_is_accounted_for(settings: Settings, tmp_path: Path) -> None:
    counts = hostile.run(settings, tmp_path, 40_000, seed=1)
    assert sum(n for name, n in counts.items() if name != "sent") == 40_000
    assert {"counted", "copy", "malformed", "missing-field", "bad-value", "too-large", "from-the-future"} <= set(counts)
    print(counts)
