"""TLS of Kafka, Redis, ClickHouse and the router: the files that settings name, checked before they are used, and one line for each way
in which a handshake fails. The only module that imports cryptography."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import Denied, UserError

CORRECT_PORT = "correct scheme, protocol or port in ADCLICK_{setting}"
_BEGIN_KEY, _ENCRYPTED = b"PRIVATE KEY-----", b"ENCRYPTED"
# OpenSSL's codes of X.509 verification (x509_vfy.h), each with what is wrong and what to do about it.
_VERIFICATION = {
    9: ("its certificate is not valid yet", "correct the clock of one of the two machines"),
    10: ("its certificate has expired", "renew {server}'s certificate"),
    62: ("its certificate is for another host name", "use a name that the certificate has in ADCLICK_{setting}"),
    64: ("its certificate is for another IP address", "use a name that the certificate has in ADCLICK_{setting}"),
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        ("its certificate is of an unknown authority", "name a file with that authority in ADCLICK_{setting}_CA"),
    ),
}
# Alerts that a server sends, and what a plain one answers.
_ALERTS = {
    "CERTIFICATE_REQUIRED": (
        "it wants a certificate of the client",
        "set ADCLICK_{setting}_CERTIFICATE and ADCLICK_{setting}_KEY",
    ),
    **dict.fromkeys(
        # Java says the latter two of an authority that it does not know.
        ("UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "BAD_CERTIFICATE"),
        (
            "it does not accept the client's certificate, or does not know its authority",
            "use a certificate of an authority that {server} knows in ADCLICK_{setting}_CERTIFICATE",
        ),
    ),
    "CERTIFICATE_EXPIRED": (
        "it says that the client's certificate has expired",
        "renew the one in ADCLICK_{setting}_CERTIFICATE",
    ),
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"), ("it does not speak TLS on this port", CORRECT_PORT)
    ),
}


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one backend's settings, empty where none is named. `ca`: authorities that a server's certificate may be of (empty:
    those of the system); `certificate`: our own with its chain, `key`: its key (empty: in the same file)."""

    backend: str = ""
    """What its settings begin with: `kafka`, `redis`, `clickhouse`, or `tls` for the router's own."""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    key_password: str = field(default="", repr=False)

    def check(self) -> None:
        """Raise UserError, naming the setting and the file, for one that cannot be used."""
        self._check_authorities()
        self._load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def context(self) -> ssl.SSLContext:
        """What connections of a client are made with. Raises UserError as `check` does."""
        self._check_authorities()
        context = ssl.create_default_context(cafile=self.ca or None)
        self._load_own(context)
        return context

    def renew(self, context: ssl.SSLContext) -> None:
        """Have connections that `context` makes from now on use the files as they are now. Raises UserError as `check` does; then the former
        ones are used."""
        self.check()
        if self.ca:
            context.load_verify_locations(cafile=self.ca)
        self._load_own(context)

    def _check_authorities(self) -> None:
        if not self.ca:
            return
        content = self._read("ca", self.ca)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=self.ca)
        except (OSError, ValueError) as error:
            raise self._unusable("ca", self.ca, "has no certificate in PEM") from error
        last = max((end for _, end in _validity(content)), default=None)
        if last is not None and last < dt.datetime.now(dt.UTC):
            raise self._unusable("ca", self.ca, f"expired on {last:%Y-%m-%d}", "name a file with valid authorities")

    def _load_own(self, context: ssl.SSLContext) -> None:
        """Our own certificate and its key, where there are any."""
        if not self.certificate:
            if self.key:
                name = self.backend
                raise UserError(f"setting {name}_key is set without {name}_certificate", hint="set both, or none")
            return
        key_setting, key_file = ("key", self.key) if self.key else ("certificate", self.certificate)
        content, key = self._read("certificate", self.certificate), self._read(key_setting, key_file)
        if b"BEGIN CERTIFICATE-----" not in content and b"BEGIN TRUSTED CERTIFICATE-----" not in content:
            raise self._unusable("certificate", self.certificate, "has no certificate in PEM")
        if _BEGIN_KEY not in key:
            raise self._unusable(key_setting, key_file, "has no private key in PEM")
        try:
            # Without a password OpenSSL would ask for it at the terminal.
            context.load_cert_chain(self.certificate, self.key or None, lambda: self.key_password)
        except (OSError, ValueError) as error:
            raise self._explain_pair(error, key_setting, key_file, key) from error
        for start, end in _validity(content)[:1]:  # behind it are those of its chain
            now = dt.datetime.now(dt.UTC)
            if end < now:
                raise self._unusable("certificate", self.certificate, f"expired on {end:%Y-%m-%d}", "renew it")
            if start > now:
                hint = "correct this machine's clock, or use another"
                raise self._unusable(
                    "certificate", self.certificate, f"is not valid before {start:%Y-%m-%d %H:%M} UTC", hint
                )

    def _explain_pair(self, error: Exception, setting: str, file: str, key: bytes) -> UserError:
        """What is wrong with a certificate and a key that OpenSSL does not load."""
        reason = getattr(error, "reason", None) or ""
        if reason == "KEY_VALUES_MISMATCH":
            return self._unusable(setting, file, f"is not the key of the certificate in {self.certificate}")
        if _ENCRYPTED in key:
            if self.backend == "kafka":
                hint = "set kafka_key_password" if not self.key_password else "correct kafka_key_password"
            else:
                hint = "use a key without a password"
            return self._unusable(setting, file, "has a key that this password does not open", hint)
        what = f"cannot be used with {self.certificate}" if file != self.certificate else "cannot be used"
        return self._unusable(setting, file, f"{what}: {reason or error}")

    def _read(self, setting: str, file: str) -> bytes:
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise self._unusable(setting, file, f"cannot be read: {error.strerror}") from error

    def _unusable(self, setting: str, file: str, what: str, hint: str = "") -> UserError:
        return UserError(f"setting {self.backend}_{setting}: {file} {what}", hint=hint)


