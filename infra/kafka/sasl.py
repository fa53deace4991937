"""A broker's connection as a socket of our own: by TLS where the installation says so, and authenticated by SASL.

https://kafka.apache.org/protocol#The_Messages_SaslHandshake and SaslAuthenticate, both version 1; SCRAM (RFC 5802) as aiokafka does it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Generator

from aiokafka.conn import ScramAuthenticator

from infra.errors import Denied
from infra.hosts import split_address
from infra.kafka.connection import OAUTHBEARER, Connection, Sasl
from infra.kafka.errors import CREDENTIALS, OPEN_LISTENER
from infra.kafka.fetch_protocol import receive_into
from infra.kafka.tokens import token_of
from infra.tls import handshake_failure

_CONNECT_S, _PORT = 3.0, 9092
_HANDSHAKE, _API_VERSIONS, _AUTHENTICATE, _VERSION, _CLIENT = 17, 18, 36, 1, b"adclick"
_LARGEST_ANSWER = 1 << 20
_ILLEGAL_STATE = 34
# Of the time after which a broker closes a connection whose credentials were not renewed.
_USED_OF_A_SESSION = 0.8


class Connector:
    """Opens connections to brokers."""

    def __init__(self, kafka: Connection) -> None:
        """Raises UserError for a file of TLS that cannot be used."""
        self._kafka = kafka
        self._context = None if kafka.tls is None else kafka.tls.context()

    def open(self, address: tuple[str, int], timeout_s: float) -> tuple[socket.socket, float]:
        """A connection, and until when (`time.monotonic`) it is good. Raises OSError, EOFError, and Denied where the broker refuses
        credentials, or one of the two the other's certificate."""
        connection = socket.create_connection(address, min(_CONNECT_S, timeout_s))
        try:
            connection.settimeout(timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_hostname=address[0])
            good_for_s = float("inf") if self._kafka.sasl is None else _authenticate(connection, self._kafka.sasl)
            return connection, time.monotonic() + good_for_s
        except BaseException as error:
            connection.close()
            if (failure := handshake_failure("kafka", "Kafka", error)) is not None:
                raise failure from error
            raise

    def ask(self, address: tuple[str, int], timeout_s: float, kind: int, body: bytes) -> bytes:
        """The body of the answer to one request, of version 1, over a connection of its own. Raises as `open` does."""
        connection, _ = self.open(address, timeout_s)
        with connection:
            return _ask(connection, kind, body)

    def check(self, address: tuple[str, int], timeout_s: float) -> None:
        """Connect and wait for an answer. Raises as `open` does: since TLS 1.3 a broker that refuses our certificate says so in place of
        its first answer."""
        connection, _ = self.open(address, timeout_s)
        with connection:
            try:
                answer = _ask(connection, _API_VERSIONS, b"")
            except OSError as error:
                if (failure := handshake_failure("kafka", "Kafka", error)) is not None:
                    raise failure from error
                raise
        (error_code,) = struct.unpack_from(">h", answer)
        if error_code == _ILLEGAL_STATE:
            raise _refused("a broker has not accepted the credentials of this connection")
        if error_code:
            raise OSError(f"a broker answers with error {error_code}")


def refused_handshake(kafka: Connection) -> Denied | None:
    """Why a broker and we do not trust each other, by the first broker that is reached; None where they do, or none is reached."""
    connector, deadline = Connector(kafka), time.monotonic() + _CONNECT_S
    for server in kafka.servers.split(","):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        try:
            connector.check(split_address(server, _PORT), left_s)
        except Denied as error:
            return error
        except (OSError, EOFError):
            continue
        break
    return None


