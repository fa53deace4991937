"""Which alerts a key or token may see: those about rows that it may see; those of the operator, for the operator alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.clickhouse.alerts import NOBODY
from query.bad_question import BadQuestion
from query.row_scope import ALL_ROWS, RowScope


@dataclass(frozen=True)
class AlertScope:
    """Alerts about `rows`; with `operator`, also those of advertiser 0, which are the operator's."""

    rows: RowScope
    operator: bool = False

    @staticmethod
    def of(rows: RowScope, *, admin: bool) -> AlertScope:
        """The scope of a key: an admin key that sees all rows is the operator's."""
        return AlertScope(rows, admin and rows == ALL_ROWS)

    @property
    def parts(self) -> list[Any]:
        """The same list for equal scopes, for digests."""
        return [*self.rows.parts, self.operator]

    def sees(self, advertiser: int, campaign: int) -> bool:
        """Whether an alert about this campaign of this advertiser may be seen. One about a whole advertiser needs all of its campaigns."""
        if advertiser == NOBODY:
            return self.operator
        if self.rows.campaigns is not None and campaign == NOBODY:
            return False
        return self.rows.sees(advertiser, campaign)

    def refuse_foreign(self, advertiser: int | None, campaigns: tuple[int, ...] = ()) -> None:
        """Raise BadQuestion (403) for an advertiser or campaign that is named and may not be seen."""
        if advertiser == NOBODY and not self.operator:
            raise BadQuestion(
                "advertiser_id", "alerts of advertiser 0 are the operator's: use an admin key that sees all advertisers", 403, "forbidden"
            )  # fmt: skip
        self.rows.refuse_foreign(advertiser, campaigns)

    def conditions(self) -> tuple[list[str], dict[str, Any]]:
        """SQL conditions on rows of alerts, which say the same as `sees`, and their parameters."""
        conditions, parameters = list[str](), dict[str, Any]()
        if not self.operator:
            conditions.append(f"advertiser_id != {NOBODY}")
        if self.rows.advertisers is not None:
            conditions.append("advertiser_id IN {visible_advertisers:Array(UInt64)}")
            parameters["visible_advertisers"] = sorted(self.rows.advertisers)
        if self.rows.campaigns is not None:
            conditions.append(f"campaign_id IN {{visible_campaigns:Array(UInt64)}} AND campaign_id != {NOBODY}")
            parameters["visible_campaigns"] = sorted(self.rows.campaigns)
        return conditions, parameters


WHOLE_INSTALLATION = AlertScope(ALL_ROWS, operator=True)
"""All alerts: what the command line sees."""
