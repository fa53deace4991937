"""Files of TLS that settings name: each mistake is a line that names the setting, the file, and what is wrong."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.settings import Settings
from infra.tls import TlsFiles
from query.serve import check_certificate
from tests.clusters.certificates import Authority

YESTERDAY = f"{dt.datetime.now(dt.UTC) - dt.timedelta(days=1):%Y-%m-%d}"
Files = dict[str, str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good and bad files, by name."""
    authority = Authority(tmp_path / "tls")
    own, other = authority.issue("own", ()), authority.issue("other", ())
    expired, locked = authority.issue("expired", (), expired=True), authority.issue("locked", (), password="secret")
    text, both = tmp_path / "text.pem", tmp_path / "both.pem"
    text.write_text("no certificate")
    both.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    paths = {
        "ca": authority.file, "old-ca": Authority(tmp_path / "old", expired=True).file, "missing": tmp_path / "missing.pem",
        "text": text, "both": both, "own": own.certificate, "own-key": own.key, "other-key": other.key,
        "expired": expired.certificate, "expired-key": expired.key, "locked": locked.certificate, "locked-key": locked.key,
    }  # fmt: skip
    return {name: str(path) for name, path in paths.items()}


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "expected"),
    [
        ("missing", "", "", "setting {of}_ca: {missing} cannot be read: No such file or directory"),
        ("text", "", "", "setting {of}_ca: {text} has no certificate in PEM"),
        ("old-ca", "", "", "setting {of}_ca: {old-ca} expired on {yesterday} (name a file with valid authorities)"),
        ("ca", "missing", "own-key", "setting {of}_certificate: {missing} cannot be read: No such file or directory"),
        ("ca", "text", "own-key", "setting {of}_certificate: {text} has no certificate in PEM"),
        ("ca", "own", "missing", "setting {of}_key: {missing} cannot be read: No such file or directory"),
        ("ca", "own", "text", "setting {of}_key: {text} has no private key in PEM"),
        ("ca", "own", "", "setting {of}_certificate: {own} has no private key in PEM"),
        ("ca", "own", "other-key", "setting {of}_key: {other-key} is not the key of the certificate in {own}"),
        ("ca", "expired", "expired-key", "setting {of}_certificate: {expired} expired on {yesterday} (renew it)"),
        ("ca", "", "own-key", "setting {of}_key is set without {of}_certificate (set both, or none)"),
    ],
)
@pytest.mark.parametrize("backend", ["kafka", "redis", "clickhouse"])
def test_a_file_that_cannot_be_used_is_named_with_its_setting_and_what_is_wrong(
    files: Files, backend: str, ca: str, certificate: str, key: str, expected: str
) -> None:
    chosen = TlsFiles(backend, *(files.get(name, "") for name in (ca, certificate, key)))
    for use in (chosen.check, chosen.context):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value) == expected.format(of=backend, yesterday=YESTERDAY, **files)


@pytest.mark.parametrize(
    ("backend", "password", "hint"),
    [
        ("kafka", "", "set kafka_key_password"),
        ("kafka", "wrong", "correct kafka_key_password"),
        ("clickhouse", "", "use a key without a password"),
    ],
)
def test_a_key_with_another_password_is_not_asked_for_at_the_terminal(
    files: Files, backend: str, password: str, hint: str
) -> None:
    chosen = TlsFiles(backend, "", files["locked"], files["locked-key"], password)
    with pytest.raises(UserError) as error:
        chosen.check()
    assert str(error.value) == (
        f"setting {backend}_key: {files['locked-key']} has a key that this password does not open ({hint})"
    )


@pytest.mark.parametrize(
    ("certificate", "key", "password"),
    [("own", "own-key", ""), ("both", "", ""), ("locked", "locked-key", "secret"), ("", "", "")],
)
def test_good_files_make_a_context_that_checks_names(files: Files, certificate: str, key: str, password: str) -> None:
    chosen = TlsFiles("kafka", files["ca"], files.get(certificate, ""), files.get(key, ""), password)
    context = chosen.context()
    assert context.check_hostname
    assert [subject["subject"] for subject in context.get_ca_certs()] == [((("commonName", "adclick test ca"),),)]


def name_shown(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """The common name of the certificate that a client shows in a handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, True),
    )
    for _ in range(5):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    certificate: Any = ends[1].getpeercert()
    ((_, name),) = certificate["subject"][0]
    return str(name)


def test_a_certificate_that_was_renewed_is_shown_from_then_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own, other, host = authority.issue("before", ()), authority.issue("after", ()), authority.issue("localhost")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(host.certificate, host.key)
    chosen = TlsFiles("kafka", str(authority.file), str(own.certificate), str(own.key))
    context = chosen.context()
    assert name_shown(context, server) == "before"
    own.certificate.write_bytes(other.certificate.read_bytes())
    with pytest.raises(UserError, match="is not the key of"):
        chosen.renew(context)
    assert name_shown(context, server) == "before"
    own.key.write_bytes(other.key.read_bytes())
    chosen.renew(context)
    assert name_shown(context, server) == "after"


def test_the_routers_own_certificate_is_checked_alike(files: Files) -> None:
    def settings(certificate: str, key: str) -> Settings:
        return Settings.model_validate(
            {"http": "https://127.0.0.1:8443", "tls_certificate": files[certificate], "tls_key": files[key]}
        )

    check_certificate(settings("own", "own-key"))
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: check_certificate(settings("missing", "own-key")), "setting tls_certificate: .* cannot be read"),
        (lambda: check_certificate(settings("own", "other-key")), "setting tls_key: .* is not the key of"),
        (lambda: check_certificate(settings("expired", "expired-key")), "setting tls_certificate: .* expired on"),
    ]
    for check, expected in refused:
        with pytest.raises(UserError, match=expected):
            check()