def handshake_failure(backend: str, server: str, error: BaseException) -> Denied | None:
    """What is wrong, and what to do about it, where an error came from a TLS handshake that failed; None for any other error. `server`:
    what messages call it."""
    words = _explain(error)
    if words is None:
        return None
    problem, hint = (text.format(server=server, setting=backend.upper()) for text in words)
    return Denied(f"{server}: {problem}", hint=hint, backend=backend, code="TLS")


def is_handshake_timeout(error: BaseException) -> bool:
    """Whether a server accepted a connection and then did not answer a TLS handshake in time, as one does that waits for plain text."""
    return any(isinstance(cause, TimeoutError) and "handshake" in str(cause) for cause in _causes(error))


def _explain(error: BaseException) -> tuple[str, str] | None:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _VERIFICATION:
            return _VERIFICATION[cause.verify_code]
        if isinstance(cause, ssl.SSLError):
            text = f"{cause.reason or cause}".upper().replace(" ", "_")
            if words := next((words for name, words in _ALERTS.items() if name in text), None):
                return words
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it. urllib3 has some as an argument alone."""
    remaining, seen = list[BaseException | None]([error]), set[int]()
    while remaining:
        cause = remaining.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            inner = (part for part in cause.args if isinstance(part, BaseException))
            remaining += [*inner, cause.__context__, cause.__cause__]


def expiry_of(file: str) -> dt.datetime | None:
    """Until when the first certificate in a PEM file is valid; None where that cannot be read."""
    try:
        content = Path(file).read_bytes()
    except OSError:
        return None
    return next((end for _, end in _validity(content)), None)


def _validity(content: bytes) -> list[tuple[dt.datetime, dt.datetime]]:
    """From when to when each certificate in PEM is valid; none where it is of a form that only OpenSSL reads."""
    from cryptography import x509  # which takes 50 ms

    with contextlib.suppress(ValueError):
        return [(c.not_valid_before_utc, c.not_valid_after_utc) for c in x509.load_pem_x509_certificates(content)]
    return []
