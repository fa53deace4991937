"""The proxy that stands for a bad network in other tests."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.clusters.tcp_proxy import Proxy
from tests.product import PATIENCE

_SILENCE_S = 0.2


class _Echo(socketserver.BaseRequestHandler):
    """Answers with what it is sent, and with `end` once the client has ended its side."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
            self.request.sendall(b"end")


@pytest.fixture
def echo() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def proxy(echo: str) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5 * PATIENCE)


def send_and_end(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def exchange(client: socket.socket, data: bytes) -> bytes:
    """What comes back, as many bytes as were sent."""
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        part = client.recv(1 << 16)
        if not part:
            raise ConnectionResetError
        received += part
    return received


def test_bytes_pass_in_both_directions_and_a_half_closed_side_still_receives(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4_000
    with connect(proxy) as client:
        assert exchange(client, b"hello") == b"hello"
        assert proxy.connections == 1
        received = b""
        sender = threading.Thread(target=send_and_end, args=(client, data))
        sender.start()
        while part := client.recv(1 << 16):
            received += part
        sender.join()
    assert received == data + b"end"


def test_a_cut_network_resets_and_refuses_until_it_is_restored(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert exchange(client, b"a") == b"a"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.cut()  # again: nothing changes
    proxy.restore()
    with connect(proxy) as client:
        assert exchange(client, b"b") == b"b"


def test_a_network_that_drops_is_silent_and_resets_what_lost_bytes_afterwards(proxy: Proxy) -> None:
    with connect(proxy) as before, connect(proxy) as idle:
        assert exchange(before, b"a") == exchange(idle, b"a") == b"a"
        proxy.drop()
        with connect(proxy) as during:
            for client in (before, during):
                client.settimeout(_SILENCE_S)
                client.sendall(b"lost")
                with pytest.raises(TimeoutError):
                    client.recv(1)
            proxy.restore()
            for client in (before, during):
                client.settimeout(5 * PATIENCE)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        assert exchange(idle, b"b") == b"b"


def test_a_delay_is_added_to_each_direction_and_not_to_each_chunk(proxy: Proxy) -> None:
    proxy.delay(0.1)
    with connect(proxy) as client:
        started = time.monotonic()
        assert exchange(client, b"x" * 1_000_000) == b"x" * 1_000_000
        assert time.monotonic() - started >= 0.2
        proxy.restore()
        started = time.monotonic()
        assert exchange(client, b"y") == b"y"
        assert time.monotonic() - started < 0.1 * PATIENCE


def test_a_throttled_network_delivers_so_many_bytes_a_second(proxy: Proxy) -> None:
    proxy.throttle(100_000)
    with connect(proxy) as client:
        started = time.monotonic()
        assert exchange(client, b"x" * 30_000) == b"x" * 30_000
        assert time.monotonic() - started >= 0.25


def test_a_target_that_is_away_resets_the_client() -> None:
    # Perhaps before the client has seen that it is connected.
    with Proxy("127.0.0.1:1") as nowhere, pytest.raises(ConnectionResetError), connect(nowhere) as client:
        client.recv(1)


def test_the_url_of_the_target_is_kept_with_another_place() -> None:
    with Proxy("redis://:secret@127.0.0.1:6379/3") as proxy:
        assert proxy.url == f"redis://:secret@127.0.0.1:{proxy.port}/3"
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.close()
