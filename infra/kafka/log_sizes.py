"""How many bytes topics have on the disks of all brokers, replicas included: Kafka's DescribeLogDirs, which librdkafka lacks."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable

from infra.errors import Denied, Unavailable
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.sasl import Connector

_DESCRIBE_LOG_DIRS = 35
# Of this version such an answer has no code of its own: it names no folder.
_NOT_ALLOWED = "CLUSTER_AUTHORIZATION_FAILED"


def read_log_sizes(kafka: Connection, topics: Iterable[str], *, timeout_s: float) -> dict[str, int]:
    """Topic → bytes, of the topics that exist. Raises Unavailable, and Denied where this user may not Describe the cluster."""
    admin = Admin(kafka, timeout_s=timeout_s)
    counts = admin.partitions()
    request = _encode_request({topic: counts[topic] for topic in topics if topic in counts})
    connector, sizes = Connector(kafka), Counter[str]()
    for address in admin.addresses():
        try:
            sizes.update(_decode_sizes(connector.ask(address, timeout_s, _DESCRIBE_LOG_DIRS, request)))
        except (OSError, EOFError) as error:
            raise Unavailable(f"Kafka: {address[0]}:{address[1]}: {error}", backend="kafka") from error
    return dict(sizes)


def _encode_request(partitions: dict[str, int]) -> bytes:
    """https://kafka.apache.org/protocol#The_Messages_DescribeLogDirs, version 1."""
    parts = [struct.pack(">i", len(partitions))]
    for topic, count in partitions.items():
        name = topic.encode()
        parts.append(struct.pack(f">h{len(name)}si{count}i", len(name), name, count, *range(count)))
    return b"".join(parts)


def _decode_sizes(answer: bytes) -> Counter[str]:
    """Topic → bytes, in all folders of one broker. Raises OSError, Denied."""
    sizes, at = Counter[str](), 4

    def numbers(kinds: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from(">" + kinds, answer, at)
        at += struct.calcsize(">" + kinds)
        return values

    def text() -> str:
        nonlocal at
        (size,) = numbers("h")
        at += size
        return answer[at - size : at].decode()

    try:
        (folders,) = numbers("i")
        if not folders:
            hint = "allow Describe on the cluster"
            raise Denied("Kafka: the sizes of logs may not be read", hint=hint, backend="kafka", code=_NOT_ALLOWED)
        for _ in range(folders):
            (error,) = numbers("h")
            folder = text()
            if error:
                raise OSError(f"error {error} of {folder}")
            for _ in range(*numbers("i")):
                topic = text()
                for _ in range(*numbers("i")):
                    _partition, size, _lag, _is_future = numbers("iqqb")
                    # Redpanda's tiered storage, much of which is on its disks, too.
                    sizes[topic] += 0 if folder.startswith("remote://") else size
    except struct.error as error:
        raise OSError(f"a response of an unknown form: {error}") from error
    return sizes
