"""Dead letters over HTTP, for admin keys: a list with counts, and sending them again, edited."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request

from infra import logs
from infra.clock import iso
from infra.errors import UserError
from infra.settings import Settings
from infra.structs import decodable
from ingest import events
from ingest.dead_letters import browse
from ingest.dead_letters.browse import LetterCounts, ListedLetter, SentIndex, list_letters
from ingest.dead_letters.letters import Letter
from ingest.dead_letters.replay import Plan, plan_letters, plan_value, send_plan
from ingest.dead_letters.sent import SentLetters
from ingest.events import Reason
from query.api.access import HttpReply
from query.api.bodies import decode_body
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.cursor import read_page
from query.keys import Access
from query.parameters import collect_parameters
from query.signing import Signer
from query.times import parse_time

PARAMETERS = ("reason", "from", "limit", "cursor")
MOST_LISTED, USUALLY_LISTED, MOST_SENT = 500, 50, 100
_KIND = "dead-letters"
_NAME = re.compile(r"([0-9]{1,5})/([0-9]{1,18})", re.ASCII)


@decodable
class ReplayRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Letters by name, each with the fields of `edit` set where they were at fault; or one letter with a value of its own. `again`: also
    what was sent before."""

    names: list[str] = []
    edit: dict[str, str | int | None] = {}
    name: str | None = None
    value: str | None = None
    again: bool = False


@dataclass(frozen=True)
class _ListQuestion:
    reason: str | None
    since_ms: int | None
    limit: int
    ends: dict[int, int] | None
    digest: str


class DeadLetters:
    """The handlers, called once the gate has let a request of an admin key in."""

    def __init__(self, settings: Settings, signer: Signer, now: Callable[[], int]) -> None:
        self._settings, self._signer, self._now = settings, signer, now
        self._counts, self._sent, self._sending = LetterCounts(settings), SentIndex(settings), threading.Lock()
        self._log = logs.get("dead-letters")

    def list(self, request: Request, _access: Access) -> HttpReply:
        """A page of letters, newest first; the first page also has counts by hour and reason."""
        now_ms = self._now()
        question = _parse_list(request.query_params.multi_items(), now_ms, self._signer)
        page = list_letters(self._settings, question.reason, question.since_ms, question.limit, question.ends)
        marks = self._sent.read()
        document: dict[str, Any] = {
            "data": [_describe(listed, marks) for listed in page.letters],
            "rows": len(page.letters),
            "next_cursor": None
            if page.ends is None
            else self._signer.sign(
                {"of": _KIND, "q": question.digest, "e": sorted(page.ends.items()), "f": question.since_ms}
            ),
        }
        if question.ends is None:
            counts, complete = self._counts.read(now_ms)
            document["counts"] = [{"time": iso(hour), "reason": reason, "count": n} for hour, reason, n in counts]
            document["counts_complete"] = complete
        return HttpReply(json.dumps(document).encode(), rows_read=len(page.letters))

    def replay(self, request: Request, access: Access) -> HttpReply:
        """Send letters again, in one transaction with their marks; those that would be rejected again are refused, each with why."""
        body = decode_body(request, ReplayRequest)
        names = _check_replay(body)
        if not self._sending.acquire(blocking=False):
            raise Problem(
                409, "busy", "another replay is being sent; retry in a few seconds", headers={"Retry-After": "3"}
            )
        try:
            letters = browse.read_letters_by_name(self._settings, names)
            missing = [name for name in names if name not in letters]
            if missing:
                raise Problem(
                    404, "not-found", f"no such dead letter: {missing[0]}; /v1/dead-letters lists them", "names"
                )
            plan = self._send(partial(_plan, body, [letters[name] for name in names], self._now()))
        finally:
            self._sending.release()
        self._log.info("sent again", key=access.key, sent=len(plan.sends), refused=len(plan.refused))
        sources = {name: letter.headers.get("source") for name, letter in letters.items()}
        refused = [{"name": name, "source": sources.get(name), "reason": why} for name, why in plan.refused]
        return HttpReply(json.dumps({"sent": len(plan.sends), "refused": refused}).encode())

    def _send(self, plan_from: Callable[[SentLetters], Plan]) -> Plan:
        try:
            return send_plan(self._settings, plan_from)
        except UserError as error:
            raise Problem(409, "not-sent", f"{error.message}; {error.hint}", headers={"Retry-After": "3"}) from error