def _authenticate(connection: socket.socket, sasl: Sasl) -> float:
    """Make ourselves known; returns for how many seconds the broker keeps the connection."""
    mechanism = sasl.mechanism.encode()
    answer = _ask(connection, _HANDSHAKE, struct.pack(">h", len(mechanism)) + mechanism)
    error, count = struct.unpack_from(">hi", answer)
    if error == _ILLEGAL_STATE:
        raise Denied(
            "Kafka: a broker takes no credentials at this address",
            hint=OPEN_LISTENER, backend="kafka", code="ILLEGAL_SASL_STATE",
        )  # fmt: skip
    if error:
        offered = b", ".join(_texts(answer, 6, count)).decode(errors="replace")
        raise Denied(
            f"Kafka: a broker does not take {sasl.mechanism}, but {offered}",
            hint="set kafka_sasl_mechanism",
            backend="kafka",
            code="UNSUPPORTED_SASL_MECHANISM",
        )
    steps = _steps(sasl)
    message = next(steps)
    while True:
        reply, good_for_ms = _step(connection, message)
        if reply and sasl.mechanism == OAUTHBEARER:
            raise _refused_token(connection, reply)
        try:
            message = steps.send(reply)
        except StopIteration:
            return good_for_ms / 1000 * _USED_OF_A_SESSION if good_for_ms > 0 else float("inf")
        except (KeyError, ValueError) as error:
            raise _refused(f"a broker's answer is wrong: {error}") from error


def _steps(sasl: Sasl) -> Generator[bytes, bytes, None]:
    """What to send, one after the other; gets what the broker answers."""
    if sasl.mechanism == "PLAIN":
        yield f"\0{sasl.user}\0{sasl.password}".encode()
    elif sasl.mechanism == OAUTHBEARER:
        yield f"n,,\x01auth=Bearer {token_of(sasl.tokens)[0]}\x01\x01".encode()
    else:
        scram = ScramAuthenticator(
            loop=None,
            sasl_plain_username=sasl.user,
            sasl_plain_password=sasl.password,
            sasl_mechanism=sasl.mechanism,
        ).authenticator_scram()
        message, _ = next(scram)
        while True:
            reply = yield message
            try:
                message, _ = scram.send(reply)
            except StopIteration:
                return


def _step(connection: socket.socket, message: bytes) -> tuple[bytes, int]:
    """One SaslAuthenticate: the broker's answer, and for how many ms the session lasts. Raises Denied."""
    answer = _ask(connection, _AUTHENTICATE, struct.pack(">i", len(message)) + message)
    error, size = struct.unpack_from(">hh", answer)
    at = 4 + max(0, size)
    if error:
        raise _refused(answer[4:at].decode(errors="replace"))
    (length,) = struct.unpack_from(">i", answer, at)
    at += 4
    (good_for_ms,) = struct.unpack_from(">q", answer, at + max(0, length))
    return bytes(answer[at : at + max(0, length)]), good_for_ms


def _refused_token(connection: socket.socket, challenge: bytes) -> Denied:
    """What a broker has against a token. It says so in place of success, and waits for a byte before it ends the exchange (RFC 7628, 3.2.3)."""
    with contextlib.suppress(Denied, OSError, EOFError):
        _step(connection, b"\x01")
    try:
        status = str(json.loads(challenge)["status"])[:100]
    except (KeyError, TypeError, ValueError):
        status = "no status"
    return _refused(f"a broker does not accept the token: {status}")


def _refused(why: str) -> Denied:
    return Denied(f"Kafka: {why}", hint=CREDENTIALS, backend="kafka", code="SASL_AUTHENTICATION_FAILED")


def _ask(connection: socket.socket, kind: int, body: bytes) -> bytes:
    """The body of the answer to one request. Raises OSError, EOFError."""
    request = struct.pack(">hhih", kind, _VERSION, 0, len(_CLIENT)) + _CLIENT + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    (size,) = struct.unpack(">i", _received(connection, 4))
    if not 4 <= size <= _LARGEST_ANSWER:
        raise OSError(f"a response of {size} bytes")
    return _received(connection, size)[4:]


def _received(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    receive_into(connection, memoryview(data))
    return bytes(data)


def _texts(answer: bytes, at: int, count: int) -> list[bytes]:
    texts = []
    for _ in range(count):
        (size,) = struct.unpack_from(">h", answer, at)
        texts.append(answer[at + 2 : at + 2 + size])
        at += 2 + size
    return texts
