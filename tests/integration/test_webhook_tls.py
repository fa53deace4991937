"""Connections of webhooks: to the address that was checked, under the name of the URL, with its certificate."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from query.webhooks.resolver import Resolver
from query.webhooks.sending import TargetReply, WebhookSender
from query.webhooks.targets import Address, TargetPolicy

NAME = "hooks.example.test"
HERE = ipaddress.ip_address("127.0.0.1")
LOOPBACK = TargetPolicy.of("127.0.0.0/8", "")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A self-signed certificate of the name, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(plain + built.public_bytes(serialization.Encoding.PEM))
    yield file


def post(
    url: Callable[[int], str],
    answers: list[list[Address]],
    *,
    server_tls: Path | None = None,
    trusted: Path | None = None,
) -> tuple[TargetReply, list[bytes], int]:
    """Send a message to a server on this machine, with a resolver that gives these answers, one after the other. Returns the reply,
    the heads of the requests, and how often a name was looked up."""
    heads, lookups = list[bytes](), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    def look_up(_host: str, _port: int) -> list[Address]:
        nonlocal lookups
        lookups += 1
        return answers[lookups - 1]

    async def run() -> TargetReply:
        server_context = None
        if server_tls is not None:
            server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server_context.load_cert_chain(server_tls)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
        client_context = None if trusted is None else ssl.create_default_context(cafile=str(trusted))
        sender = WebhookSender(LOOPBACK, resolver=Resolver(look_up), tls=client_context)
        async with server:
            return await sender.post(url(server.sockets[0].getsockname()[1]), b"{}", {})

    return asyncio.run(run()), heads, lookups


def test_the_address_is_pinned_and_the_name_is_the_urls(certificate: Path) -> None:
    # A second look-up would find the address of another service.
    answers: list[list[Address]] = [[HERE], [ipaddress.ip_address("169.254.169.254")]]
    reply, heads, lookups = post(
        lambda port: f"https://{NAME}:{port}/a?b=c", answers, server_tls=certificate, trusted=certificate
    )
    assert (reply.status, reply.body, reply.problem, lookups) == (200, b"ok", "", 1)
    (head,) = heads
    assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert f"\r\nHost: {NAME}:".encode() in head


def test_a_certificate_of_another_name_or_of_an_unknown_authority_is_refused(certificate: Path) -> None:
    reply, heads, _ = post(
        lambda port: f"https://other.example.test:{port}/", [[HERE]], server_tls=certificate, trusted=certificate
    )
    assert reply.status == 0 and "certificate is not accepted" in reply.problem and not heads
    reply, heads, _ = post(lambda port: f"https://{NAME}:{port}/", [[HERE]], server_tls=certificate)
    assert reply.status == 0 and "certificate is not accepted" in reply.problem and not heads


def test_of_several_addresses_one_that_may_be_connected_to_is_used() -> None:
    metadata, elsewhere = ipaddress.ip_address("169.254.169.254"), ipaddress.ip_address("127.0.0.2")
    reply, heads, _ = post(lambda port: f"http://{NAME}:{port}/", [[metadata, elsewhere, HERE]])
    assert reply.status == 200 and len(heads) == 1
    reply, heads, _ = post(lambda port: f"http://{NAME}:{port}/", [[metadata]])
    assert reply.status == 0 and reply.problem.startswith("refused: 169.254.169.254") and not heads


def test_what_is_not_http_is_a_failure() -> None:
    async def run() -> TargetReply:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            return await WebhookSender(LOOPBACK).post(url, b"{}", {})

    assert asyncio.run(run()).problem == "the response is not HTTP"
