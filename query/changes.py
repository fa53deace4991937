"""Which closed cells have changed between two moments, from what to what and why, so that a client that stores numbers can mend them.

A moment is a cut: of each shard the newest flush whose cells are all in ClickHouse, and the runs that are published. What a cell is
at a cut never changes afterwards, so a feed that begins where the last one ended repeats nothing and leaves nothing out, and pages
are of one state. Parsing is pure; `ChangesReader` in `query/changed_cells.py` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from infra.clock import DAY_MS
from infra.structs import decodable
from query.bad_question import BadQuestion
from query.cursor import FOREIGN_CURSOR, read_page
from query.parameters import collect_parameters, parse_limit, parse_visible_subject
from query.row_scope import RowScope
from query.signing import Signer
from query.times import parse_time

PARAMETERS = ("campaign_id", "advertiser_id", "since", "granularity", "limit", "cursor")
TIERS = {"hour": "hours", "day": "days"}
"""Where closed cells of a granularity are."""
_LONGEST_MS = 31 * DAY_MS
_KIND, _AS_OF = "changes", "as-of"


@decodable
class Cut(msgspec.Struct, frozen=True, array_like=True):
    """A state of the stored numbers: tier → shard → the newest flush in it; and when the newest run in it was published, and about
    when it was (epoch ms)."""

    flushes: dict[str, list[int]]
    published_ms: int
    at_ms: int


@dataclass(frozen=True)
class ChangesQuestion:
    """Which cells have changed since a moment."""

    campaigns: tuple[int, ...]
    advertiser: int | None
    scope: RowScope
    """The rows that may be seen."""
    since_ms: int
    """The moment, where `since` is a time."""
    since: Cut | None
    """The cut, where it is the `as_of` of an answer, or of the first page."""
    until: Cut | None
    """On later pages, the cut of the first page."""
    grain: str
    limit: int
    since_text: str
    """`since` as the client wrote it."""
    after: tuple[int, int, int] | None
    """(changed at, bucket, campaign) of the last row of the page before."""

    @property
    def digest(self) -> str:
        """A digest of all that the rows depend on, but the cuts."""
        parts = [self.campaigns, self.advertiser, self.scope.parts, self.since_text, self.grain]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]

    def cursor(self, since: Cut, until: Cut, last: Sequence[int], signer: Signer) -> str:
        """The cursor of the page behind a row: it keeps both cuts of the first page."""
        cuts = msgspec.to_builtins((since, until))
        return signer.sign({"of": _KIND, "q": self.digest, "k": list(last), "c": cuts, "s": self.since_ms})


def sign_cut(cut: Cut, signer: Signer) -> str:
    """A cut as clients have it, for the next `since`."""
    return signer.sign({"of": _AS_OF, "c": msgspec.to_builtins(cut)})


def parse_changes_question(
    parameters: Sequence[tuple[str, str]], now_ms: int, scope: RowScope, signer: Signer
) -> ChangesQuestion:
    """Raises BadQuestion."""
    values, _ = collect_parameters(parameters, PARAMETERS)
    campaigns, advertiser = parse_visible_subject(values, scope)
    grain = values.get("granularity", "hour")
    if grain not in TIERS:
        raise BadQuestion("granularity", f"granularity must be hour or day, not {grain[:40]!r}")
    text = values.get("since", "")
    since = _read_cut(text, signer)
    previous = read_page(values["cursor"], _KIND, signer) if "cursor" in values else None
    if previous is not None:
        since_ms = int(previous["s"])
    else:
        since_ms = since.at_ms if since is not None else parse_time("since", values, now_ms)
    if since_ms < now_ms - _LONGEST_MS:
        raise BadQuestion("since", "changes are kept for 31 days; read the numbers again", 422, "not-held")
    question = ChangesQuestion(
        campaigns, advertiser, scope, since_ms, since, None, grain, parse_limit(values), text, None
    )
    if previous is None:
        return question
    if previous["q"] != question.digest:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    first, until = msgspec.convert(previous["c"], tuple[Cut, Cut])
    return ChangesQuestion(
        campaigns, advertiser, scope, since_ms, first, until, grain, question.limit, text, tuple(previous["k"])
    )


def _read_cut(text: str, signer: Signer) -> Cut | None:
    """The cut of an `as_of`; None for other texts."""
    payload = signer.read(text)
    return msgspec.convert(payload["c"], Cut) if payload is not None and payload.get("of") == _AS_OF else None
