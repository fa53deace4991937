"""The clock of the HTTP interface, which a test may set forward."""

from __future__ import annotations

import time

from infra.clock import now_ms
from query.keyring import REFRESH_S


class Clock:
    """What `create_app` takes as its clocks."""

    ahead_ms = 0

    def now(self) -> int:
        return now_ms() + self.ahead_ms

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_ms / 1000

    def pass_refresh(self) -> None:
        """Until routers have read the keys again."""
        self.ahead_ms += int(REFRESH_S * 1000) + 100
