"""Routers of one installation share a port, and no other program does. Real sockets, no backends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.errors import UserError
from infra.settings import Settings
from query.api.listener import Listener, listen
from tests.ports import unused_port


def router_of(installation: str, host: str, port: int) -> Settings:
    stores = {"kafka": f"{installation}.test:9092", "redis": f"redis://:secret@{installation}.test:6379/0"}
    return Settings.model_validate(stores | {"http": f"http://{host}:{port}"})


@pytest.fixture
def port() -> int:
    return unused_port()


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[Listener]:
    listener = listen(settings)
    listener.bound.listen()
    try:
        yield listener
    finally:
        listener.close()


@pytest.mark.parametrize("second", ["127.0.0.1", "0.0.0.0", "localhost"])
@pytest.mark.parametrize("first", ["127.0.0.1", "0.0.0.0"])
def test_a_router_of_another_installation_is_refused_and_one_of_the_same_is_not(
    port: int, first: str, second: str
) -> None:
    with listening(router_of("a", first, port)):
        with pytest.raises(UserError, match="a router of another installation listens there"):
            listen(router_of("b", second, port))
        with listening(router_of("a", second, port)):
            pass
    with listening(router_of("b", second, port)):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "",
        "a/b/c/d",
        "127.0.0.1//1-00000000",
        "127.0.0.1/no-digest/1-00000000",
        "\udcff\udcfe/ \u2028/\n",
        "127.0.0.1/x",
    ],
)
def test_sockets_of_other_programs_beside_those_of_routers_are_ignored(port: int, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0adclick-router/{port}/{name}".encode("utf-8", "surrogateescape"))
        with listening(router_of("a", "127.0.0.1", port)), listening(router_of("a", "127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ({"redis": "redis://localhost:6379/0"}, {"redis": "redis://127.0.0.1:6379/0"}),
        ({"clickhouse": "http://a:b@LOCALHOST:8123"}, {"clickhouse": "http://c:d@127.0.0.1:8123"}),
        ({"kafka": "localhost:9092,b.test:9092"}, {"kafka": "b.test:9092, 127.0.0.1:9092"}),
    ],
)
def test_this_machine_by_another_name_is_the_same_installation(
    port: int, one: dict[str, str], another: dict[str, str]
) -> None:
    http = {"http": f"http://127.0.0.1:{port}"}
    with listening(Settings.model_validate(http | one)), listening(Settings.model_validate(http | another)):
        pass


def test_a_router_that_has_not_begun_to_listen_keeps_its_port(port: int) -> None:
    starting = listen(router_of("a", "127.0.0.1", port))
    with pytest.raises(UserError, match="another installation"):
        listen(router_of("b", "127.0.0.1", port))
    starting.close()


def test_installations_on_different_addresses_share_a_port_number(port: int) -> None:
    with listening(router_of("a", "127.0.0.1", port)), listening(router_of("b", "127.0.0.2", port)):
        pass


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_of_another_program_is_refused_even_if_that_program_shares_it(port: int, shared: bool) -> None:
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(UserError, match=f"cannot listen at http://{host}:{port}.*ADCLICK_HTTP"):
                listen(router_of("a", host, port))


def test_of_two_installations_that_start_concurrently_one_gets_the_port(port: int) -> None:
    def start(installation: str) -> Listener | None:
        with contextlib.suppress(UserError):
            return listen(router_of(installation, "127.0.0.1", port))
        return None

    with ThreadPoolExecutor(8) as pool:
        listeners = list(pool.map(start, "abababab"))
    assert any(listeners)
    assert not (any(listeners[::2]) and any(listeners[1::2]))
    for listener in filter(None, listeners):
        listener.close()


@pytest.mark.parametrize("http", ["http://127.0.0.1", "http://no-such-host.invalid:8080"])
def test_an_impossible_address_is_refused_in_one_line(http: str) -> None:
    with pytest.raises(UserError) as raised:
        listen(Settings.model_validate({"http": http}))
    assert http in str(raised.value)
    assert "\n" not in str(raised.value)
