"""ClickHouse over https: authorities and client certificates by settings, and a line for each way in which it fails."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.clickhouse.client import ClickHouse
from infra.errors import Unavailable, UserError
from infra.settings import Settings, resolve
from tests.clusters.certificates import Authority, Identity
from tests.tls_proxy import TlsProxy

Connect = Callable[..., ClickHouse]
"""Makes a client of a server that has this certificate, with these settings."""


@pytest.fixture(scope="module")
def plain(backends: Path) -> Settings:
    return resolve(str(backends)).settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture
def proxies() -> Iterator[list[TlsProxy]]:
    proxies = list[TlsProxy]()
    yield proxies
    for proxy in proxies:
        proxy.stop()


@pytest.fixture
def connect(plain: Settings, proxies: list[TlsProxy]) -> Connect:
    def connect(server: Identity, clients: Authority | None = None, **changes: str) -> ClickHouse:
        """`clients`: the authority that a client has to have a certificate of."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate, server.key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.file)
        proxies.append(TlsProxy(plain.clickhouse, context))
        credentials = urlsplit(plain.clickhouse).netloc.rpartition("@")[0]
        url = f"https://{credentials}@localhost:{proxies[-1].port}"
        return ClickHouse.of(plain.model_copy(update={"clickhouse": url} | changes))

    return connect


def test_a_server_of_ones_own_authority_is_talked_to(connect: Connect, authority: Authority) -> None:
    client = connect(authority.issue("localhost"), clickhouse_ca=str(authority.file))
    assert client.rows("SELECT 40 + {two:UInt8}", {"two": 2}) == [(42,)]
    assert client.arrow("SELECT number FROM numbers(100000)").num_rows == 100_000


def test_a_client_certificate_is_shown_beside_user_and_password(
    connect: Connect, authority: Authority, proxies: list[TlsProxy]
) -> None:
    own = authority.issue("adclick", ())
    files = {"clickhouse_certificate": str(own.certificate), "clickhouse_key": str(own.key)}
    client = connect(authority.issue("localhost"), authority, clickhouse_ca=str(authority.file), **files)
    assert client.rows("SELECT 1") == [(1,)]
    assert b"Authorization: Basic " in proxies[0].received
    assert b"SSL-Certificate-Auth" not in proxies[0].received


def test_without_a_password_the_client_certificate_is_what_logs_in(
    connect: Connect, authority: Authority, proxies: list[TlsProxy]
) -> None:
    own = authority.issue("adclick", ())
    files = {"clickhouse_certificate": str(own.certificate), "clickhouse_key": str(own.key)}
    client = connect(authority.issue("localhost"), authority, clickhouse_ca=str(authority.file), **files)
    client = ClickHouse(f"https://adclick@localhost:{proxies[0].port}", "x", tls=client.tls)
    # The server behind the proxy sees no certificate.
    with pytest.raises(Unavailable, match=r"Authentication failed|certificate"):
        client.rows("SELECT 1")
    head = bytes(proxies[0].received)
    assert b"X-ClickHouse-SSL-Certificate-Auth: on" in head
    assert b"X-ClickHouse-User: adclick" in head
    assert b"Authorization" not in head


@pytest.mark.parametrize(
    ("host", "expired", "known", "expected"),
    [
        ("other.example.test", False, True, r"its certificate is for another host name \(use a name that .*ADCLICK_CLICKHOUSE\)"),
        ("localhost", True, True, r"its certificate has expired \(renew ClickHouse's certificate\)"),
        ("localhost", False, False, r"its certificate is of an unknown authority \(name a file .*ADCLICK_CLICKHOUSE_CA\)"),
    ],
)  # fmt: skip
def test_a_certificate_that_cannot_be_trusted_is_refused_in_one_line(
    connect: Connect, authority: Authority, stranger: Authority, host: str, expired: bool, known: bool, expected: str
) -> None:
    ca = authority if known else stranger
    client = connect(authority.issue("server", [host], expired=expired), clickhouse_ca=str(ca.file))
    with pytest.raises(Unavailable, match=rf"^ClickHouse: {expected}$") as error:
        client.rows("SELECT 1")
    assert error.value.backend == "clickhouse"


def test_the_authorities_of_the_system_do_not_include_ones_own(connect: Connect, authority: Authority) -> None:
    with pytest.raises(Unavailable, match="unknown authority"):
        connect(authority.issue("localhost")).rows("SELECT 1")


def test_a_missing_and_a_strange_client_certificate_are_told_apart(
    connect: Connect, authority: Authority, stranger: Authority
) -> None:
    server, ca = authority.issue("localhost"), str(authority.file)
    with pytest.raises(Unavailable, match=r"wants a certificate of the client .*ADCLICK_CLICKHOUSE_CERTIFICATE"):
        connect(server, authority, clickhouse_ca=ca).rows("SELECT 1")
    own = stranger.issue("adclick", ())
    files = {"clickhouse_certificate": str(own.certificate), "clickhouse_key": str(own.key)}
    with pytest.raises(Unavailable, match="does not accept the client's certificate, or does not know its authority"):
        connect(server, authority, clickhouse_ca=ca, **files).rows("SELECT 1")


def test_a_port_without_tls_is_named(plain: Settings) -> None:
    settings = plain.model_copy(update={"clickhouse": plain.clickhouse.replace("http://", "https://")})
    with pytest.raises(Unavailable, match=r"does not speak TLS on this port .*ADCLICK_CLICKHOUSE"):
        ClickHouse.of(settings).rows("SELECT 1")


def test_a_file_that_cannot_be_used_ends_a_command_before_it_connects(
    connect: Connect, authority: Authority, tmp_path: Path, proxies: list[TlsProxy]
) -> None:
    client = connect(authority.issue("localhost"), clickhouse_ca=str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"^setting clickhouse_ca: \S+missing cannot be read: No such file"):
        client.rows("SELECT 1")
    assert not proxies[0].received
