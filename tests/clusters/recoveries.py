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


def keep(new: Recovery, file: Path = KEPT) -> None:
    """Add a recovery to those of former campaigns."""
    file.parent.mkdir(exist_ok=True)
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(new) + b"\n")


def kept(file: Path = KEPT) -> list[Recovery]:
    """All that were kept."""
    return [msgspec.json.decode(line, type=Recovery) for line in file.read_bytes().splitlines()]


def table(recoveries: Sequence[Recovery]) -> str:
    """A row of Markdown for each kind of strike, and one for all."""
    by_strike = defaultdict[str, list[Recovery]](list)
    for one in recoveries:
        by_strike[one.strike].append(one)
    rows = [*sorted(by_strike.items()), *([("all", list(recoveries))] if len(by_strike) > 1 else [])]
    return "\n".join([HEADER, *(_row(strike, of_strike) for strike, of_strike in rows)])


def _row(strike: str, recoveries: Sequence[Recovery]) -> str:
    seconds = [math.inf if r.fresh_after_s is None else r.fresh_after_s for r in recoveries]
    loads = [r.load for r in recoveries]
    load = f"{min(loads):.0f} to {max(loads):.0f}"
    return f"| {strike} | {len(recoveries)} | {median(seconds):.1f} | {max(seconds):.1f} | {load} |"


def main() -> None:
    """Print the table of what is kept."""
    seeds = set(map(int, sys.argv[1:]))
    print(table([recovery for recovery in kept() if not seeds or recovery.seed in seeds]))


if __name__ == "__main__":
    main()
