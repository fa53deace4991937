"""Certificates and passwords that are wrong, at each backend: one line from `adclick doctor`, and from the command that meets them."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.clickhouse.client import ClickHouse
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.redis.client import Redis
from infra.settings import Settings
from tests.clusters.certificates import LOOPBACK, Authority, Identity
from tests.conftest import ADCLICK, adclick
from tests.doctor_problems import problems
from tests.flow import environment, worker_environment
from tests.product import wait_until
from tests.tls_proxy import TlsProxy

SERVERS = {"kafka": "Kafka", "redis": "Redis", "clickhouse": "ClickHouse"}
OTHER_HOST = ("its certificate is for another IP address", "use a name that the certificate has in ADCLICK_{}")
EXPIRED = ("its certificate has expired", "renew {server}'s certificate")
UNKNOWN = ("its certificate is of an unknown authority", "name a file with that authority in ADCLICK_{}_CA")
PLAIN = {
    "kafka": "Kafka: ssl://",
    "redis": "Redis: it does not answer in TLS on this port",
    "clickhouse": "ClickHouse: it does not speak TLS on this port",
}
NO_CLIENT = ("it wants a certificate of the client", "set ADCLICK_{0}_CERTIFICATE and ADCLICK_{0}_KEY")
STRANGE_CLIENT = (
    "it does not accept the client's certificate, or does not know its authority",
    "use a certificate of an authority that {server} knows in ADCLICK_{}_CERTIFICATE",
)
Behind = Callable[..., Settings]
"""Gives settings that reach a backend by TLS."""


def said(backend: str, words: tuple[str, str]) -> str:
    """The line about a backend."""
    problem, hint = (text.format(backend.upper(), server=SERVERS[backend]) for text in words)
    return f"{SERVERS[backend]}: {problem} ({hint})"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture
def behind_tls(settings: Settings, authority: Authority) -> Iterator[Behind]:
    proxies = list[TlsProxy]()

    def make(backend: str, server: Identity, clients: Authority | None = None, **changes: str) -> Settings:
        """`clients`: the authority that a client has to have a certificate of."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate, server.key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.file)
        plain = getattr(settings, backend)
        url = plain if "://" in plain else f"kafka://{plain}"
        proxies.append(TlsProxy(url, context))
        address = url.replace(f":{urlsplit(url).port}", f":{proxies[-1].port}")
        address = address.removeprefix("kafka://").replace("redis://", "rediss://").replace("http://", "https://")
        changes = {backend: address, f"{backend}_ca": str(authority.file)} | changes
        if backend == "kafka":
            changes["kafka_security_protocol"] = "SSL"
        return settings.model_copy(update=changes)

    yield make
    for proxy in proxies:
        proxy.stop()


@pytest.mark.parametrize("backend", SERVERS)
@pytest.mark.parametrize(
    ("hosts", "expired", "known", "expected"),
    [
        (["other.example.test"], False, True, OTHER_HOST),
        (LOOPBACK, True, True, EXPIRED),
        (LOOPBACK, False, False, UNKNOWN),
    ],
    ids=["other host", "expired", "unknown authority"],
)
def test_a_certificate_of_a_server_that_is_wrong(
    behind_tls: Behind, authority: Authority, stranger: Authority, backend: str, hosts: list[str], expired: bool, known: bool,
    expected: tuple[str, str],
) -> None:  # fmt: skip
    ca = str((authority if known else stranger).file)
    wrong = behind_tls(backend, authority.issue("server", hosts, expired=expired), **{f"{backend}_ca": ca})
    assert problems(wrong) == {backend: [said(backend, expected)]}


@pytest.mark.parametrize("backend", SERVERS)
def test_a_server_that_does_not_speak_tls(settings: Settings, authority: Authority, backend: str) -> None:
    address = getattr(settings, backend).replace("redis://", "rediss://").replace("http://", "https://")
    changes = {backend: address, f"{backend}_ca": str(authority.file)}
    if backend == "kafka":
        changes["kafka_security_protocol"] = "SSL"
    (line,) = problems(settings.model_copy(update=changes))[backend]
    assert line.startswith(PLAIN[backend])
    assert f"{backend}_" in line.lower() or f"ADCLICK_{backend.upper()}" in line


