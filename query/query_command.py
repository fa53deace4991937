"""`adclick query`: a client that asks a router one question over HTTP. (`adclick serve` is the router: query/serve.py.)"""

from __future__ import annotations

import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from infra.cli import declare
from infra.cli.app import App
from infra.errors import Unavailable, UsageError, UserError
from query.client import Client, Parameters, Response
from query.finality import FINALITY

_PAGE_ROWS = 10_000
_NDJSON, _ARROW = "application/x-ndjson", "application/vnd.apache.arrow.stream"
Advance = Callable[[int], None]


@declare.command(
    "query",
    "adclick query --campaign 7 --start -24h --end now --granularity hour --group-by country\n"
    "adclick query --advertiser 1 --start -30d --granularity day --group-by ad_id --out november.csv",
)
@click.option("--campaign", help="Campaigns, several by comma.")
@click.option("--advertiser", help="All campaigns of an advertiser.")
@click.option("--start", help="RFC 3339, now, or like -24h.")
@click.option("--end", help="The same; exclusive.  [default: now]")
@click.option("--granularity", help="minute, hour, day, total or auto.")
@click.option("--group-by", help="Any of campaign_id, ad_id, publisher_id, country, device.")
@click.option("--filter", "filters", multiple=True, help="dimension:value,value; may be repeated.")
@click.option("--timezone", help="IANA name.")
@click.option("--fill", help="zero adds empty buckets.")
@click.option("--order", help="A column; -column for descending.")
@click.option("--totals", is_flag=True, help="Print the total of all rows, too.")
@click.option("--compare", help="previous or week: beside each number the one before, and the change.")
@click.option("--top", help="Only so many groups, those with the largest totals.")
@click.option("--by", help="The measure that --top goes by.  [default: impressions]")
@click.option("--users", is_flag=True, help="Add how many different users there were, about, and events by user.")
@click.option("--names", is_flag=True, help="Add the names of campaigns, ads and publishers, from the directory.")
@click.option("--limit", type=click.IntRange(1), help="Rows at most.  [default: all]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a file: .csv, .ndjson or .parquet.")
def query(
    app: App, campaign: str | None, advertiser: str | None, start: str | None, end: str | None, filters: tuple[str, ...],
    limit: int | None, out: Path | None, totals: bool, users: bool, names: bool, **options: str | None,
) -> None:  # fmt: skip
    """Ask the router, and print all rows of its answer as a table, or write them to a file."""
    if not campaign and not advertiser:
        raise UsageError("--campaign or --advertiser is missing")
    if not start:
        raise UsageError("--start is missing; for example --start -24h")
    parameters = [("start", start), ("end", end or "now")]
    parameters += [("campaign_id", campaign)] if campaign else []
    parameters += [("advertiser_id", advertiser)] if advertiser else []
    parameters += [(name, value) for name, value in options.items() if value]
    parameters += [("totals", "true")] if totals else []
    parameters += [("users", "true")] if users else []
    parameters += [("filter", text) for text in filters]
    parameters += [("names", "true")] if names else []
    if out is None:
        _print(app, parameters, limit)
    else:
        _write_file(app, parameters, limit, out)


# -- a table, or JSON -------------------------------------------------------------------------------------------


def _print(app: App, parameters: Parameters, limit: int | None) -> None:
    answer = _all_rows(app, parameters, limit)
    if app.json:
        app.data(answer)
        return
    columns = [m["name"] for m in answer["meta"]]
    rows = [*answer["data"], *([{"time": "total", **answer["totals"]}] if "totals" in answer else [])]
    app.table(columns, [[row.get(c, "") for c in columns] for row in rows])
    if comparison := answer.get("comparison"):
        app.say(_describe_comparison(comparison))
    if "users_standard_error" in answer:
        app.say(_describe_users(answer))
    app.say(_summary(answer))
    if answer["next_cursor"]:
        app.say("there are more rows; raise --limit, or leave it out")
    _print_warnings(app, answer["warnings"])


def _summary(answer: dict[str, Any]) -> str:
    """The line below the table."""
    if answer["watermark"] is not None:
        watermark = f"watermark {answer['watermark']}"
    else:
        # Where a store that knows it is away, a warning says so.
        watermark = "watermark unknown" if answer["warnings"] else "no watermark yet: no minute is closed"
    tiers = ", ".join(dict.fromkeys(t["tier"] for t in answer["statistics"]["tiers"]))
    elapsed = f"{answer['statistics']['elapsed_ms']} ms"
    return " · ".join(filter(None, (_count_rows(answer["rows"]), answer["finality"], watermark, tiers, elapsed)))


def _describe_comparison(comparison: dict[str, Any]) -> str:
    """The line that says what the numbers are compared with."""
    counted = comparison["counted_until"]
    until = f", as this range is counted until {counted}" if counted else ""
    return f"compared with {comparison['start']} to {comparison['end']}{until}"


def _describe_users(answer: dict[str, Any]) -> str:
    """The line that says how good the users are."""
    widened = answer.get("users_range")
    where = f", counted from {widened['start']} to {widened['end']}" if widened else ""
    return f"users are estimates: 95 of 100 are within {2 * answer['users_standard_error']:.1%}{where}"


