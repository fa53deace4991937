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

from infra.clock import DAY_MS, HOUR_MS, iso
from query import answer, export, formats, sums
from query.api import exports
from query.api.edge import Broken
from query.plan import Borders
from query.request import Held, Question, parse
from query.router import Answer
from query.signing import Signer
from query.sums import Sums

NOW = 1_795_181_895_182  # 2026-11-20T13:38:15.182Z
START = NOW // DAY_MS * DAY_MS - 10 * DAY_MS


def ask(**parameters: str) -> Question:
    base = {
        "campaign_id": "7",
        "start": iso(START),
        "end": iso(START + DAY_MS),
        "granularity": "hour",
        "group_by": "ad_id",
    }
    return parse(list((base | parameters).items()), NOW, Held(DAY_MS, 30 * DAY_MS))


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAGE_ROWS", 100)
    monkeypatch.setattr(export, "STRETCH_ROWS", 1_000)


@dataclass
class Stores:
    """Answers like a router: each hour has a row of each of `ads` ads."""

    ads: int
    warnings: list[str] = field(default_factory=list)
    asked: list[Question] = field(default_factory=list)
    most_rows: int = 0

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question)
        hours = np.arange(-(-question.start_ms // HOUR_MS), -(-question.end_ms // HOUR_MS)) * HOUR_MS
        buckets = np.repeat([question.bucket(hour) for hour in hours.tolist()], self.ads)
        ads = np.tile(np.arange(self.ads), len(hours))
        clicks, flags = ads + np.repeat(hours // HOUR_MS % 100, self.ads), np.zeros(len(ads), bool)
        table = sums.summed(Sums(buckets, (ads,), (clicks,) * 5, flags, flags))
        made = answer.rows(question, table, Borders(watermark_ms=NOW), [])
        self.most_rows = max(self.most_rows, len(made))
        page, cursor = answer.page(question, made, Signer("secret"))
        return Answer(question, page, cursor, "closed", NOW, [], len(made), list(self.warnings), True, 1.0, 1.0)


def exported(question: Question, stores: Stores, name: str) -> bytes:
    begun = export.begin(question, stores)
    encoder = formats.STREAMED[name].encoder()
    answers = [begun.first, *map(stores, begun.rest)]
    pages = [page for stretch in answers for page in export.pages(stretch)]
    assert all(len(page.page) <= export.PAGE_ROWS for page in pages)
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
        assert stores.most_rows <= export.STRETCH_ROWS


@pytest.mark.parametrize("name", ["csv", "ndjson", "arrow"])
def test_each_format_is_one_document_however_many_pages_it_has(name: str) -> None:
    raw = exported(ask(end=iso(START + 6 * HOUR_MS)), Stores(300), name)
    frame = {"csv": pl.read_csv, "ndjson": pl.read_ndjson, "arrow": pl.read_ipc_stream}[name](io.BytesIO(raw))  # type: ignore[operator]
    expected = [ad + (START // HOUR_MS + hour) % 100 for hour in range(6) for ad in range(300)]
    assert frame["clicks"].to_list() == expected


def test_a_range_is_surveyed_only_where_its_groups_are_not_bounded_by_the_question() -> None:
    bounded, unbounded = Stores(3), Stores(3)
    assert export.begin(ask(filter="ad_id:0,1,2"), bounded).fits_a_page
    assert export.begin(ask(), unbounded).fits_a_page
    assert [question.grain for question in bounded.asked] == ["hour"]
    assert [question.grain for question in unbounded.asked] == ["total", "hour"]


@pytest.mark.parametrize(("ads", "pages"), [(0, 1), (1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_pages_end_where_the_rows_end(ads: int, pages: int) -> None:
    begun = export.begin(ask(granularity="total"), Stores(ads))
    assert begun.fits_a_page == (pages == 1)
    sizes = [len(page.page) for page in export.pages(begun.first)]
    assert (len(sizes), sum(sizes)) == (pages, ads)


def test_what_a_later_stretch_lacks_is_noticed_unless_it_was_announced() -> None:
    begun = export.begin(ask(), stores := Stores(300))
    for warning, missing in (
        ("tier warm is not available: 10:00 to 11:00 is missing", True),
        ("some counts are estimates: traffic was sampled under overload", False),
    ):
        stores.warnings = [warning]
        assert begun.misses(stores(begun.rest[0])) == (warning if missing else "")
    announced = export.begin(ask(), stores := Stores(300, ["tier warm is not available: 00:00 to 23:00 is missing"]))
    stores.warnings = ["tier warm is not available: 10:00 to 11:00 is missing"]
    assert announced.misses(stores(announced.rest[0])) == ""


@pytest.mark.parametrize("name", ["csv", "ndjson", "arrow"])
def test_no_reader_takes_a_broken_export_for_a_complete_one(name: str) -> None:
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
            async for piece in exports._compressed(pieces(), compressor):
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
