"""Where Redis is and how it is reached, from the settings: a server, a cluster, or what Sentinels name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from infra.hosts import split_address
from infra.tls import TlsFiles

SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_PORTS = {"sentinel": 26379}
_PORT = 6379

# Others would change what replies look like, have commands sent twice, or leave a server unverified. Files of TLS have settings of their own.
_OPTIONS = re.compile(
    r"db|username|password|client_name|max_connections|health_check_interval"
    r"|socket_(timeout|connect_timeout|keepalive|read_size)|ssl_check_hostname|sentinel_(username|password)"
)

# What redis-py takes for false.
_FALSE = frozenset({"0", "F", "FALSE", "N", "NO"})

NO_OTHER_REDIS = {"redis_ca": "", "redis_certificate": "", "redis_key": "", "redis_wait_replicas": "0"}
"""Settings of a Redis of one's own, as they are for that of an embedded stack."""

Address = tuple[str, int]
"""Host and port."""


@dataclass(frozen=True)
class RedisAccess:
    """`url`: as the setting `redis`. `tls`: files, for a rediss address. `wait_replicas`: so many replicas confirm a conditional write
    before it counts as done."""

    url: str
    tls: TlsFiles = field(default_factory=lambda: TlsFiles("redis"))
    wait_replicas: int = 0

    @property
    def mode(self) -> str:
        """`cluster`, `sentinel`, or empty: a single server."""
        return urlsplit(self.url).scheme.partition("+")[2]

    @property
    def is_any_host_accepted(self) -> bool:
        """Whether the certificate of a server may be for another host name."""
        parts = urlsplit(self.url)
        # Of an option that is there twice redis-py takes the first.
        value = parse_qs(parts.query).get("ssl_check_hostname", ["yes"])[0]
        return parts.scheme.startswith("rediss") and value.upper() in _FALSE

    @property
    def addresses(self) -> list[Address]:
        """The nodes or Sentinels that the URL names."""
        hosts = urlsplit(self.url).netloc.rpartition("@")[2]
        return [split_address(host, _PORTS.get(self.mode, _PORT)) for host in hosts.split(",")]

    @property
    def service(self) -> str:
        """The name of the primary that Sentinels watch."""
        return urlsplit(self.url).path.split("/")[1] if self.mode == "sentinel" else ""

    def url_of(self, address: Address) -> str:
        """The URL of one node, with user, password, database and options of the whole."""
        parts = urlsplit(self.url)
        host, port = address
        user, at, _ = parts.netloc.rpartition("@")
        name = f"[{host}]" if ":" in host else host
        path = parts.path if self.mode != "sentinel" else parts.path.removeprefix(f"/{self.service}")
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme.partition('+')[0]}://{user}{at}{name}:{port}{path}{query}"


def check_tls_file(name: str, file: str, settings: Mapping[str, Any]) -> str:
    """The setting `name`, a file for TLS, as it is. Raises ValueError where the settings before it make no use of it."""
    if file and urlsplit(str(settings.get("redis", ""))).scheme.partition("+")[0] != "rediss":
        raise ValueError("is for TLS alone: the setting redis must begin with rediss")
    if file and name == "redis_key" and not settings.get("redis_certificate"):
        raise ValueError("needs the setting redis_certificate")
    return file


def check_options(query: str) -> None:
    """Raise ValueError for an option behind a URL that connections of ours do not take."""
    for option in filter(None, query.split("&")):
        name = option.partition("=")[0]
        if not _OPTIONS.fullmatch(name):
            raise ValueError(f"must not have the option {name}: it may have those of connections, like socket_timeout")
