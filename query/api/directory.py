"""The directory over HTTP: lists and searches, and for admin keys changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request

from query.api.access import Handler, HttpReply
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.cursor import read_page
from query.directory.editor import DirectoryEditor, InUse
from query.directory.entries import MAX_NAME_CHARACTERS, STATUSES, BadEntry, parse_entry
from query.directory.reader import DirectoryLookup, DirectoryReader
from query.directory.snapshot import Search
from query.keys import Access
from query.parameters import collect_parameters, parse_id, parse_limit
from query.row_scope import RowScope
from query.signing import Signer
from query.warnings import old_directory

COLLECTIONS = {"campaigns": "campaign", "advertisers": "advertiser", "ads": "ad", "publishers": "publisher"}
"""Paths below /v1, and the kind of their entries."""
FILTERS = {
    "campaign": ("advertiser_id", "status"),
    "advertiser": (),
    "ad": ("advertiser_id", "campaign_id"),
    "publisher": (),
}
"""The parameters that entries of a kind are filtered by, beside `q`."""
_KIND = "directory"


class DirectoryApi:
    """The handlers, called once the gate has let a request in: for changes, one of an admin key."""

    def __init__(self, reader: DirectoryReader, editor: DirectoryEditor, signer: Signer) -> None:
        self._reader, self._editor, self._signer = reader, editor, signer

    def handlers(self, kind: str) -> dict[str, Handler]:
        """By what they do to entries of a kind: list, get, put, delete."""
        handlers: dict[str, Callable[[str, Request, Access], HttpReply]] = {
            "list": self._list, "get": self._get, "put": self._put, "delete": self._delete,
        }  # fmt: skip
        return {name: partial(handler, kind) for name, handler in handlers.items()}

    def _list(self, kind: str, request: Request, access: Access) -> HttpReply:
        scope = access.rows
        search, digest = _parse_search(kind, request.query_params.multi_items(), scope, self._signer)
        lookup = self._reader.current()
        entries, last = lookup.snapshot.search(search, scope)
        cursor = None if last is None else self._signer.sign({"of": _KIND, "q": digest, "k": last})
        return _reply(
            {"data": entries, "rows": len(entries), "next_cursor": cursor, "warnings": _warnings(lookup)}, len(entries)
        )

    def _get(self, kind: str, request: Request, access: Access) -> HttpReply:
        id_ = _parse_path(request)
        entry = self._reader.current().snapshot.entry(kind, id_, access.rows)
        if entry is None:
            raise _unknown(kind, id_)
        return _reply(entry)

    def _put(self, kind: str, request: Request, access: Access) -> HttpReply:
        fields = _parse_body(request.state.body) | {"id": _parse_path(request)}
        try:
            entry = parse_entry(kind, fields)
        except BadEntry as error:
            raise BadQuestion(error.field, error.detail) from error
        for _, refusal in self._editor.put([entry], f"key {access.key}").refused:
            raise BadQuestion(refusal.field, refusal.detail)
        return _reply(entry)

    def _delete(self, kind: str, request: Request, access: Access) -> HttpReply:
        id_ = _parse_path(request)
        try:
            entry = self._editor.delete(kind, id_, f"key {access.key}")
        except InUse as error:
            raise Problem(409, "in-use", str(error)) from error
        if entry is None:
            raise _unknown(kind, id_)
        return _reply(entry)


def _parse_search(
    kind: str, parameters: Sequence[tuple[str, str]], scope: RowScope, signer: Signer
) -> tuple[Search, str]:
    """A search, and a digest of all that its pages have in common. Raises BadQuestion."""
    values, _ = collect_parameters(parameters, ("q", *FILTERS[kind], "limit", "cursor"))
    equal = tuple((name, _parse_filter(name, values[name])) for name in FILTERS[kind] if name in values)
    named = dict(equal)
    campaigns = [int(named["campaign_id"])] if "campaign_id" in named else []
    scope.refuse_foreign(int(named["advertiser_id"]) if "advertiser_id" in named else None, campaigns)
    text = values.get("q", "").strip()
    if len(text) > MAX_NAME_CHARACTERS:
        raise BadQuestion("q", f"q has {len(text):,} characters, and a name {MAX_NAME_CHARACTERS} at most; shorten it")
    digest = hashlib.sha256(json.dumps([kind, text, equal, scope.parts]).encode()).hexdigest()[:24]
    return Search(kind, text, equal, parse_limit(values), _parse_cursor(values, digest, signer)), digest


def _parse_filter(name: str, text: str) -> str | int:
    if name != "status":
        return parse_id(name, text)
    if text not in STATUSES:
        raise BadQuestion("status", f"status must be one of {', '.join(STATUSES)}, not {text[:40]!r}")
    return text


def _parse_cursor(values: Mapping[str, str], digest: str, signer: Signer) -> tuple[str, int] | None:
    if "cursor" not in values:
        return None
    name, id_ = read_page(values["cursor"], _KIND, signer, digest)["k"]
    return name, id_


def _parse_path(request: Request) -> int:
    return parse_id("id", request.path_params["id"])


def _parse_body(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadQuestion("body", f"the body must be the entry as a JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise BadQuestion("body", "the body must be the entry as a JSON object")
    if "id" in fields:
        raise BadQuestion("id", "the id is in the path; leave it out of the body")
    return fields


def _unknown(kind: str, id_: int) -> Problem:
    return Problem(404, "not-found", f"no such {kind}: {id_}; GET /v1/{kind}s lists those that this key may see")


def _warnings(lookup: DirectoryLookup) -> list[str]:
    return [old_directory(lookup.stale_s)] if lookup.stale_s else []


def _reply(value: Any, rows: int = 1) -> HttpReply:
    return HttpReply(msgspec.json.encode(value), rows_read=rows)
