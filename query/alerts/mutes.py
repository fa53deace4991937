"""Mutes: alerts of a kind, or of all kinds, of an advertiser or of one campaign of it, that are left out of lists, and not
sent to webhooks, for a while. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from infra.clickhouse.alerts import NOBODY, Alert
from infra.clock import DAY_MS, iso
from infra.structs import decodable
from query.alerts.questions import parse_kind
from query.alerts.records import AlertVersion
from query.alerts.scope import AlertScope
from query.bad_question import BadQuestion
from query.times import parse_time
from query.token_purchase import Id

LONGEST_MS = 90 * DAY_MS
MOST_MUTES = 1_000
"""Of an advertiser, at once."""
_Text = Annotated[str, msgspec.Meta(max_length=100)]


@decodable
class MuteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to mute. `kind` null: all kinds. `campaign_id` null: all campaigns of the advertiser, and what is about none of them."""

    advertiser_id: Id
    until: _Text
    kind: _Text | None = None
    campaign_id: Id | None = None


@dataclass(frozen=True)
class MuteSubject:
    """Which alerts are muted. `kind` empty: all kinds. `campaign` None: all campaigns of the advertiser."""

    kind: str
    advertiser: int
    campaign: int | None

    @property
    def id(self) -> str:
        """The same for the same subject: muting it again replaces the mute."""
        campaign = "all" if self.campaign is None else self.campaign
        return f"mu_{hashlib.sha256(f'{self.kind}/{self.advertiser}/{campaign}'.encode()).hexdigest()[:20]}"

    def refuse_foreign(self, scope: AlertScope) -> None:
        """Raise BadQuestion (403) where a key may not see all of these alerts."""
        scope.refuse_foreign(self.advertiser, () if self.campaign is None else (self.campaign,))
        if self.campaign is None and self.advertiser != NOBODY:
            scope.rows.refuse_part_of(self.advertiser)


@dataclass(frozen=True)
class Mute:
    """A mute as it is stored: who has set it, and when."""

    subject: MuteSubject
    until_ms: int
    actor: str
    at_ms: int
    version: int

    def document(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        subject = self.subject
        return {
            "id": subject.id, "kind": subject.kind or None, "advertiser_id": subject.advertiser, "campaign_id": subject.campaign,
            "until": iso(self.until_ms), "by": self.actor, "at": iso(self.at_ms),
        }  # fmt: skip

    def visible_in(self, scope: AlertScope) -> bool:
        """Whether a key may see it: it mutes alerts that the key may see."""
        if self.subject.advertiser == NOBODY:
            return scope.operator
        campaigns, campaign = scope.rows.campaigns, self.subject.campaign
        own = campaign is None or campaigns is None or campaign in campaigns
        return own and scope.rows.sees_advertiser(self.subject.advertiser)


class ActiveMutes:
    """The mutes of a moment, by subject."""

    def __init__(self, mutes: Iterable[Mute]) -> None:
        self._until_ms = {mute.subject: mute.until_ms for mute in mutes}

    def until_ms(self, alert: AlertVersion | Alert) -> int | None:
        """Until when an alert is muted, by whichever mute lasts longest; None where it is not."""
        subjects = (
            MuteSubject(kind, alert.advertiser_id, campaign)
            for kind in ("", alert.kind)
            for campaign in (None, alert.campaign_id)
        )
        return max((self._until_ms[subject] for subject in subjects if subject in self._until_ms), default=None)


def parse_mute(request: MuteRequest, now_ms: int, scope: AlertScope) -> tuple[MuteSubject, int]:
    """What is to be muted, and until when (epoch ms). Raises BadQuestion; 403 for what the key may not see."""
    subject = MuteSubject(
        parse_kind(request.kind) if request.kind is not None else "", request.advertiser_id, request.campaign_id
    )
    subject.refuse_foreign(scope)
    until_ms = parse_time("until", {"until": request.until}, now_ms)
    check_until(until_ms, now_ms)
    return subject, until_ms


def check_until(until_ms: int, now_ms: int) -> None:
    """Raise BadQuestion where a mute would end in the past, or last too long."""
    if until_ms <= now_ms:
        raise BadQuestion("until", f"until must be in the future, not {iso(until_ms)}")
    if until_ms > now_ms + LONGEST_MS:
        days = LONGEST_MS // DAY_MS
        latest = iso((now_ms + LONGEST_MS) // 1000 * 1000)
        raise BadQuestion("until", f"a mute lasts {days} days at most; give {latest} or earlier", 422, "lasts-too-long")
