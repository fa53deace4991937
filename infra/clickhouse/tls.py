"""TLS to ClickHouse: the files that settings name, and one line for each way in which a handshake fails."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError

# OpenSSL's codes of X.509 verification (x509_vfy.h), each with what is wrong and what to do about it.
_VERIFICATION = {
    9: ("its certificate is not valid yet", "correct the clock of one of the two machines"),
    10: ("its certificate has expired", "renew ClickHouse's certificate"),
    62: ("its certificate is for another host name", "use a name that the certificate has in ADCLICK_CLICKHOUSE"),
    64: ("its certificate is for another IP address", "use a name that the certificate has in ADCLICK_CLICKHOUSE"),
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        ("its certificate is of an unknown authority", "name a file with that authority in ADCLICK_CLICKHOUSE_CA"),
    ),
}
# Alerts that a server sends, and what a plain one answers.
_ALERTS = {
    "CERTIFICATE_REQUIRED": (
        "it wants a certificate of the client",
        "set ADCLICK_CLICKHOUSE_CERTIFICATE and ADCLICK_CLICKHOUSE_KEY",
    ),
    "UNKNOWN_CA": (
        "it does not know the authority of the client's certificate",
        "use a certificate of an authority that ClickHouse knows in ADCLICK_CLICKHOUSE_CERTIFICATE",
    ),
    "CERTIFICATE_EXPIRED": (
        "it says that the client's certificate has expired",
        "renew the one in ADCLICK_CLICKHOUSE_CERTIFICATE",
    ),
    "WRONG_VERSION_NUMBER": ("it does not speak TLS on this port", "correct scheme or port in ADCLICK_CLICKHOUSE"),
    "RECORD_LAYER_FAILURE": ("it does not speak TLS on this port", "correct scheme or port in ADCLICK_CLICKHOUSE"),
}


@dataclass(frozen=True)
class TlsFiles:
    """Files in PEM: authorities that a server's certificate may be of (empty: those of the system), and the client's own certificate
    with its key (empty: none)."""

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """What connections are made with. Raises UserError, naming the setting, for a file that cannot be used."""
        for setting in ("ca", "certificate", "key"):
            _check_readable(setting, getattr(self, setting))
        if self.key and not self.certificate:
            raise UserError("clickhouse_key is set without clickhouse_certificate", hint="set both, or none")
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except ssl.SSLError as error:
            raise UserError(f"clickhouse_ca: {self.ca} has no certificate in PEM") from error
        if self.certificate:
            try:
                # A key with a passphrase would be asked for on the terminal.
                context.load_cert_chain(self.certificate, self.key or None, password=lambda: "")
            except (ssl.SSLError, ValueError) as error:
                raise UserError(
                    f"clickhouse_certificate: {self.certificate} and its key cannot be used together",
                    hint="both in PEM, the key without a passphrase, and of that certificate",
                ) from error
        return context


def explain_handshake(error: BaseException) -> tuple[str, str] | None:
    """What is wrong, and what to do about it, where an error came from a TLS handshake that failed; None for any other error."""
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


def _check_readable(setting: str, file: str) -> None:
    if not file:
        return
    try:
        with Path(file).open("rb"):
            pass
    except OSError as error:
        raise UserError(f"clickhouse_{setting}: {file} cannot be read: {error.strerror}") from error
