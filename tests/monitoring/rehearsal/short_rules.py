"""A copy of the alert rules that is in minutes where the real ones are in hours, for rehearsals alone.

Each duration is divided by 20, and is two minutes at most; so all windows keep their order, and only those above 40 minutes become alike.
One threshold is lowered, too. Nothing else differs, which a test holds.
"""

from __future__ import annotations

import re
from pathlib import Path

DIVISOR, MOST_S = 20, 120
THRESHOLDS = {"job:adclick_watermark_age_seconds:min > 600": "job:adclick_watermark_age_seconds:min > 60"}
"""What a small stack would take ten minutes to reach → what it is here."""
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Of a range, an offset, and of what a rule waits before it fires.
DURATION = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<= offset )\d+[smhd]\b|(?<=  for: )\d+[smhd]\b")


def shorten_duration(text: str) -> str:
    """`5m` → `15s`."""
    seconds = int(text[:-1]) * _UNITS_S[text[-1]]
    return f"{min(MOST_S, max(1, seconds // DIVISOR))}s"


def shorten_rules(text: str) -> str:
    """A file of rules with short durations."""
    for real, low in THRESHOLDS.items():
        text = text.replace(real, low)
    return DURATION.sub(lambda match: shorten_duration(match[0]), text)


def write_short_rules(rules: Path, folder: Path) -> None:
    """Copy all files of rules into a folder, shortened."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(rules.glob("*.yml")):
        (folder / file.name).write_text(shorten_rules(file.read_text()))
