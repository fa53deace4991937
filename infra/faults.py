"""Fault points: places where a test may end or halt this process, to see that nothing is lost or counted twice.

`ADCLICK_FAULT=kill@POINT` ends it with SIGKILL there, `stop@POINT` halts it with SIGSTOP, `lose@POINT` loses the answer of the
call in hand, as a broker does that fences its client; `:N` waits for the N-th time that the point is passed. Without the
variable a point is a call of an empty function.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
from collections.abc import Callable

from infra.errors import OutcomeUnknown, UserError

POINTS = {
    "ingest.assigned": "partitions were assigned; nothing was looked up yet",
    "ingest.revoked": "partitions were revoked; they are still held",
    "ingest.recorded": "ids of a batch are recorded in Redis; its transaction has not begun",
    "ingest.closing": "a full segment of ids is sorted; it is not stored yet",
    "ingest.rebuilding": "some ids that Redis had lost are recorded again; others are missing",
    "ingest.produced": "the messages of a batch are in Kafka; they are not committed",
    "ingest.committed": "a batch is committed; the worker does not know it yet",
    **{
        f"{stage}.{point}": text
        for stage in ("minute", "hour", "day", "insight")
        for point, text in (
            ("recovering", "the transactional id is registered; the state log is not read yet"),
            ("flushing", "a flush was taken from the input; it is not folded yet"),
            ("produced", "the messages of a flush are in Kafka; they are not committed"),
            ("committed", "a flush is committed; no tier shows it yet"),
        )
    },
    "stream.revoked": "partitions were revoked; flushes of them may still run",
    "hot.half": "Redis has some of a flush's calls; others are missing",
    "hot.written": "Redis has a flush; the worker does not know it yet",
    "hot.packed": "Redis has some packed cells of a closed minute; others are missing",
    "warm.half": "ClickHouse has some rows of a flush; others, or the border, are missing",
    "insights.found": "alerts were found in minutes that are in the log; none is in ClickHouse",
    "insights.written": "alerts are in ClickHouse; the worker does not know it yet",
    "insights.checkpointed": "a checkpoint of the detector is in ClickHouse; the worker does not know it yet",
    "reach.written": "coupons are in ClickHouse; the offsets that they were read to are not committed",
    "archive.renamed": "files of a range are durable; the archive's offset is not committed",
    "archive.merged": "a merged file is durable; the files that it stands for are still there",
    "store.written": "a file has its temporary name; it is not renamed yet (in a bucket: not uploaded yet)",
    "reconcile.proved": "the input of a day is proven complete; it is not counted yet",
    "reconcile.counted": "a day is counted; nothing of it is in ClickHouse",
    "reconcile.written": "exact hours and causes are in ClickHouse; days and the rest of the ledger are missing",
    "reconcile.compared": "days and ledger are in ClickHouse; the run is not published",
    "reconcile.published": "the run is the day's current one; the command has not said so",
    "rebuild.attached": "runs of restored tables are attached; no day is recounted yet",
    "rebuild.day": "a day is recounted and published; the next ones are not",
    "rebuild.sent": "a part of the former archive is sent and acknowledged; it is not marked yet",
    "notify.paused": "a campaign is paused since its budget is spent; the alert is not written",
    "notify.written": "new versions of alerts are written; the worker does not know it yet",
    "webhooks.sent": "a message is sent to a webhook; the attempt is not recorded",
    "dead-letters.produced": "events sent again and their marks are in Kafka; they are not committed",
    "dead-letters.committed": "events sent again and their marks are committed; the command does not know it yet",
}
"""The state of the world at each point, by name. `adclick debug fault-points` prints it; a test holds it to the code."""

Prepare = Callable[[], object]
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def _nothing(name: str, prepare: Prepare | None = None) -> None:
    pass


def armed(text: str) -> Callable[[str, Prepare | None], None]:
    """What `point` does under a value of ADCLICK_FAULT. Raises UserError for one that is malformed or names no point."""
    parts = re.fullmatch(r"(kill|stop|lose)@([a-z.-]+)(?::([1-9]\d*))?", text)
    if parts is None:
        raise UserError(
            f"ADCLICK_FAULT={text} is not a fault point",
            hint="use kill@POINT, stop@POINT or lose@POINT, with :N for the N-th time",
        )
    if parts[2] not in POINTS:
        near = difflib.get_close_matches(parts[2], POINTS, 1)
        hint = f"did you mean {near[0]}?" if near else "adclick debug fault-points lists them"
        raise UserError(f"ADCLICK_FAULT={text}: there is no fault point {parts[2]}", hint=hint)
    number, wanted, left = _SIGNALS.get(parts[1]), parts[2], int(parts[3] or 1)

    def strike(name: str, prepare: Prepare | None = None) -> None:
        nonlocal left
        if name != wanted:
            return
        left -= 1
        if left != 0:
            return
        if prepare is not None:
            prepare()
        if number is None:
            raise OutcomeUnknown(f"the answer was lost at {name}")
        os.kill(os.getpid(), number)

    return strike


point: Callable[..., None] = armed(os.environ["ADCLICK_FAULT"]) if os.environ.get("ADCLICK_FAULT") else _nothing
"""point(name, prepare): `prepare` brings about what must have happened when the process ends here."""
