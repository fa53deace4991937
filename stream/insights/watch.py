"""Watches the numbers of campaigns, bucket by bucket in the order of time, and says what is unusual. Pure.

Each campaign of an advertiser is a series for the detector in three ways: its impressions, its spend and its click rate. Campaigns are
added when they are first seen, and forgotten when they have had no event for long.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from infra.columnar.columns import Ints
from stream.insights import rules
from stream.insights.detector import DetectorBank
from stream.insights.lumps import LumpSizes
from stream.insights.rules import Finding, Judged

Key = tuple[int, int]
"""A campaign, and the advertiser that its events name."""


class Watch:
    """The series of many campaigns."""

    def __init__(self, learned: int) -> None:
        """`learned`: buckets of a campaign before which nothing is said of it."""
        self._learned = learned
        self._rows: dict[Key, int] = {}
        self._keys = np.zeros((0, 2), np.int64)
        self._known = np.zeros(0, np.int64)
        """How many buckets of each campaign were taken; 0 before its first event."""
        self._seen_ms = np.zeros(0, np.int64)
        """The last bucket in which it had any event."""
        self._counts, self._spend, self._rates = (DetectorBank(0, counts=kind) for kind in (True, True, False))
        self._lumps = LumpSizes()
        self.expecting = 0
        """How many campaigns were to have enough impressions in the last bucket for none to be unusual."""

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, campaigns: Ints, advertisers: Ints, worthwhile: Any = None) -> Ints:
        """The row of each, which is made where it is new; -1 for one that is new and not `worthwhile`. Rows are numbered as campaigns
        come."""
        keys = list(zip(campaigns.tolist(), advertisers.tolist(), strict=True))
        candidates = keys if worthwhile is None else [keys[n] for n in np.flatnonzero(worthwhile).tolist()]
        new = [key for key in dict.fromkeys(candidates) if key not in self._rows]
        if new:
            size = len(self._rows) + len(new)
            self._rows |= zip(new, range(len(self._rows), size), strict=True)
            self._keys = np.vstack([self._keys, np.array(new, np.int64)])
            self._known, self._seen_ms = (_longer(column, size) for column in (self._known, self._seen_ms))
            self._lumps.grow(size)
            for bank in self._banks:
                bank.grow(size)
        return self._places(keys)

    def _places(self, keys: Sequence[Key]) -> Ints:
        """The row of each; -1 for one that has none."""
        return np.array([self._rows.get(key, -1) for key in keys], np.int64)

    def take(self, at_ms: int, impressions: Any, clicks: Any, spend: Any) -> Iterator[tuple[Key, Finding]]:
        """The next bucket: a value for each row; what is not known is NaN. Returns what is unusual in it.

        Of a campaign without any event so far nothing is known, not even that it has none.
        """
        active = (impressions > 0) | (clicks > 0) | (spend > 0)
        self._seen_ms[active] = at_ms
        self._known += (self._known > 0) | active
        started = self._known > 0
        impressions, clicks, spend = (np.where(started, column, np.nan) for column in (impressions, clicks, spend))
        rows, times = np.arange(len(self._known)), np.full(len(self._known), at_ms)
        ranges = [bank.usual_range(at_ms) for bank in (self._counts, self._spend)]
        by_count = self._counts.update(rows, times, impressions, np.sqrt(np.maximum(impressions, 1)))[:2]
        of_counts = Judged(*by_count, *ranges[0])
        # The detector judges the mean of two values, of which one has this deviation, and the other one usually none to speak of.
        by_chance = self._lumps.update(spend, clicks, impressions) / 2.0
        of_spend = Judged(*self._spend.update(rows, times, spend, by_chance)[:2], *ranges[1])
        rate, noise = rules.click_rates(impressions, clicks)
        of_rates = Judged(*self._rates.update(rows, times, rate, noise)[:2])
        learned = self._known > self._learned
        self.expecting = int((learned & of_counts.expects_impressions).sum())
        unusual = rules.unusual_rows(impressions, spend, rate, of_counts, of_spend, of_rates)
        return self._findings(learned, unusual, np.nan_to_num(of_rates.expected))

    def _findings(self, learned: Any, unusual: Any, click_rates: Any) -> Iterator[tuple[Key, Finding]]:
        for kind, measure, holds, judged, values in unusual:
            for row in np.flatnonzero(holds & learned).tolist():
                numbers = (float(c[row]) for c in (judged.deviations, values, judged.expected, click_rates))
                yield self.key_of(row), Finding(kind, measure, *numbers)

    def judge(
        self, keys: Sequence[Key], at_ms: int, impressions: Any, clicks: Any, spend: Any
    ) -> list[tuple[Key, Finding]]:
        """What is unusual in numbers of some campaigns that were taken otherwise before, by what is usual now. Nothing is learned from them."""
        places = self._places(keys)
        known = places >= 0
        return list(self._part(places[known]).take(at_ms, *(column[known] for column in (impressions, clicks, spend))))

    def _part(self, rows: Ints) -> Watch:
        """Some campaigns alone, as they are now."""
        part = Watch(self._learned)
        part._keys, part._known, part._seen_ms = self._keys[rows], self._known[rows], self._seen_ms[rows]
        part._lumps.restore(self._lumps.numbers[rows])
        for of_part, bank in zip(part._banks, self._banks, strict=True):
            of_part.restore({name: array[rows] for name, array in bank.arrays().items()})
        return part

    def key_of(self, row: int) -> Key:
        """The campaign of a row."""
        campaign, advertiser = self._keys[row].tolist()
        return campaign, advertiser

    def forget(self, before_ms: int, *, unlearned_before_ms: int = 0, most: int | None = None) -> None:
        """Drop the campaigns that have had no event since a moment, another one for those of which nothing is said yet; and of the others all
        but the `most` that had one last."""
        before = np.where(self._known > self._learned, before_ms, max(before_ms, unlearned_before_ms))
        kept = np.flatnonzero(self._seen_ms >= before)
        if most is not None and len(kept) > most:
            kept = np.sort(kept[np.argsort(self._seen_ms[kept], kind="stable")[-most:]])
        if len(kept) < len(self._rows):
            self._keys, self._known, self._seen_ms = self._keys[kept], self._known[kept], self._seen_ms[kept]
            self._lumps.keep(kept)
            for bank in self._banks:
                bank.keep(kept)
            self._rows = {(c, a): row for row, (c, a) in enumerate(self._keys.tolist())}

    def encode(self) -> bytes:
        """All that is known, to be gone on with."""
        into = io.BytesIO()
        banks = {f"{n}_{part}": array for n, bank in enumerate(self._banks) for part, array in bank.arrays().items()}
        np.savez_compressed(
            into, keys=self._keys, known=self._known, seen_ms=self._seen_ms, lumps=self._lumps.numbers, **banks
        )
        return into.getvalue()

    def decode(self, state: bytes) -> None:
        """Go on with what `encode` gave. Raises ValueError for anything else."""
        try:
            with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
                self._keys, self._known, self._seen_ms = arrays["keys"], arrays["known"], arrays["seen_ms"]
                self._lumps.restore(arrays["lumps"])
                for number, bank in enumerate(self._banks):
                    bank.restore({part: arrays[f"{number}_{part}"] for part in ("numbers", "profiles")})
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"not the state of a watch: {error}") from error
        self._rows = {(c, a): row for row, (c, a) in enumerate(self._keys.tolist())}

    @property
    def _banks(self) -> tuple[DetectorBank, ...]:
        return self._counts, self._spend, self._rates


def _longer(column: Ints, size: int) -> Ints:
    return np.concatenate([column, np.zeros(size - len(column), np.int64)])
