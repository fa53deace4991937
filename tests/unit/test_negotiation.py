"""What headers of a request ask for, by the rules of RFC 9110."""

from __future__ import annotations

import pytest

from query.api.negotiation import matches_any, preferred_coding, preferred_format
from query.formats import MEDIA_TYPES


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/csv", "csv"),
        ("TEXT/CSV", "csv"),
        ("text/*", "csv"),
        ("text/csv; charset=utf-8", "csv"),
        ("application/json; charset=utf-8", "json"),
        ("application/x-ndjson", "ndjson"),
        ("application/vnd.apache.arrow.stream", "arrow"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        ("application/json;q=0.1, text/csv;q=0.9", "csv"),
        ("application/json;q=0, */*", "csv"),
        ("application/json;q=0, text/csv", "csv"),
        ("text/csv, application/json", "csv"),
        ("application/json, text/csv", "json"),
        ("*/*;q=0.1, application/x-ndjson", "ndjson"),
        ("application/xml", None),
        ("text/html", None),
        ("*/*;q=0", None),
        ("image/*", None),
    ],
)
def test_accept_names_the_format_by_weight(accept: str, name: str | None) -> None:
    assert preferred_format(accept, tuple(MEDIA_TYPES.items())) == name


@pytest.mark.parametrize(
    ("accept_encoding", "large", "small"),
    [
        (None, "identity", "identity"),
        ("", "identity", "identity"),
        ("gzip", "gzip", "identity"),
        ("x-gzip", "gzip", "identity"),
        ("GZIP", "gzip", "identity"),
        ("gzip, zstd", "zstd", "identity"),
        ("gzip, deflate, br, zstd", "zstd", "identity"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip", "identity"),
        ("gzip;q=0", "identity", "identity"),
        ("gzip;q=0.0, zstd;q=0", "identity", "identity"),
        ("gzip;q=0, *", "zstd", "identity"),
        ("*", "zstd", "identity"),
        ("*;q=0.1, gzip;q=0.2", "gzip", "identity"),
        ("br, deflate", "identity", "identity"),
        ("identity", "identity", "identity"),
        ("identity, gzip;q=0.5", "identity", "identity"),
        ("identity;q=0.5, gzip", "gzip", "identity"),
        ("gzip;q=0.001", "gzip", "identity"),
        ("identity;q=0, gzip", "gzip", "gzip"),
        ("gzip, *;q=0", "gzip", "gzip"),
        ("identity;q=0", None, None),
        ("*;q=0", None, None),
        ("br, *;q=0", None, None),
    ],
)
def test_accept_encoding_names_the_coding_by_weight(
    accept_encoding: str | None, large: str | None, small: str | None
) -> None:
    assert preferred_coding(accept_encoding, small=False) == large
    assert preferred_coding(accept_encoding, small=True) == small


@pytest.mark.parametrize(
    ("sent", "matches"),
    [
        ([], False),
        (["*"], True),
        ([" * "], True),
        (['W/"tag"'], True),
        (['"tag"'], True),
        (['"other", W/"tag"'], True),
        (['"other"', '"tag"'], True),
        (['"a,b","tag"'], True),
        (["tag"], True),
        (['"other"'], False),
        (['W/"other", "ta"'], False),
        (['"tag'], False),
        (["W/"], False),
        ([""], False),
    ],
)
def test_if_none_match_compares_weakly_with_each_tag_of_a_list(sent: list[str], matches: bool) -> None:
    assert matches_any(sent, 'W/"tag"') is matches
