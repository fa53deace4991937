"""Whether embedded servers answer."""

from __future__ import annotations

import socket

from infra import http_client
from infra.errors import AdclickError
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.redis.client import Redis


def kafka_ready(address: str) -> bool:
    """Whether the broker answers a request for its topics."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 0.3).close()
        Admin(Connection(address)).partitions(2.0)
    except (OSError, AdclickError):
        return False
    return True


def redis_ready(url: str) -> bool:
    """Whether Redis answers and has loaded its file."""
    try:
        return bool(Redis(url, timeout_s=1.0).call("PING"))
    except AdclickError:
        return False


def http_ready(url: str) -> bool:
    """Whether an HTTP address of this stack answers 200."""
    try:
        with http_client.open_url(url, 2.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False
