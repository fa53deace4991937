"""Addresses in settings: which are accepted, and how one is shown without its secrets. Pure."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from infra.http_client import is_loopback
from infra.redis.access import SCHEMES, check_options

MASK = "********"

# Properties of librdkafka by which a broker would be less verified than by the other clients.
_OF_ALL_CLIENTS = frozenset(
    {"enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm", "security.protocol"}
)
_SECRET_NAME = re.compile(r"key|secret|token|passw|signature|credential", re.IGNORECASE)
_HOST = re.compile(r"\[[0-9A-Fa-f:.%\w]+\]|[^\s:/?#@\[\]]+")
_PORTS = range(1, 65536)
_HTTP = ("http", "https")
_REDIS_PATHS = {"": r"/?|/\d+", "cluster": r"/?|/0", "sentinel": r"/[^/]+/?(\d+)?"}
_REDIS_ENDS = {
    "": "must end with the number of a database, like /0",
    "cluster": "must end after the hosts: a cluster has one database",
    "sentinel": "must end with the name of the primary, and perhaps the number of a database, like /mymaster/0",
}


def mask(text: str) -> str:
    """The address with passwords replaced, whatever characters they contain; also where the scheme is missing.

    A password may be badly encoded, so it reaches to the last `@` rather than to where a URL's authority ends.
    """
    if text.startswith(("/", ".", "~")):
        return text  # a folder
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    head, question, query = rest.partition("?")
    if "@" in query and scheme != "s3":
        return f"{scheme}{separator}{MASK}"  # the ? may stand in a password: where that ends cannot be known
    userinfo, at, place = head.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    if colon:
        userinfo = f"{user}:{MASK}"
    return f"{scheme}{separator}{userinfo}{at}{place}{question}{_mask_query(query)}"


def mask_webhook(url: str) -> str:
    """The address of a webhook: its path is as good as a password."""
    scheme, separator, rest = mask(url).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host}{slash}{MASK if path else ''}"


def _mask_query(query: str) -> str:
    parts, secret = list[str](), False
    for part in query.split("&"):
        name, equals, _ = part.partition("=")
        if equals:
            secret = bool(_SECRET_NAME.search(name))
            parts.append(f"{name}={MASK}" if secret else part)
        elif not secret:  # the rest of a secret that contains an ampersand is left out
            parts.append(part)
    return "&".join(parts)


def check_brokers(text: str) -> str:
    """Kafka's bootstrap servers, without blanks. Raises ValueError."""
    if "://" in text:
        raise ValueError("must be HOST:PORT, several by comma, without a scheme")
    brokers = [broker.strip() for broker in text.split(",")]
    for broker in brokers:
        _check_host(broker)
    return ",".join(brokers)


def properties_of(text: str) -> dict[str, str]:
    """NAME=VALUE by comma. Raises ValueError."""
    properties = dict[str, str]()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"[a-z][A-Za-z0-9._-]*", name):
            raise ValueError("must be NAME=VALUE, several by comma, like client.rack=eu-1a")
        properties[name] = value
    return properties


def mask_properties(text: str) -> str:
    """Properties with the values of secret ones replaced, up to their ends: a password may contain a comma."""
    return re.sub(rf"(?i)([^,=]*(?:{_SECRET_NAME.pattern})[^,=]*=).*", rf"\1{MASK}", text)


def check_properties(text: str) -> str:
    """Properties of librdkafka by comma. Raises ValueError."""
    if secret := next((name for name in properties_of(text) if _SECRET_NAME.search(name)), None):
        raise ValueError(f"must not contain {secret}, which everybody could read: there is a setting for it")
    if partial := _OF_ALL_CLIENTS & properties_of(text).keys():
        raise ValueError(f"must not contain {min(partial)}: of all clients of Kafka only librdkafka would follow it")
    return text


def check_spark_properties(text: str) -> str:
    """Properties of Spark by comma. Raises ValueError."""
    if foreign := next((name for name in properties_of(text) if not name.startswith("spark.")), None):
        raise ValueError(f"must not contain {foreign}: Spark's properties begin with spark.")
    return text


