"""`python -m stream.warm_up`: compile what is compiled, of ingest and stream, before the first worker would wait for it."""

from __future__ import annotations

import numpy as np

from infra.clock import HOUR_MS
from ingest import warm_up
from stream.reach.additions import Additions
from stream.reach.registers import coupons_of


def main() -> None:
    """One event through every compiled function."""
    warm_up.main()
    numbers = np.ones(1, np.int64)
    Additions(HOUR_MS).add(numbers, numbers, numbers, coupons_of(numbers))


if __name__ == "__main__":
    main()
