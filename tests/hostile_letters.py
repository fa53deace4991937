"""Messages that any program may have written to the dead-letter topic. No reader of letters may fail on them."""

from __future__ import annotations

from dataclasses import dataclass

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.settings import Settings

DEEP = 1_000


@dataclass(frozen=True)
class Hostile:
    """One such message, and the event id that can be read from it, if any."""

    value: bytes | None
    event_id: str | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


def _event(rest: bytes) -> bytes:
    return b'{"event_id":"hostile",' + rest + b"}"


HOSTILE: dict[str, Hostile] = {
    "arrays nested 1,000 deep": Hostile(_event(b'"n":' + b"[" * DEEP + b"]" * DEEP)),
    "objects nested 1,000 deep": Hostile(_event(b'"n":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP)),
    "arrays nested 200 deep": Hostile(_event(b'"n":' + b"[" * 200 + b"]" * 200), "hostile"),
    "nested a million deep and cut": Hostile(b'{"event_id":"x","n":' + b"[" * 1_000_000),
    "an integer of 10,000 digits": Hostile(_event(b'"cost_micros":' + b"9" * 10_000), "hostile"),
    "an id of 10,000 digits": Hostile(b'{"event_id":' + b"9" * 10_000 + b"}"),
    "a number beyond any float": Hostile(_event(b'"n":1e999999'), "hostile"),
    "NaN": Hostile(_event(b'"n":NaN')),
    "an id that is half of a surrogate pair": Hostile(b'{"event_id":"\\ud800"}'),
    "half of a surrogate pair elsewhere": Hostile(_event(b'"n":"\\udc00"'), "hostile"),
    "an id with NUL": Hostile(b'{"event_id":"a\\u0000b"}', "a\0b"),
    "raw NUL": Hostile(b"\0\0\0"),
    "an id twice": Hostile(b'{"event_id":"first","event_id":"hostile"}', "hostile"),
    "an id as a text, then as a number": Hostile(b'{"event_id":"first","event_id":7}'),
    "an id as a number, then as a text": Hostile(b'{"event_id":7,"event_id":"hostile"}', "hostile"),
    "an escaped name of the id's field": Hostile(b'{"event\\u005fid":"hostile"}', "hostile"),
    "an id that is an object": Hostile(b'{"event_id":{"a":1}}'),
    "an id of 65 bytes": Hostile(b'{"event_id":"' + b"x" * 65 + b'"}'),
    "an empty id": Hostile(b'{"event_id":""}'),
    "a null id": Hostile(b'{"event_id":null}'),
    "no UTF-8": Hostile(b'{"event_id":"\xff"}'),
    "UTF-16": Hostile('{"event_id":"x"}'.encode("utf-16")),
    "a byte order mark": Hostile(b'\xef\xbb\xbf{"event_id":"x"}'),
    "an array": Hostile(b"[1]"),
    "a number": Hostile(b"7"),
    "an empty value": Hostile(b""),
    "a null value": Hostile(None),
    "2 MB": Hostile(_event(b'"n":"' + b"x" * 2_000_000 + b'"'), "hostile"),
    "markup": Hostile(b"[/index.html] GET 404 [error] x"),
    "escape sequences of a terminal": Hostile(b"\x1b[2J\x1b]0;title\x07\xc2\x9b31m\r\n\x7f"),
    "headers of another program": Hostile(b"{}", headers=(("name", b"x"), ("time", b"y"), ("value", b"z"))),
    "a header without a value": Hostile(b"{}", headers=(("reason", None), ("source", None))),
    "a header that is no UTF-8": Hostile(b"{}", headers=(("reason", b"\xff\x1b[2J"), ("detail", b"[/x]"))),
    "a header twice": Hostile(b"{}", headers=(("source", b"ad-events/0/1"), ("source", b"ad-events/0/2"))),
    "a source of one word": Hostile(b"{}", headers=(("source", b"here"),)),
    "a source that is no number": Hostile(b"{}", headers=(("source", b"ad-events/zero/one"),)),
    "a source beyond 64 bits": Hostile(b"{}", headers=(("source", b"ad-events/0/" + b"9" * 5_000),)),
    "a source in a partition that is not there": Hostile(b"{}", headers=(("source", b"ad-events/99999/1"),)),
    "a source below zero": Hostile(b"{}", headers=(("source", b"ad-events/-1/-1"),)),
    "a source in other digits": Hostile(b"{}", headers=(("source", "ad-events/1/٣".encode()),)),
}  # fmt: skip


def send_hostile_letters(settings: Settings) -> None:
    """Write all of them to the dead-letter topic's first partition."""
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}hostile-{now_ms()}")
    producer.open()
    topic = settings.topic(topics.DEAD_LETTERS)
    producer.write([Record(topic, one.value, None, 0, one.headers) for one in HOSTILE.values()])  # type: ignore[arg-type]
