"""Clicks of the reconciled day that were rejected when they came, and sent again once mended: its bill lacks them until it is restated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from infra.clock import DAY_MS, HOUR_MS, iso
from query.client import Client
from tests.product import Product, wait_until
from tests.recovery.scene import Scene, must

_CLICKS, _COST = 50, 1_000
_MEASURES = ("impressions", "clicks", "conversions", "spend_micros")


@dataclass(frozen=True)
class LateClicks:
    """So many clicks of one campaign, at noon of the day."""

    scene: Scene
    campaign: int
    advertiser: int
    lines: tuple[bytes, ...]

    @classmethod
    def of(cls, scene: Scene) -> LateClicks:
        """Clicks like one of the day that was counted, under ids of their own and with a country that there is not."""
        for line in scene.events.lines.to_list():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event_type") == "click" and isinstance(event.get("campaign_id"), int):
                break
        noon = {"event_time": scene.day_ms + 12 * HOUR_MS, "country": "Q9", "cost_micros": _COST}
        lines = tuple(json.dumps(event | noon | {"event_id": f"rejected-{n}"}).encode() for n in range(_CLICKS))
        return cls(scene, event["campaign_id"], event["advertiser_id"], lines)

    @property
    def expected(self) -> dict[str, int]:
        """What they add to a bill."""
        return dict(zip(_MEASURES, (0, _CLICKS, 0, _CLICKS * _COST), strict=True))

    def reject(self, product: Product) -> None:
        """Send them as they are: they become dead letters."""
        file = self.scene.work / "rejected.ndjson"
        file.write_bytes(b"\n".join(self.lines) + b"\n")
        must(product, "replay", str(file))
        wait_until(product.caught_up, 60, "the rejected clicks are read")

    def mend(self, product: Product) -> None:
        """Send them again with a country; they are too late for the stream by now."""
        must(product, "dead-letters", "replay", "--field", "country", "--edit", "country=ZZ")
        wait_until(product.caught_up, 60, "the mended clicks are read")

    def read_day(self, product: Product) -> dict[str, int]:
        """What the router answers for the campaign's day."""
        row = self._day(product, [("campaign_id", str(self.campaign))])
        return {measure: row[measure] for measure in _MEASURES}

    def read_others(self, product: Product) -> dict[str, int]:
        """The day of all campaigns but this one."""
        campaigns = ",".join(str(c) for c in product.oracle.campaigns() if c != self.campaign)
        row = self._day(product, [("campaign_id", campaigns)])
        return {measure: row[measure] for measure in _MEASURES}

    def _day(self, product: Product, subject: list[tuple[str, str]]) -> dict[str, Any]:
        start_ms = self.scene.day_ms
        when = [("start", iso(start_ms)), ("end", iso(start_ms + DAY_MS)), ("granularity", "day")]
        (row,) = Client(product.settings).get("/v1/metrics", [*subject, *when])["data"]
        return dict(row)


def added(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """By how much numbers have grown."""
    return {measure: after[measure] - before[measure] for measure in before}
