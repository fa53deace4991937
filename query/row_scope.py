"""Which rows a key or token may see: the same check for numbers, changes, ledgers, streams and everything that names a campaign. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from query.bad_question import BadQuestion


@dataclass(frozen=True)
class RowScope:
    """Rows of these advertisers and of these campaigns; None: of all. A row must be of both: advertisers may share a campaign id.

    Whatever depends on the rows of a question depends on this: cached replies, cursors and digests have it in their key."""

    advertisers: frozenset[int] | None = None
    campaigns: frozenset[int] | None = None

    @staticmethod
    def of(advertisers: Iterable[int] | None, campaigns: Iterable[int] | None) -> RowScope:
        """The scope of these ids; None: of all."""
        return RowScope(*(None if ids is None else frozenset(ids) for ids in (advertisers, campaigns)))

    @property
    def parts(self) -> list[list[int] | None]:
        """The same list for equal scopes, for digests and keys of caches."""
        return [None if ids is None else sorted(ids) for ids in (self.advertisers, self.campaigns)]

    def sees(self, advertiser: int, campaign: int) -> bool:
        """Whether rows of this campaign of this advertiser may be seen."""
        return self.sees_advertiser(advertiser) and (self.campaigns is None or campaign in self.campaigns)

    def sees_advertiser(self, advertiser: int) -> bool:
        """Whether any row of the advertiser may be seen, of whichever campaign."""
        return self.advertisers is None or advertiser in self.advertisers

    def refuse_foreign(self, advertiser: int | None, campaigns: Iterable[int] = ()) -> None:
        """Raise BadQuestion (403) for an advertiser or a campaign that is named and may not be seen. Campaigns of other advertisers
        pass: who owns a campaign is known by its rows alone, and these are filtered."""
        if advertiser is not None and not self.sees_advertiser(advertiser):
            raise BadQuestion("advertiser_id", f"this key may not see advertiser {advertiser}", 403, "forbidden")
        foreign = [campaign for campaign in campaigns if self.campaigns is not None and campaign not in self.campaigns]
        if foreign:
            raise BadQuestion("campaign_id", f"this key may not see campaign {foreign[0]}", 403, "forbidden")

    def refuse_part_of(self, advertiser: int) -> None:
        """Raise BadQuestion (403) where not all of an advertiser's rows may be seen: for a bill, which is of all its campaigns."""
        self.refuse_foreign(advertiser)
        if self.campaigns is not None:
            raise BadQuestion(
                "advertiser_id", f"this key may see only some campaigns of advertiser {advertiser}; use one for all of them",
                403, "forbidden",
            )  # fmt: skip

    def within(self, other: RowScope) -> RowScope:
        """The rows that both allow."""
        return RowScope(
            _intersection(self.advertisers, other.advertisers), _intersection(self.campaigns, other.campaigns)
        )


def _intersection(one: frozenset[int] | None, other: frozenset[int] | None) -> frozenset[int] | None:
    return one if other is None else other if one is None else one & other


ALL_ROWS = RowScope()
