"""What statements are made from, beside the rows of runs: a router's answers, names, and the lease under which they are issued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from infra.clock import iso
from infra.redis.client import Redis
from infra.settings import Settings
from query.question import Question, parse_question
from query.router import Answer, Router
from query.row_scope import RowScope
from query.statements.reader import StatementNames

_LEASE_S = 10


class RouterSources:
    """Thread-safe."""

    def __init__(self, router: Router, settings: Settings, now: Callable[[], int]) -> None:
        self._router, self._now = router, now
        self._redis, self._lease = Redis(settings.redis_access, timeout_s=1.0), f"{settings.key_prefix}statements"

    def ask(self, advertiser: int, start_ms: int, end_ms: int, granularity: str, group_by: str) -> Question:
        """As a client would ask it."""
        parameters = {
            "advertiser_id": f"{advertiser}",
            "start": iso(start_ms),
            "end": iso(end_ms),
            "granularity": granularity,
        }
        parameters |= {"group_by": group_by} if group_by else {}
        return parse_question(list(parameters.items()), self._now(), self._router.retention)

    def answer(self, question: Question) -> Answer:
        """The router's."""
        return self._router.answer(question)

    def names(self, advertiser: int, campaigns: Sequence[int]) -> StatementNames:
        """As the directory has them, and within what the advertiser may see; digits where it has none."""
        snapshot, scope = self._router.directory.current().snapshot, RowScope(frozenset({advertiser}))
        of_campaigns = snapshot.names("campaign", np.array(campaigns, np.int64), scope)
        (own,) = snapshot.names("advertiser", np.array([advertiser], np.int64), scope)
        return StatementNames(own, dict(zip(campaigns, of_campaigns, strict=True)))

    def lease(self) -> AbstractContextManager[int]:
        """In Redis; it expires by itself where its holder dies."""
        return self._redis.lease(self._lease, _LEASE_S, "another router is issuing statements")