def check_listen(text: str) -> str:
    """The address of the router, without a slash at its end. Raises ValueError."""
    url = _split(text, _HTTP)
    if url.username is not None:
        raise ValueError("must not contain a user or password")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(f"must end after the port, like {url.scheme}://HOST:PORT")
    return text.rstrip("/")


def check_origins(text: str) -> str:
    """Origins by comma, as browsers write them: in lower case, without the scheme's usual port; or `*`. Raises ValueError."""
    return ",".join(dict.fromkeys(_origin(part.strip()) for part in text.split(",") if part.strip()))


def _origin(text: str) -> str:
    if text == "*":
        return text
    url = urlsplit(check_listen(text.lower()))
    usual = {"http": 80, "https": 443}[url.scheme]
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}" if url.port in (None, usual) else f"{url.scheme}://{host}:{url.port}"


def check_clickhouse(text: str) -> str:
    """ClickHouse's HTTP address. Raises ValueError."""
    url = _split(text, _HTTP)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError("must end after the port: the setting `namespace` chooses the database")
    return text


def check_redis(text: str) -> str:
    """Redis' URL: of one server, of nodes of a cluster, or of Sentinels. Raises ValueError."""
    if text.startswith("unix://"):
        check_options(text.partition("?")[2])
        return text
    url = _split(text, SCHEMES, several=True)
    mode = url.scheme.partition("+")[2]
    if "," in url.netloc.rpartition("@")[2] and not mode:
        raise ValueError(f"must begin with {url.scheme}+cluster:// or {url.scheme}+sentinel:// to name several hosts")
    if url.fragment or not re.fullmatch(_REDIS_PATHS[mode], url.path):
        raise ValueError(_REDIS_ENDS[mode])
    check_options(url.query)
    return text


def check_archive(text: str) -> str:
    """A folder, also below `~`, or s3://BUCKET/PREFIX. Raises ValueError."""
    if "://" in text and not re.match(r"s3://[^/?]", text):
        raise ValueError("must be a folder or s3://BUCKET/PREFIX")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError("is below ~, but no home folder is known") from None


def check_networks(text: str) -> str:
    """Networks in CIDR notation, by comma. Raises ValueError."""
    networks = [part.strip() for part in text.split(",") if part.strip()]
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"must be networks by comma, like 10.0.0.0/8: {error}") from None
    return ",".join(networks)


def check_ports(text: str) -> str:
    """Numbers of ports, by comma. Raises ValueError."""
    ports = [part.strip() for part in text.split(",") if part.strip()]
    if not all(re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) and int(port) in _PORTS for port in ports):
        raise ValueError("must be ports from 1 to 65535, by comma, like 443,8443")
    return ",".join(ports)


def check_web(text: str) -> str:
    """Any address of the web, or none. Raises ValueError."""
    if text:
        _split(text, _HTTP)
    return text


def check_token_endpoint(text: str) -> str:
    """An address that a secret is sent to, or none. Raises ValueError."""
    if check_web(text).startswith("http:") and not is_loopback(text):
        raise ValueError(
            "must begin with https://, since the client's secret is sent there, unless it is on this machine"
        )
    return text


def _split(text: str, schemes: tuple[str, ...], *, several: bool = False) -> SplitResult:
    """The parts of a URL, with `several` hosts by comma. Messages never contain it: it may hold a password."""
    if not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    try:
        url = urlsplit(text)
    except ValueError:
        raise ValueError("is no URL: an IPv6 address stands in brackets, like [::1]") from None
    if "@" in url.path + url.fragment or ("@" in url.query and "@" not in url.netloc):
        raise ValueError("must have / ? # and @ in its password percent-encoded (%2F %3F %23 %40)")
    for host in url.netloc.rpartition("@")[2].split(",") if several else [url.netloc.rpartition("@")[2]]:
        _check_host(host)
    return url


def _check_host(text: str) -> None:
    host = _HOST.match(text)
    if host is None:
        raise ValueError("names no host")
    port = text[host.end() :]
    if not port:
        return
    if port.count(":") > 1:
        raise ValueError("must have an IPv6 address in brackets, like [::1]")
    if not re.fullmatch(r":\d{1,5}", port) or int(port[1:]) not in _PORTS:
        raise ValueError("must end with a port from 1 to 65535, like HOST:9092")
