"""Which URLs and addresses webhooks may be sent to."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from infra.addresses import check_networks, check_ports
from infra.settings import Settings
from query.webhooks.resolver import Resolver
from query.webhooks.sending import TargetReply, WebhookSender
from query.webhooks.targets import Address, BadTarget, TargetPolicy, literal_address

PUBLIC = TargetPolicy()
LOOPBACK = TargetPolicy.of("127.0.0.0/8", "")


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.1", "loopback"),
        ("2130706433", "loopback"),  # decimal
        ("0x7f000001", "loopback"),  # hexadecimal
        ("0x7f.0.0.1", "loopback"),
        ("0177.0.0.1", "loopback"),  # octal
        ("017700000001", "loopback"),
        ("127.0.0.1.", "loopback"),
        ("0", "unspecified"),
        ("0.0.0.0", "unspecified"),
        ("10.0.0.1", "private"),
        ("10.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("0300.0250.0.1", "private"),
        ("169.254.169.254", "link-local"),  # metadata of clouds
        ("0xa9fea9fe", "link-local"),
        ("100.64.0.1", "reserved"),  # shared by carriers
        ("192.0.2.1", "private"),  # documentation
        ("198.18.0.1", "private"),  # benchmarks
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("192.0.0.9", "reserved"),  # protocol assignments, also those that are said to be global
        ("192.0.0.170", "private|reserved"),
        ("192.0.0.255", "private|reserved"),
        ("192.88.99.1", "reserved"),  # relays of 6to4
        ("168.63.129.16", "reserved"),  # Azure's platform
        ("0xa83f8110", "reserved"),
        ("240.0.0.1", "private"),
        ("255.255.255.255", "private"),
        ("[::]", "unspecified"),
        ("[::1]", "loopback"),
        ("[0:0:0:0:0:0:0:1]", "loopback"),
        ("[fe80::1]", "link-local"),
        ("[fc00::1]", "private"),
        ("[fd00:ec2::254]", "private"),  # metadata of a cloud
        ("[fec0::1]", "site-local"),
        ("[ff02::1]", "multicast"),
        ("[2001:db8::1]", "private"),
        ("[3fff::1]", "private|reserved"),  # documentation
        ("[3fff:fff:ffff::1]", "private|reserved"),
        ("[::ffff:127.0.0.1]", "IPv4-mapped"),
        ("[::ffff:7f00:1]", "IPv4-mapped"),
        ("[::ffff:8.8.8.8]", "IPv4-mapped"),
        ("[::127.0.0.1]", "reserved"),  # IPv4-compatible
        ("[2002:7f00:1::]", "tunnel"),  # 6to4
        ("[2001:0:7f00:1::]", "tunnel"),  # Teredo
        ("[64:ff9b::7f00:1]", "translated"),
        ("[64:ff9b:1::7f00:1]", "translated"),
    ],
)
def test_an_address_that_is_not_public_is_refused_in_whatever_form(host: str, kind: str) -> None:
    with pytest.raises(BadTarget, match=kind):
        PUBLIC.parse(f"http://{host}/hook")


@pytest.mark.parametrize(
    "host",
    [
        "8.8.8.8",
        "168.63.129.17",
        "192.0.1.1",
        "192.88.100.1",
        "[3ffe::1]",
        "134744072",
        "0x08080808",
        "[2606:4700::1111]",
        "hooks.example.com",
        "a_b.example",
    ],
)
def test_public_addresses_and_names_are_accepted(host: str) -> None:
    assert PUBLIC.parse(f"https://{host}/hook").port == 443


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.com/", "http"),
        ("file:///etc/passwd", "http"),
        ("gopher://example.com:70/_x", "http"),
        ("//example.com/", "http"),
        ("https://user:secret@example.com/", "no user or password"),
        ("https://user@example.com/", "no user or password"),
        ("https://example.com@127.0.0.1/", "no user or password"),
        ("https://example.com/#frag", "before the #"),
        ("https:///path", "no host"),
        ("https://exa mple.com/", "visible ASCII"),
        ("https://example.com/a\r\nHost: b", "visible ASCII"),
        ("https://example.com\\@127.0.0.1/", "visible ASCII"),
        ("https://ex\u00e4mple.com/", "visible ASCII"),
        ("https://127。0。0。1/", "visible ASCII"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "no URL"),
        ("https://[::1/", "no URL"),
        ("https://[fe80::1%25eth0]/", "no"),
        ("https://%31%32%37.0.0.1/", "no host"),
        ("https://localhost/", "public Internet"),
        ("https://db.localhost./", "public Internet"),
        ("https://" + "a" * 2000, "more than 2,000"),
    ],
)
def test_a_url_that_is_not_fit_is_refused(url: str, why: str) -> None:
    with pytest.raises(BadTarget, match=why):
        PUBLIC.parse(url)


def test_ports_of_the_web_are_allowed_by_default_and_no_others() -> None:
    policy = TargetPolicy.of("", Settings.model_fields["webhook_ports"].default)
    for url in ("http://a.example/", "https://a.example/", "http://a.example:8080/", "https://a.example:8443/"):
        policy.parse(url)
    for port in (22, 25, 6379, 8123):
        with pytest.raises(BadTarget, match=rf"port {port} is not allowed here; use one of 80, 443, 8080, 8443"):
            policy.parse(f"http://a.example:{port}/")


def test_ports_may_be_limited() -> None:
    policy = TargetPolicy.of("", "443,8443")
    assert policy.parse("https://example.com:8443/").port == 8443
    with pytest.raises(BadTarget, match="port 22"):
        policy.parse("http://example.com:22/")


def test_an_allowed_network_is_accepted_and_no_other_form_of_it() -> None:
    assert LOOPBACK.parse("http://127.0.0.1:8000/hook?a=b").path == "/hook?a=b"
    for host in ("10.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"):
        with pytest.raises(BadTarget):
            LOOPBACK.parse(f"http://{host}/")


def test_of_the_addresses_of_a_name_only_those_allowed_are_used() -> None:
    addresses = [ipaddress.ip_address(text) for text in ("10.0.0.1", "8.8.8.8", "::1", "1.1.1.1")]
    assert [str(a) for a in PUBLIC.choose(addresses)] == ["8.8.8.8", "1.1.1.1"]
    with pytest.raises(BadTarget, match="loopback"):
        PUBLIC.choose([ipaddress.ip_address("127.0.0.1")])
    with pytest.raises(BadTarget, match="no address"):
        PUBLIC.choose([])


def test_a_name_that_resolves_to_a_private_address_is_refused_before_anything_is_connected() -> None:
    def look_up(_host: str, _port: int) -> list[Address]:
        return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("169.254.169.254")]

    async def run() -> TargetReply:
        return await WebhookSender(PUBLIC, resolver=Resolver(look_up)).post("https://rebound.example/", b"{}", {})

    reply = asyncio.run(run())
    assert (reply.status, reply.body) == (0, b"")
    assert reply.problem.startswith("refused: 169.254.169.254 is a link-local address")


@pytest.mark.parametrize(
    "text", ["example.com", "127.0.0.1.example", "1.2.3.4.5", "0x", "abc.def", "dead.beef.cafe.org"]
)
def test_names_are_no_addresses(text: str) -> None:
    assert literal_address(text) is None


def test_hosts_and_ports_stand_in_the_header_as_browsers_write_them() -> None:
    headers = {
        "https://Hooks.example.com/": "hooks.example.com",
        "https://hooks.example.com:443/": "hooks.example.com",
        "http://hooks.example.com:443/": "hooks.example.com:443",
        "https://[2606:4700::1111]:8443/": "[2606:4700::1111]:8443",
    }
    assert {url: PUBLIC.parse(url).host_header for url in headers} == headers


@pytest.mark.parametrize("text", ["10.0.0.1/8", "localhost", "10.0.0.0/33"])
def test_a_wrong_network_in_the_setting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="networks by comma"):
        check_networks(text)


def test_networks_and_ports_are_read_without_blanks() -> None:
    assert check_networks(" 10.0.0.0/8, fd00::/8 ") == "10.0.0.0/8,fd00::/8"
    assert check_ports("443, 8443") == "443,8443"
    with pytest.raises(ValueError, match="ports from 1"):
        check_ports("443,0")
