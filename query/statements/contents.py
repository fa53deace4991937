"""What a statement says, and how it is written. Pure.

The CSV is the canonical form: a statement's digest is the SHA-256 of its bytes, so that anybody who has the file can check it.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import msgspec

from infra.structs import decodable
from ingest.partials import BILLED

ZONE = "UTC"
"""Bills consist of days of UTC (decision 0041)."""
_COLUMNS = ("line", "date", "campaign_id", "name", *BILLED, "finality", "run_id")
Amounts = dict[str, int]


@decodable
class BilledDay(msgspec.Struct, frozen=True):
    """A day of the month. `run_id` is empty where no run has counted it."""

    date: dt.date
    amounts: list[int]
    """In the order of BILLED."""
    finality: str
    run_id: str


@decodable
class BilledCampaign(msgspec.Struct, frozen=True):
    """A campaign's sums of the month, and its name when the statement was written."""

    id: int
    name: str
    amounts: list[int]


@decodable
class Contents(msgspec.Struct, frozen=True, dict=True):
    """Whose statement, of which month, and its numbers."""

    advertiser_id: int
    name: str
    month: dt.date
    currency: str
    days: list[BilledDay]
    campaigns: list[BilledCampaign]

    @property
    def total(self) -> list[int]:
        """The sums of all days, which are those of all campaigns."""
        return [sum(column) for column in zip(*(day.amounts for day in self.days), strict=True)]

    @cached_property
    def csv(self) -> bytes:
        """A line for each day, for each campaign, and for the total."""
        text = io.StringIO()
        writer = csv.writer(text)  # lines end as RFC 4180 has it; so a name with either character is quoted
        writer.writerow(_COLUMNS)
        for day in self.days:
            writer.writerow(["day", day.date, "", "", *day.amounts, day.finality, day.run_id])
        for campaign in self.campaigns:
            writer.writerow(["campaign", "", campaign.id, campaign.name, *campaign.amounts, "", ""])
        writer.writerow(["total", "", "", self.name, *self.total, "", ""])
        return text.getvalue().encode()

    @property
    def digest(self) -> str:
        """The SHA-256 of the CSV."""
        return hashlib.sha256(self.csv).hexdigest()

    def has_numbers_of(self, other: Contents) -> bool:
        """Whether it bills the same, whichever runs have counted it, and whatever campaigns are called."""
        return _by_date(self) == _by_date(other) and _by_campaign(self) == _by_campaign(other)

    def document(self) -> dict[str, Any]:
        """Its part of the JSON document."""
        return {
            "advertiser_id": self.advertiser_id,
            "name": self.name,
            "month": month_text(self.month),
            "timezone": ZONE,
            "currency": self.currency,
            "digest": self.digest,
            "days": [
                {"date": day.date.isoformat()} | amounts(day.amounts) | {"finality": day.finality, "run_id": day.run_id or None}
                for day in self.days
            ],
            "campaigns": [{"id": c.id, "name": c.name} | amounts(c.amounts) for c in self.campaigns],
            "total": amounts(self.total),
        }  # fmt: skip


def make_contents(
    advertiser: int, name: str, month: dt.date, currency: str, days: Iterable[tuple[dt.date, str, str]],
    cells: Iterable[tuple[dt.date, int, list[int]]], names: Mapping[int, str],
) -> Contents:  # fmt: skip
    """A statement from its days (date, finality, run) and the cells of its days and campaigns. Names that are missing are digits."""
    by_date: dict[dt.date, list[int]] = {}
    by_campaign: dict[int, list[int]] = {}
    for date, campaign, values in cells:
        for sums, key in ((by_date, date), (by_campaign, campaign)):
            _add(sums, key, values)
    nothing = [0] * len(BILLED)
    return Contents(
        advertiser, name, month, currency,
        [BilledDay(date, by_date.get(date, nothing), finality, run_id) for date, finality, run_id in days],
        [BilledCampaign(id_, names.get(id_, str(id_)), values) for id_, values in sorted(by_campaign.items())],
    )  # fmt: skip


def differences(former: Contents, present: Contents) -> list[dict[str, Any]]:
    """The days, then the campaigns, whose numbers differ, with those of both."""
    names = {campaign.id: campaign.name for campaign in (*former.campaigns, *present.campaigns)}
    days = _changes(_by_date(former), _by_date(present))
    campaigns = _changes(_by_campaign(former), _by_campaign(present))
    return [
        *({"date": date.isoformat()} | change for date, change in days),
        *({"campaign_id": id_, "name": names[id_]} | change for id_, change in campaigns),
    ]


def amounts(values: list[int]) -> Amounts:
    """By measure."""
    return dict(zip(BILLED, values, strict=True))


def month_text(month: dt.date) -> str:
    """As `2026-11`."""
    return f"{month:%Y-%m}"


def days_of(month: dt.date) -> list[dt.date]:
    """All days of a month that is named by its first one."""
    following = (month + dt.timedelta(days=31)).replace(day=1)
    return [month + dt.timedelta(days=n) for n in range((following - month).days)]


def _add(sums: dict[Any, list[int]], key: Any, values: list[int]) -> None:
    before = sums.get(key)
    sums[key] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]


def _by_date(contents: Contents) -> dict[dt.date, list[int]]:
    return {day.date: day.amounts for day in contents.days if any(day.amounts)}


def _by_campaign(contents: Contents) -> dict[int, list[int]]:
    return {campaign.id: campaign.amounts for campaign in contents.campaigns if any(campaign.amounts)}


def _changes(former: dict[Any, list[int]], present: dict[Any, list[int]]) -> list[tuple[Any, dict[str, Amounts]]]:
    nothing = [0] * len(BILLED)
    pairs = [(key, former.get(key, nothing), present.get(key, nothing)) for key in sorted({*former, *present})]
    return [(key, {"from": amounts(a), "to": amounts(b)}) for key, a, b in pairs if a != b]
