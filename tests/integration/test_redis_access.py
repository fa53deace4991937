"""A Redis behind TLS, with users, and one that Sentinels watch."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.errors import Denied, Unavailable, UserError
from infra.redis.access import RedisAccess
from infra.redis.client import Redis
from infra.settings import Settings
from infra.tls import TlsFiles
from tests.clusters.redis_cluster import RedisNode
from tests.ports import unused_port
from tests.product import wait_until

PLAIN = ("--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisNode]:
    node = RedisNode(tmp_path / "server", unused_port(), PLAIN)
    try:
        node.start()
        yield node
    finally:
        node.kill()


# -- TLS ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """Files of an authority, and of a server and a client that it vouches for."""

    folder: Path

    def file(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")


def make_certificates(folder: Path) -> Certificates:
    """An authority, a certificate of 127.0.0.1, and one of a client; each file has the key as well, `client-key` that alone."""
    now, authority_key = dt.datetime.now(dt.UTC), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    for name in ("authority", "server", "client"):
        key = authority_key if name == "authority" else ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
        )
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(here, critical=False) if name == "server" else builder
        public = builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_bytes(public if name != "server" else plain + public)
        (folder / f"{name}-key.pem").write_bytes(plain)
    return Certificates(folder)


class TlsFront:
    """Takes TLS connections of clients with a certificate, and passes what they send on to a server."""

    def __init__(self, certificates: Certificates, port: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.file("server"))
        self._context.load_verify_locations(certificates.file("authority"))
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._backend = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(self._backend) as backend,
        ):
            threading.Thread(target=self._answer, args=(backend, client), daemon=True).start()
            while data := client.recv(1 << 16):
                backend.sendall(data)

    @staticmethod
    def _answer(backend: socket.socket, client: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while data := backend.recv(1 << 16):
                client.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def front(certificates: Certificates, server: RedisNode) -> Iterator[TlsFront]:
    opened = TlsFront(certificates, server.port)
    yield opened
    opened.close()


def test_settings_name_the_authority_and_the_certificate_of_the_client(
    front: TlsFront, certificates: Certificates
) -> None:
    values = {
        "redis": f"rediss://127.0.0.1:{front.port}/0",
        "redis_ca": certificates.file("authority"),
        "redis_certificate": certificates.file("client"),
        "redis_key": certificates.file("client-key"),
    }
    settings = Settings.model_validate(values)
    redis = Redis(settings.redis_access)
    assert redis.call("SET", "a", "1")
    assert redis.pipeline([("GET", "a"), ("TIME",)])[0] == b"1"
    with redis.lease("lease", 5, "busy") as fence:
        assert fence > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ca": ""}, "unknown authority"),
        ({"certificate": "", "key": ""}, "wants a certificate of the client|(?i:closed|reset|EOF)"),
        ({"url": "rediss://localhost:{port}/0"}, "for another host name"),
    ],
    ids=["another authority", "no client certificate", "another name"],
)
def test_a_connection_that_cannot_be_trusted_is_not_made(
    front: TlsFront, certificates: Certificates, changes: dict[str, str], reason: str
) -> None:
    values = {
        "url": f"rediss://127.0.0.1:{front.port}/0",
        "ca": certificates.file("authority"),
        "certificate": certificates.file("client"),
        "key": certificates.file("client-key"),
    } | {name: value.format(port=front.port) for name, value in changes.items()}
    access = RedisAccess(values["url"], TlsFiles("redis", values["ca"], values["certificate"], values["key"]))
    with pytest.raises(Unavailable, match=reason):
        Redis(access).call("PING")


def test_a_file_that_is_not_there_is_named(certificates: Certificates) -> None:
    with pytest.raises(UserError, match=r"redis_ca: .*nothing.* cannot be read"):
        Redis(RedisAccess("rediss://127.0.0.1/0", TlsFiles("redis", certificates.file("nothing"))))


# -- users ----------------------------------------------------------------------------------------------------------


def test_user_and_password_are_those_of_the_url_whatever_characters_they_have(server: RedisNode) -> None:
    server.client.execute_command("ACL", "SETUSER", "clicks", "on", ">p/w?#@:", "~adclick:*", "+get", "+set")
    server.client.execute_command("ACL", "SETUSER", "default", "off")
    url = f"redis://clicks:p%2Fw%3F%23%40%3A@127.0.0.1:{server.port}/0"
    redis = Redis(url)
    assert redis.call("SET", "adclick:a", "1") and redis.call("GET", "adclick:a") == b"1"
    with pytest.raises(Denied) as denied:
        redis.call("GET", "other")
    assert denied.value.code == "NOPERM"
    with pytest.raises(Denied, match="WRONGPASS"):
        Redis(url.replace("clicks:p", "clicks:q")).call("GET", "adclick:a")


# -- Sentinels ------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A primary and its replica, and the Sentinels that watch them."""

    primary: RedisNode
    replica: RedisNode
    sentinels: list[RedisNode]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/clicks/0"


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    first = unused_port(5)
    primary = RedisNode(tmp_path / "primary", first, PLAIN)
    replica = RedisNode(tmp_path / "replica", first + 1, (*PLAIN, "--replicaof", "127.0.0.1", str(first)))
    sentinels = [RedisNode(tmp_path / f"sentinel{n}", first + 2 + n, ("--sentinel",)) for n in range(3)]
    try:
        for node in (primary, replica):
            node.start()
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up", 5, "the replica follows")
        for sentinel in sentinels:
            sentinel.start("sentinel.conf")
            command: Any = sentinel.client.execute_command
            command("SENTINEL", "MONITOR", "clicks", "127.0.0.1", first, 2)
            for name, value in (("down-after-milliseconds", 500), ("failover-timeout", 2000)):
                command("SENTINEL", "SET", "clicks", name, value)
        wait_until(lambda: all(map(_sees_all, sentinels)), 10, "the Sentinels know each other, and the replica")
        yield Watched(primary, replica, sentinels)
    finally:
        for node in (*sentinels, replica, primary):
            node.kill()


def _sees_all(sentinel: RedisNode) -> bool:
    state = sentinel.client.sentinel_master("clicks")
    return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


def test_connections_go_to_the_primary_that_sentinels_name_and_follow_a_fail_over(watched: Watched) -> None:
    redis = Redis(watched.url, timeout_s=2.0)
    count = redis.script("return redis.call('INCR', KEYS[1])")
    assert redis.call("SET", "a", "1") and count(["n"], []) == 1
    watched.primary.kill()
    with pytest.raises(Unavailable):
        redis.call("GET", "a")

    def counts() -> bool:
        with contextlib.suppress(Unavailable):
            return bool(count(["n"], []) == 2)
        return False

    wait_until(counts, 10, "the replica has taken over")
    assert redis.call("GET", "a") == b"1"
    assert watched.replica.client.get("n") == b"2"
    watched.sentinels[0].kill()
    assert Redis(watched.url).call("GET", "n") == b"2", "the other Sentinels answer"
    with pytest.raises(Unavailable, match="nobody"):
        Redis(watched.url.replace("clicks", "nobody")).call("GET", "n")