def _count_rows(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def _all_rows(app: App, parameters: Parameters, limit: int | None) -> dict[str, Any]:
    """The router's document, with the rows of all pages."""
    client, max_rows = Client(app.settings), limit or 1 << 62
    answer = client.get("/v1/metrics", [*parameters, ("limit", str(min(max_rows, _PAGE_ROWS)))])
    if not {"meta", "data", "statistics", "warnings"} <= answer.keys():
        raise UserError(
            f"what listens at {app.settings.http} is not a router: its answer has no rows",
            hint="ADCLICK_HTTP says where the router is",
        )
    if not answer["next_cursor"] or len(answer["data"]) >= max_rows:
        return answer
    # The following pages come as one stream: requested one by one, each would be computed from the beginning.
    rest = [*parameters, ("cursor", answer["next_cursor"])]
    with client.rows(rest, _NDJSON) as response, _progress(app) as advance:
        for number, line in enumerate(response.iter_lines()):
            if len(answer["data"]) == max_rows:
                # There is no cursor for this row; the one of the first page would repeat rows.
                answer["warnings"].append(f"there are more rows than --limit {max_rows}; raise it, or leave it out")
                break
            row = json.loads(line)
            if "error" in row:
                raise Unavailable(row["error"], hint="retry")
            answer["data"].append(row)
            if number % 1000 == 0:
                advance(1000)
        answer["next_cursor"] = None
        finality, warnings = _read_headers(response)
    answer["rows"] = len(answer["data"])
    answer["finality"] = min(answer["finality"], finality, key=FINALITY.index)
    answer["warnings"] = list(dict.fromkeys([*answer["warnings"], *warnings]))
    return answer


# -- files ------------------------------------------------------------------------------------------------------


def _write_file(app: App, parameters: Parameters, limit: int | None, out: Path) -> None:
    writers = {".csv": ("text/csv", _copy_csv), ".ndjson": (_NDJSON, _copy_lines), ".parquet": (_ARROW, _to_parquet)}
    if out.suffix.lower() not in writers:
        raise UsageError(f"--out ends in {', '.join(writers)}, not {out.name!r}")
    if limit is not None and limit > _PAGE_ROWS:
        raise UsageError(f"with --out, --limit is {_PAGE_ROWS:,} at most; without it, all rows are written")
    media_type, write = writers[out.suffix.lower()]
    if limit is not None:
        parameters = [*parameters, ("limit", str(limit))]
    with (
        replacing(out) as file,
        Client(app.settings).rows(parameters, media_type) as response,
        _progress(app) as advance,
    ):
        rows = write(response, file, advance)
        finality, warnings = _read_headers(response)
    more = "X-Adclick-Next-Cursor" in response.headers
    if app.json:
        app.data({"file": str(out), "rows": rows, "finality": finality, "warnings": warnings, "more": more})
        return
    app.say(f"{out}: {_count_rows(rows)} · {finality}")
    if more:
        app.say("there are more rows; leave --limit out")
    _print_warnings(app, warnings)


@contextmanager
def replacing(out: Path) -> Iterator[IO[bytes]]:
    """A temporary file that replaces `out` once it is complete, and is deleted otherwise."""
    target = out.resolve()  # the file that a link points to, not the link
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            part = Path(file.name)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                part.chmod(_mode(target))
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or else of a new file."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _copy_csv(response: Response, file: IO[bytes], advance: Advance) -> int:
    return _copy_lines(response, file, advance) - 1  # the header


def _copy_lines(response: Response, file: IO[bytes], advance: Advance) -> int:
    """Copy the body; returns its number of lines. Cells have no line breaks."""
    lines = 0
    for chunk in response.iter_bytes():
        file.write(chunk)
        lines += (count := chunk.count(b"\n"))
        advance(count)
    return lines


def _to_parquet(response: Response, file: IO[bytes], advance: Advance) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    try:
        with (
            pa.ipc.open_stream(io.BufferedReader(_Body(response))) as stream,
            pq.ParquetWriter(file, stream.schema) as parquet,
        ):
            for batch in stream:
                parquet.write_batch(batch)
                rows += batch.num_rows
                advance(batch.num_rows)
    except pa.ArrowInvalid as error:
        raise Unavailable("the answer ended early", hint="retry") from error
    return rows


class _Body(io.RawIOBase):
    """The body of a response as a file."""

    def __init__(self, response: Response) -> None:
        self._chunks, self._chunk = response.iter_bytes(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._chunk = chunk
        size = min(len(buffer), len(self._chunk))
        buffer[:size], self._chunk = self._chunk[:size], self._chunk[size:]
        return size


# -- both ----------------------------------------------------------------------------------------------


@contextmanager
def _progress(app: App) -> Iterator[Advance]:
    with app.progress("rows", None) as bar:
        yield lambda rows: bar.advance(bar.task_ids[0], rows)


def _read_headers(response: Response) -> tuple[str, list[str]]:
    """Finality and warnings, which formats of rows alone have in their headers."""
    warnings: list[str] = json.loads(response.headers.get("X-Adclick-Warnings", "[]"))
    return response.headers.get("X-Adclick-Finality", FINALITY[0]), warnings


def _print_warnings(app: App, warnings: list[str]) -> None:
    for warning in warnings:
        app.say(f"warning: {warning}")
