"""An export has all rows of a question, in its order, and never many of them in memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import cramjam
import numpy as np
import polars as pl
import pytest

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query import export_stretches, formats, sums, warnings
from query.api import exports
from query.api.edge import Broken
from query.page import cut_page
from query.plan import Borders
from query.question import MEASURES, Question, Retention, parse_question
from query.reading import DegradedRange
from query.router import Answer
from query.rows import build_rows
from query.signing import Signer
from query.sums import Sums

NOW = 1_795_181_895_182  # 2026-11-20T13:38:15.182Z
START = NOW // DAY_MS * DAY_MS - 10 * DAY_MS
LIMITS = export_stretches.ExportLimits(page_rows=100, stretch_rows=1_000)


def ask(**parameters: str) -> Question:
    base = {
        "campaign_id": "7",
        "start": iso(START),
        "end": iso(START + DAY_MS),
        "granularity": "hour",
        "group_by": "ad_id",
    }
    return parse_question(list((base | parameters).items()), NOW, Retention(DAY_MS, 30 * DAY_MS))


@dataclass
class Stores:
    """Answers like a router: each hour has a row of each of `ads` ads."""

    ads: int
    warnings: list[str] = field(default_factory=list)
    degraded: list[DegradedRange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asked: list[Question] = field(default_factory=list)
    most_rows: int = 0

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question)
        hours = np.arange(-(-question.start_ms // HOUR_MS), -(-question.end_ms // HOUR_MS)) * HOUR_MS
        buckets = np.repeat([question.bucket(hour) for hour in hours.tolist()], self.ads)
        ads = np.tile(np.arange(self.ads), len(hours))
        clicks, flags = ads + np.repeat(hours // HOUR_MS % 100, self.ads), np.zeros(len(ads), bool)
        table = sums.sum_equal_keys(Sums(buckets, (ads,), (clicks,) * len(MEASURES), flags, flags))
        rows = build_rows(question, table, Borders(watermark_ms=NOW), [])
        self.most_rows = max(self.most_rows, len(rows))
        page, cursor = cut_page(question, rows, Signer("secret"))
        return Answer(
            question, page, cursor, "closed", NOW, [], len(rows), list(self.warnings), True, 1.0, 1.0,
            list(self.degraded), list(self.notes),
        )  # fmt: skip

    def warn(self, *caveats: str | DegradedRange, notes: tuple[str, ...] = ()) -> Stores:
        """Answer with these warnings from now on."""
        self.degraded = [caveat for caveat in caveats if isinstance(caveat, DegradedRange)]
        texts = [caveat if isinstance(caveat, str) else caveat.warning for caveat in caveats]
        self.warnings, self.notes = [*texts, *notes], list(notes)
        return self


def exported(question: Question, stores: Stores, name: str) -> bytes:
    begun = export_stretches.begin_export(question, stores, LIMITS)
    encoder = formats.STREAMED[name].encoder()
    answers = [begun.first, *map(stores, begun.rest)]
    pages = [page for stretch in answers for page in begun.split_pages(stretch)]
    assert all(len(page.page) <= LIMITS.page_rows for page in pages)
    return b"".join([*map(encoder.page, pages), encoder.end()])


@pytest.mark.parametrize(
    ("parameters", "stretches"),
    [
        ({}, 8),
        ({"order": "-time"}, 8),
        ({"order": "-clicks"}, 1),
        ({"granularity": "total"}, 1),
        ({"granularity": "day", "timezone": "Europe/Berlin", "end": iso(START + 9 * DAY_MS)}, 4),
        ({"granularity": "day", "timezone": "Asia/Kolkata", "end": iso(START + 9 * DAY_MS)}, 4),
        ({"filter": "ad_id:1,2", "fill": "zero"}, 1),
        ({"filter": "ad_id:1,2"}, 1),
    ],
    ids=str,
)
def test_all_rows_are_exported_in_the_order_of_the_question(parameters: dict[str, str], stretches: int) -> None:
    question = ask(**parameters)
    whole = Stores(300)(replace(question, limit=1 << 62))
    stores = Stores(300)
    assert pl.read_csv(io.BytesIO(exported(question, stores, "csv"))).equals(
        pl.read_csv(whole.page.shown.write_csv().encode())
    )
    # One more surveyed the range, where there are several.
    assert len(stores.asked) == stretches + (stretches > 1)
    if stretches > 1:
        assert stores.most_rows <= LIMITS.stretch_rows


@pytest.mark.parametrize("name", ["csv", "ndjson", "arrow"])
def test_each_format_is_one_document_however_many_pages_it_has(name: str) -> None:
    raw = exported(ask(end=iso(START + 6 * HOUR_MS)), Stores(300), name)
    frame = {"csv": pl.read_csv, "ndjson": pl.read_ndjson, "arrow": pl.read_ipc_stream}[name](io.BytesIO(raw))  # type: ignore[operator]
    expected = [ad + (START // HOUR_MS + hour) % 100 for hour in range(6) for ad in range(300)]
    assert frame["clicks"].to_list() == expected


def test_a_range_is_surveyed_only_if_the_question_does_not_bound_its_groups() -> None:
    bounded, unbounded = Stores(3), Stores(3)
    assert export_stretches.begin_export(ask(filter="ad_id:0,1,2"), bounded, LIMITS).fits_a_page
    assert export_stretches.begin_export(ask(), unbounded, LIMITS).fits_a_page
    assert [question.grain for question in bounded.asked] == ["hour"]
    assert [question.grain for question in unbounded.asked] == ["total", "hour"]


@pytest.mark.parametrize(("ads", "pages"), [(0, 1), (1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_pages_end_where_the_rows_end(ads: int, pages: int) -> None:
    begun = export_stretches.begin_export(ask(granularity="total"), Stores(ads), LIMITS)
    assert begun.fits_a_page == (pages == 1)
    sizes = [len(page.page) for page in begun.split_pages(begun.first)]
    assert (len(sizes), sum(sizes)) == (pages, ads)


def missing(first: int, last: int, tier: str = "warm") -> DegradedRange:
    """Hours of the day of which no tier has answered."""
    start_ms, end_ms = START + first * HOUR_MS, START + last * HOUR_MS
    return DegradedRange(start_ms, end_ms, warnings.unanswered(tier, start_ms, end_ms))


def old(first: int, last: int, as_of: int, tier: str = "warm") -> DegradedRange:
    """Hours of the day as they were `as_of` minutes ago."""
    start_ms, end_ms, as_of_ms = START + first * HOUR_MS, START + last * HOUR_MS, NOW - as_of * MINUTE_MS
    return DegradedRange(start_ms, end_ms, warnings.old_rows(tier, start_ms, end_ms, as_of_ms), as_of_ms)


OLD_BORDERS = DegradedRange(START, START + DAY_MS, warnings.old_borders(NOW), NOW)
LATE = DegradedRange(START, START + HOUR_MS, warnings.may_lack_late_events(START, START + HOUR_MS), START + HOUR_MS)
LOST_RUN = warnings.lost_run(START)


@pytest.mark.parametrize(
    ("announced", "later", "aborts"),
    [
        ([], missing(10, 11), True),
        ([missing(3, 4)], missing(3, 4), False),
        ([missing(3, 4)], missing(10, 11), True),
        # The whole is read from days, its stretches from hours: what is announced is announced.
        ([missing(0, 24, "cold")], missing(10, 11), False),
        ([missing(0, 10), missing(10, 24)], missing(9, 11), False),
        ([], old(10, 11, 30), True),
        ([missing(3, 4)], old(10, 11, 30), True),
        ([missing(0, 24)], old(10, 11, 30), False),
        ([old(0, 24, 30, "cold")], old(10, 11, 30), False),
        ([old(0, 24, 30, "cold")], old(10, 11, 20), False),
        ([old(0, 24, 30, "cold")], old(10, 11, 40), True),
        ([old(0, 24, 30)], missing(10, 11), True),
        ([], OLD_BORDERS, True),
        ([OLD_BORDERS], OLD_BORDERS, False),
        ([OLD_BORDERS], old(10, 11, 30), True),
        ([], LATE, True),
        ([LATE], LATE, False),
        ([LATE], missing(0, 1), True),
        ([], warnings.STORED_AWAY, True),
        ([warnings.STORED_AWAY], warnings.STORED_AWAY, False),
        ([], LOST_RUN, True),
        ([LOST_RUN], LOST_RUN, False),
        ([], "a warning that a later version adds", True),
    ],
    ids=str,
)
def test_an_export_is_aborted_when_later_rows_are_missing_or_old_without_an_announcement(
    announced: list[str | DegradedRange], later: str | DegradedRange, aborts: bool
) -> None:
    begun = export_stretches.begin_export(ask(), stores := Stores(300).warn(*announced), LIMITS)
    warning = later if isinstance(later, str) else later.warning
    assert begun.unannounced(stores.warn(later)(begun.rest[0])) == (warning if aborts else "")


def test_an_export_is_not_aborted_by_a_warning_that_is_no_loss() -> None:
    begun = export_stretches.begin_export(ask(), stores := Stores(300), LIMITS)
    notes = (
        warnings.SAMPLED,
        warnings.HOT_AWAY,
        warnings.MINUTES_OF_A_RECONCILED_DAY,
        warnings.cut_at_hours("Asia/Kolkata"),
    )
    assert begun.unannounced(stores.warn(notes=notes)(begun.rest[0])) == ""


@pytest.mark.parametrize("name", ["csv", "ndjson", "arrow"])
def test_a_broken_export_cannot_be_read_as_a_complete_one(name: str) -> None:
    form, page = formats.STREAMED[name], Stores(10)(ask())
    raw = form.encoder().page(page) + form.mark_broken('redis is away: "hot"')
    last = raw.splitlines()[-1]
    if name == "arrow":
        with pytest.raises(pl.exceptions.ComputeError):
            pl.read_ipc_stream(io.BytesIO(raw))
    elif name == "ndjson":
        assert json.loads(last) == {"error": 'redis is away: "hot"'}
    else:
        assert last == b"\"ERROR: redis is away: 'hot'\""


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_compressed_export_has_its_end_mark_only_when_it_is_complete(coding: str, complete: bool) -> None:
    sent = [b"time,clicks\n", *(b"2026-11-20T00:00:00Z,%d\n" % n for n in range(1_000))]

    async def pieces() -> AsyncIterator[bytes]:
        for piece in sent:
            yield piece
        if not complete:
            raise Broken

    async def read() -> list[bytes]:
        received = []
        compressor = exports._compressor(coding)
        assert compressor is not None
        with contextlib.suppress(Broken):
            async for piece in exports._compress_chunks(pieces(), compressor):
                received.append(piece)
        return received

    received = asyncio.run(read())
    assert len(received) >= len(sent), "each piece is sent when it is there"
    unpack = gzip.decompress if coding == "gzip" else lambda raw: bytes(cramjam.zstd.decompress(raw))
    if complete:
        assert unpack(b"".join(received)) == b"".join(sent)
    else:
        with pytest.raises((EOFError, cramjam.DecompressionError)):
            unpack(b"".join(received))