def test_a_host_name_that_is_not_verified_is_a_warning(behind_tls: Behind, authority: Authority) -> None:
    settings = behind_tls("redis", authority.issue("server", ["other.example.test"]))
    settings = settings.model_copy(update={"redis": f"{settings.redis}?ssl_check_hostname=no"})
    variables = environment(settings)
    result = adclick("doctor", cwd=None, **variables)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "warning" in line]
    assert (
        "warning: the host name in the server's certificate is not verified: ADCLICK_REDIS has ssl_check_host" in line
    )
    outcomes = json.loads(adclick("doctor", "--json", cwd=None, **variables).stdout)
    warnings = [outcome for outcome in outcomes if outcome["warning"]]
    assert [(w["backend"], w["problem"]) for w in warnings] == [("redis", None)]


@pytest.mark.parametrize("backend", SERVERS)
def test_a_certificate_of_the_client_that_is_missing_or_strange(
    behind_tls: Behind, authority: Authority, stranger: Authority, backend: str
) -> None:
    server = authority.issue("server")
    assert problems(behind_tls(backend, server, authority)) == {backend: [said(backend, NO_CLIENT)]}
    own = stranger.issue("own", ())
    files = {f"{backend}_certificate": str(own.certificate), f"{backend}_key": str(own.key)}
    assert problems(behind_tls(backend, server, authority, **files)) == {backend: [said(backend, STRANGE_CLIENT)]}


@pytest.mark.parametrize("backend", SERVERS)
def test_a_file_of_our_own_that_is_wrong_is_named_and_the_other_backends_are_tried(
    behind_tls: Behind, authority: Authority, tmp_path: Path, backend: str
) -> None:
    wrong = behind_tls(backend, authority.issue("server"), **{f"{backend}_ca": str(tmp_path / "missing.pem")})
    line = f"setting {backend}_ca: {tmp_path / 'missing.pem'} cannot be read: No such file or directory"
    assert problems(wrong) == {backend: [line]}


@pytest.mark.parametrize("backend", SERVERS)
def test_the_command_that_meets_a_wrong_certificate_says_the_same_and_makes_nothing(
    behind_tls: Behind, settings: Settings, authority: Authority, backend: str
) -> None:
    wrong = behind_tls(backend, authority.issue("server", expired=True))
    wrong = wrong.model_copy(update={"namespace": f"{settings.namespace}new_"})
    result = adclick("migrate", cwd=None, **environment(wrong))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip() == f"adclick: {said(backend, EXPIRED)}"
    made = {topic.name for topic in topics.wanted(wrong)} & Admin(settings.kafka_connection).partitions().keys()
    databases = ClickHouse(settings.clickhouse, "").rows("SELECT name FROM system.databases")
    assert (made, (wrong.database,) in databases) == (set(), False)
    assert Redis(settings.redis).call("GET", f"{wrong.key_prefix}kafka") is None


@pytest.mark.parametrize("backend", ["kafka", "redis"])
def test_a_worker_that_meets_a_wrong_certificate_waits_and_says_why(
    behind_tls: Behind, authority: Authority, tmp_path: Path, backend: str
) -> None:
    wrong = behind_tls(backend, authority.issue("server", expired=True))
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen([*ADCLICK, "stream"], stderr=output, env=worker_environment(wrong, "stream-0"))
    try:
        wait_until(lambda: "waiting for a backend" in log.read_text(), 40, log.read_text)
    finally:
        worker.terminate()
        worker.wait(20)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["event"], line["why"]) for line in lines] == [("waiting for a backend", said(backend, EXPIRED))]


def test_a_user_of_redis_is_told_of_a_wrong_password_and_of_each_right_that_is_missing(settings: Settings) -> None:
    admin, user = Redis(settings.redis), f"u{settings.namespace}"
    rules = f"on >right ~{settings.key_prefix}* +@all -hset -eval -pttl"
    admin.call("ACL", "SETUSER", user, *rules.split())
    url = urlsplit(settings.redis)
    address = url._replace(scheme="redis").geturl().replace(url.netloc, f"{user}:right@{url.hostname}:{url.port}")
    try:
        lacking = [f"this user lacks {rule}: ACL SETUSER {user} {rule}" for rule in ("+pttl", "+eval", "+hset")]
        assert problems(settings.model_copy(update={"redis": address})) == {"redis": lacking}
        (wrong,) = problems(settings.model_copy(update={"redis": address.replace("right", "wrong")}))["redis"]
        assert "WRONGPASS" in wrong and "ADCLICK_REDIS" in wrong
        admin.call("ACL", "SETUSER", user, "resetkeys", "~other:*", "+@all")
        line = f"this user lacks ~{settings.key_prefix}*: ACL SETUSER {user} ~{settings.key_prefix}*"
        assert problems(settings.model_copy(update={"redis": address})) == {"redis": [line]}
    finally:
        admin.call("ACL", "DELUSER", user)
    assert admin.scan_keys(f"{settings.key_prefix}*doctor*") == []