def _plan(body: ReplayRequest, letters: Sequence[Letter], moment_ms: int, sent: SentLetters) -> Plan:
    if body.value is not None:
        return plan_value(letters[0], body.value.encode("utf-8", "surrogatepass"), sent, moment_ms, again=body.again)
    plan = plan_letters(letters, body.edit, sent, moment_ms, again=body.again)
    if plan.ids_set > 1:
        raise BadQuestion(
            "edit", f"event_id would give {plan.ids_set} events one id, and they would count as one; name one letter"
        )
    return plan


def _check_replay(body: ReplayRequest) -> dict[str, tuple[int, int]]:
    """Name → (partition, offset) of the letters that are meant. Raises BadQuestion."""
    if (body.value is None) != (body.name is None):
        raise BadQuestion("value", "value goes with name: the letter that it is sent instead of")
    if (body.name is None) == (not body.names):
        raise BadQuestion("names", "give names, or one name with its value")
    if body.value is not None and body.edit:
        raise BadQuestion("edit", "edit goes with names; value is sent as it is")
    names = [body.name] if body.name is not None else body.names
    if len(names) > MOST_SENT:
        raise BadQuestion("names", f"{MOST_SENT} letters at once, at most, not {len(names)}")
    for field in body.edit:
        if field not in events.FIELDS:
            raise BadQuestion("edit", f"an event has no field {field[:40]!r}; use {', '.join(events.FIELDS)}")
    places = {}
    for name in names:
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise BadQuestion("names", f"a letter is named like 0/17, not {name[:40]!r}")
        places[name] = (int(parts[1]), int(parts[2]))
    return places


def _parse_list(parameters: Sequence[tuple[str, str]], now_ms: int, signer: Signer) -> _ListQuestion:
    values, _ = collect_parameters(parameters, PARAMETERS)
    reason = values.get("reason")
    if reason is not None and reason not in [str(r) for r in Reason]:
        raise BadQuestion("reason", f"no such reason: {reason[:40]!r}; use {', '.join(map(str, Reason))}")
    limit = values.get("limit", str(USUALLY_LISTED))
    if not re.fullmatch(r"[0-9]{1,4}", limit, re.ASCII) or not 1 <= int(limit) <= MOST_LISTED:
        raise BadQuestion("limit", f"limit must be a number from 1 to {MOST_LISTED}, not {limit[:40]!r}")
    since_ms = parse_time("from", values, now_ms) if "from" in values else None
    digest = hashlib.sha256(json.dumps([reason, values.get("from")]).encode()).hexdigest()[:24]
    if "cursor" not in values:
        return _ListQuestion(reason, since_ms, int(limit), None, digest)
    payload = read_page(values["cursor"], _KIND, signer, digest)
    return _ListQuestion(reason, payload["f"], int(limit), {int(p): int(end) for p, end in payload["e"]}, digest)


def _describe(listed: ListedLetter, marks: SentLetters) -> dict[str, Any]:
    letter = listed.letter
    mark = marks.of_letter(letter, listed.event_id, listed.digest)
    try:
        time = iso(letter.time_ms)
    except (ValueError, OverflowError, OSError):
        time = None  # a producer may stamp its messages as it likes
    return {
        "name": letter.name,
        **{header: letter.headers.get(header) for header in ("source", "reason", "detail", "stage")},
        "time": time,
        "value": None if letter.value is None else letter.value.decode("utf-8", "backslashreplace"),
        "bytes": listed.size,
        "truncated": (listed.size or 0) > browse.SHOWN_BYTES,
        "sent_again": mark is not None,
        "sent_at": iso(mark.sent_ms) if mark else None,
    }
