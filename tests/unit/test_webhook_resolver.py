"""Lookups of names for webhooks: a name server that hangs holds little of what all advertisers share."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections import Counter

import pytest

from query.webhooks.resolver import Resolver, ResolverBusy
from query.webhooks.sending import TargetReply, WebhookSender
from query.webhooks.targets import Address, TargetPolicy

PRIVATE = ipaddress.ip_address("10.0.0.1")


class NameServer:
    """Lookups of names that begin with `hang` end when it is released."""

    def __init__(self) -> None:
        self.released, self.asked = threading.Event(), Counter[str]()

    def look_up(self, host: str, _port: int) -> list[Address]:
        self.asked[host] += 1
        if host.startswith("hang"):
            self.released.wait(30)
        return [PRIVATE]


async def wait_for_thread(resolver: Resolver) -> None:
    """Until a lookup of advertiser 3 can begin."""
    for _ in range(100):
        try:
            await (await resolver.begin("b.example", 80, 3))
            return
        except ResolverBusy:
            pass
    raise AssertionError("no thread is free")


def test_lookups_that_hang_hold_a_few_threads_and_other_advertisers_names_are_looked_up() -> None:
    server = NameServer()

    async def run() -> None:
        resolver = Resolver(server.look_up, threads=4, of_advertiser=2, wait_s=0.2)
        hanging = [asyncio.create_task(resolver.begin(f"hang{n}.example", 80, 3)) for n in range(10)]
        assert await (await resolver.begin("a.example", 80, 4)) == [PRIVATE]
        results = await asyncio.gather(*hanging, return_exceptions=True)
        assert [isinstance(result, ResolverBusy) for result in results] == [False] * 2 + [True] * 8
        assert server.asked.total() == 3
        server.released.set()
        assert [await result for result in results[:2] if not isinstance(result, BaseException)] == [[PRIVATE]] * 2
        assert await (await resolver.begin("a.example", 80, 3)) == [PRIVATE]
        resolver.close()

    try:
        asyncio.run(run())
    finally:
        server.released.set()


def test_a_lookup_holds_its_thread_until_it_ends_also_when_its_message_was_given_up() -> None:
    server = NameServer()

    async def run() -> None:
        resolver = Resolver(server.look_up, threads=4, of_advertiser=1, wait_s=0.1)
        sender = WebhookSender(TargetPolicy(), resolver=resolver, limit_s=0.1)
        reply = await sender.post("https://hang.example/", b"{}", {}, 3)
        assert reply.problem.startswith("no response within")
        with pytest.raises(ResolverBusy):
            await sender.post("https://a.example/", b"{}", {}, 3)
        server.released.set()
        await wait_for_thread(resolver)
        assert (await sender.post("https://a.example/", b"{}", {}, 3)).problem.startswith("refused: 10.0.0.1")
        sender.close()

    try:
        asyncio.run(run())
    finally:
        server.released.set()


def test_the_time_until_a_lookup_begins_is_not_part_of_the_limit() -> None:
    server = NameServer()

    async def run() -> TargetReply:
        resolver = Resolver(server.look_up, threads=1, of_advertiser=1, wait_s=30)
        sender = WebhookSender(TargetPolicy(), resolver=resolver, limit_s=1.0)
        first = await resolver.begin("hang.example", 80, 3)
        waiting = asyncio.create_task(sender.post("https://a.example/", b"{}", {}, 4))
        await asyncio.sleep(1.5)
        assert not waiting.done() and server.asked["a.example"] == 0
        server.released.set()
        await first
        reply = await waiting
        sender.close()
        return reply

    try:
        reply = asyncio.run(run())
    finally:
        server.released.set()
    assert reply.problem.startswith("refused: 10.0.0.1") and reply.elapsed_ms < 1_000
