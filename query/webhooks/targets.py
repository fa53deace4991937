"""Where messages may be sent to: the form of a webhook's URL, and the addresses that its host may have.

Anybody with a key may name a URL, and the worker that connects to it sits inside the installation's network. So an address that is
not of the public Internet is refused, unless a setting allows its network, and a connection goes to the address that was checked.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_URL_CHARACTERS = 2_000
_USUAL_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", re.ASCII)
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)
# Forms of IPv4 addresses that resolvers take: 127.1, 0x7f000001, 2130706433, 0177.0.0.1.
_NUMERIC = re.compile(r"(0[xX])?[0-9a-fA-F]+(\.(0[xX])?[0-9a-fA-F]+){0,3}", re.ASCII)
# Behind these an IPv4 address is reached (RFC 6052, RFC 8215), which would have to be checked by the gateway's rules.
_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48"))
# Not of the public Internet, although `ipaddress` of some Python takes them, or a part of them, for it: protocol assignments, relays of
# 6to4, documentation (RFC 9637), and an address of Azure's platform that each of its machines reaches.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")
)


class BadTarget(Exception):
    """A URL, or the address of its host, is refused: a sentence that says why."""


@dataclass(frozen=True)
class Target:
    """A URL in parts. `host`: a name, or an address without brackets; `path`: with its query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _USUAL_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class TargetPolicy:
    """`networks`: those that are allowed although they are not public. `ports`: the allowed ones; empty: any."""

    networks: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset()

    @classmethod
    def of(cls, networks: str, ports: str) -> TargetPolicy:
        """From settings: CIDRs and numbers by comma."""
        return cls(
            tuple(ipaddress.ip_network(part) for part in networks.split(",") if part),
            frozenset(int(part) for part in ports.split(",") if part),
        )

    def parse(self, url: str) -> Target:
        """The parts of a URL that messages may be sent to, as far as it says. Raises BadTarget."""
        target = _split(url)
        if self.ports and target.port not in self.ports:
            raise BadTarget(
                f"port {target.port} is not allowed here; use one of {', '.join(map(str, sorted(self.ports)))}"
            )
        address = literal_address(target.host)
        if address is not None:
            self.check(address)
        elif target.host.rstrip(".").lower().endswith(("localhost", ".local", ".internal")) and not self.networks:
            raise BadTarget(f"{target.host} is no name of the public Internet")
        return target

    def check(self, address: Address) -> None:
        """Raises BadTarget for an address that may not be connected to."""
        if not any(address in network for network in self.networks if network.version == address.version):
            reason = _why_not_public(address)
            if reason:
                raise BadTarget(f"{address} is {reason}; ADCLICK_WEBHOOK_ALLOWED_NETWORKS does not allow it")

    def choose(self, addresses: Iterable[Address]) -> list[Address]:
        """Those of a host's addresses that may be connected to, in their order. Raises BadTarget where none may."""
        allowed, refusal = list[Address](), BadTarget("it has no address")
        for address in addresses:
            try:
                self.check(address)
                allowed.append(address)
            except BadTarget as error:
                refusal = error
        if not allowed:
            raise refusal
        return allowed


def literal_address(host: str) -> Address | None:
    """The address that a host is by itself, in any form that resolvers take; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if _NUMERIC.fullmatch(host.rstrip(".")):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
        except OSError:
            pass
    return None


def _split(url: str) -> Target:
    if len(url) > MAX_URL_CHARACTERS:
        raise BadTarget(f"the URL has more than {MAX_URL_CHARACTERS:,} characters")
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise BadTarget(
            "the URL must be of visible ASCII characters; write others percent-encoded, and a host in Punycode"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadTarget("this is no URL; write it like https://hooks.example.com/adclick") from None
    if parts.scheme not in _USUAL_PORTS:
        raise BadTarget("the URL must begin with https:// or http://")
    if "@" in parts.netloc:
        raise BadTarget("the URL must have no user or password: the signature shows who sends")
    if parts.fragment:
        raise BadTarget("the URL must end before the #")
    host = parts.hostname or ""
    if not _HOST.fullmatch(host) and not _is_ipv6(host):
        raise BadTarget("the URL names no host")
    if port == 0:
        raise BadTarget("the port must be from 1 to 65535")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _USUAL_PORTS[parts.scheme], path)


def _is_ipv6(host: str) -> bool:
    try:
        return "%" not in host and isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    except ValueError:
        return False


def _is_listed(address: Address) -> bool:
    return any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def _why_not_public(address: Address) -> str:
    """What makes an address one that is not of the public Internet; empty for one that is."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return "an IPv4-mapped address"
        if address.sixtofour is not None or address.teredo is not None:
            return "a tunnel's address"
        if any(address in network for network in _TRANSLATED):
            return "a translated IPv4 address"
        if address.is_site_local:
            return "a site-local address"
    kinds = {
        "an unspecified address": address.is_unspecified,
        "a loopback address": address.is_loopback,
        "a link-local address": address.is_link_local,
        "a multicast address": address.is_multicast,
        "a private address": address.is_private,
        "a reserved address": address.is_reserved or not address.is_global or _is_listed(address),
    }
    return next((kind for kind, is_so in kinds.items() if is_so), "")
