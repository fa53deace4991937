"""What brokers answer about the sizes of logs, as users of several kinds of brokers have seen it."""

from __future__ import annotations

import struct

import pytest

from infra.errors import Denied
from infra.kafka.log_sizes import _decode_sizes

KAFKA_STORAGE_ERROR = 56


def answer(*folders: tuple[int, str, dict[str, list[int]]]) -> bytes:
    """An answer of version 1: of each folder an error, its name, and the sizes of partitions by topic."""
    parts = [struct.pack(">ii", 0, len(folders))]
    for error, name, topics in folders:
        parts.append(struct.pack(f">hh{len(name)}si", error, len(name), name.encode(), len(topics)))
        for topic, sizes in topics.items():
            parts.append(struct.pack(f">h{len(topic)}si", len(topic), topic.encode(), len(sizes)))
            parts += [struct.pack(">iqqb", p, size, 0, 0) for p, size in enumerate(sizes)]
    return b"".join(parts)


def test_sizes_of_all_folders_are_added_up_but_for_tiered_storage() -> None:
    folders = (
        (0, "/a", {"ad-events": [10, 20], "ad-blocks": [1]}), (0, "/b", {"ad-events": [300]}),
        (0, "remote://bucket", {"ad-events": [10, 20]}),
    )  # fmt: skip
    assert _decode_sizes(answer(*folders)) == {"ad-events": 330, "ad-blocks": 1}


def test_a_user_who_may_not_ask_is_answered_without_folders() -> None:
    with pytest.raises(Denied, match="Describe on the cluster"):
        _decode_sizes(answer())


@pytest.mark.parametrize(
    "reply", [answer((KAFKA_STORAGE_ERROR, "/dead", {}), (0, "/b", {"t": [1]})), answer((0, "/a", {"t": [1]}))[:-3]]
)
def test_a_disk_that_is_gone_or_a_cut_answer_gives_no_sizes_rather_than_too_small_ones(reply: bytes) -> None:
    with pytest.raises(OSError, match=r"error 56 of /dead|unknown form"):
        _decode_sizes(reply)
