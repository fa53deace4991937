"""How long after strikes answers had all that was sent by then: kept of every campaign in `.bench/cluster-strikes.jsonl`.

`python -m tests.clusters.recoveries [SEED …]` prints the table, of all campaigns or of these.
"""

from __future__ import annotations

import math
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

KEPT = Path(".bench/cluster-strikes.jsonl")
HEADER = "| strike | times | until fresh, s: median | worst | load average |\n|---|---|---|---|---|"


class Recovery(msgspec.Struct, frozen=True):
    """From one strike. `fresh_after_s`: None for never. `load`: of the machine, the average of the minute before."""

    seed: int
    strike: str
    fresh_after_s: float | None
    load: float

    @property
    def is_fresh(self) -> bool:
        """Whether answers became fresh again."""
        return self.fresh_after_s is not None


def recovery(seed: int, strike: str, fresh_after_s: float) -> Recovery:
    """Of now."""
    seconds = round(fresh_after_s, 2) if math.isfinite(fresh_after_s) else None
    return Recovery(seed, strike, seconds, round(os.getloadavg()[0], 1))


def keep(found: Recovery, file: Path = KEPT) -> None:
    """Add it to those of former campaigns."""
    file.parent.mkdir(exist_ok=True)
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(found) + b"\n")


def kept(file: Path = KEPT) -> list[Recovery]:
    """All that were kept."""
    return [msgspec.json.decode(line, type=Recovery) for line in file.read_bytes().splitlines()]


def table(recoveries: Sequence[Recovery]) -> str:
    """A row of Markdown for each kind of strike, and one for all."""
    by_strike = defaultdict[str, list[Recovery]](list)
    for found in recoveries:
        by_strike[found.strike].append(found)
    rows = [*sorted(by_strike.items()), *([("all", list(recoveries))] if len(by_strike) > 1 else [])]
    return "\n".join([HEADER, *(_row(strike, found) for strike, found in rows)])


def _row(strike: str, found: Sequence[Recovery]) -> str:
    seconds, loads = [math.inf if f.fresh_after_s is None else f.fresh_after_s for f in found], [f.load for f in found]
    load = f"{min(loads):.0f} to {max(loads):.0f}"
    return f"| {strike} | {len(found)} | {median(seconds):.1f} | {max(seconds):.1f} | {load} |"


def main() -> None:
    """Print the table of what is kept."""
    seeds = set(map(int, sys.argv[1:]))
    print(table([found for found in kept() if not seeds or found.seed in seeds]))


if __name__ == "__main__":
    main()
