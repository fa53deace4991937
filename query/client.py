"""A client of the router, over HTTP as users have it. A server that is not a router is reported in one line."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from infra.errors import AdclickError, Unavailable, UserError
from infra.settings import Settings

Parameters = list[tuple[str, str]]
Response = httpx.Response
_TIMEOUT_S = 30.0
# Between two chunks of an export: the router may wait for the key's rate limit.
_EXPORT_TIMEOUT_S = 300.0
_ADDRESS = "ADCLICK_HTTP says where the router is"
_KEY = "give --dir of a running stack, or ADCLICK_API_KEY; adclick keys create makes a key"


class Client:
    """Sends requests to a router. Methods raise UserError where the user can correct the cause, and Unavailable where to retry."""

    def __init__(self, settings: Settings) -> None:
        key = settings.api_key.get_secret_value()
        if not key:
            raise UserError("no API key is set", hint=_KEY)
        self._url = settings.http
        # Never through a proxy: the router is a process of this installation.
        self._http = httpx.Client(
            base_url=settings.http, headers={"Authorization": f"Bearer {key}"}, timeout=_TIMEOUT_S, trust_env=False,
            verify=ssl.create_default_context() if settings.http.startswith("https") else False,
        )  # fmt: skip

    def get(self, path: str, parameters: Parameters) -> dict[str, Any]:
        """The JSON document at a path."""
        with self._errors():
            response = self._http.get(path, params=httpx.QueryParams(tuple(parameters)))
        self._check(response, "application/json")
        try:
            document = response.json()
        except ValueError as error:
            raise self._not_a_router(response) from error
        if not isinstance(document, dict):
            raise self._not_a_router(response)
        return document

    @contextmanager
    def rows(self, parameters: Parameters, media_type: str) -> Iterator[httpx.Response]:
        """All rows of a question in a format of rows alone, as a response to be read while they arrive.

        Reading it raises Unavailable when the rows end early.
        """
        request = self._http.build_request(
            "GET", "/v1/metrics", params=httpx.QueryParams(tuple(parameters)), headers={"Accept": media_type},
            timeout=httpx.Timeout(_TIMEOUT_S, read=_EXPORT_TIMEOUT_S),
        )  # fmt: skip
        with self._errors():
            response = self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    response.read()
                self._check(response, media_type)
                yield response
            finally:
                response.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise Unavailable(
                f"the router at {self._url} does not answer", hint="adclick status shows what it waits for"
            ) from error
        except httpx.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx.RemoteProtocolError as error:
            text = str(error)
            if "incomplete" in text or "without sending complete" in text:
                raise Unavailable("the answer ended early", hint="retry") from error
            behaviour = "closes the connection without an answer" if "disconnected" in text else "does not speak HTTP"
            raise Unavailable(f"what listens at {self._url} is not a router: it {behaviour}", hint=_ADDRESS) from error
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self._url}: {error}", hint=_ADDRESS) from error

    def _unreachable(self, error: httpx.ConnectError) -> AdclickError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            detail = f"the certificate of {self._url} is not trusted: {cause.verify_message}"
            return UserError(detail, hint="SSL_CERT_FILE names a file of certificates to trust")
        if isinstance(cause, ssl.SSLError):
            return UserError(f"what listens at {self._url} does not speak TLS", hint=f"{_ADDRESS}; http:// without TLS")
        return Unavailable(f"no router answers at {self._url}: {error}", hint="is the stack up? adclick up")

    def _check(self, response: httpx.Response, media_type: str) -> None:
        """Raise UserError or Unavailable unless a router answered with this media type."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if response.status_code == 200 and kind == media_type:
            return
        if response.is_redirect:
            target = response.headers.get("location", "")[:200]
            raise UserError(f"what listens at {self._url} is not a router: it redirects to {target!r}", hint=_ADDRESS)
        problem = _problem(response) if kind == "application/problem+json" else None
        if problem is None:
            raise self._not_a_router(response)
        if response.status_code == 401:
            raise UserError(f"the router at {self._url} does not know this API key", hint=_KEY)
        raise Unavailable(problem) if response.status_code >= 500 else UserError(problem)

    def _not_a_router(self, response: httpx.Response) -> AdclickError:
        kind = response.headers.get("content-type", "no content type")[:80]
        detail = f"what listens at {self._url} is not a router: it answers with {response.status_code} and {kind}"
        return (Unavailable if response.status_code >= 500 else UserError)(detail, hint=_ADDRESS)


def _problem(response: httpx.Response) -> str | None:
    """The detail of a problem document; None for anything else."""
    try:
        detail = json.loads(response.content)["detail"]
    except (ValueError, KeyError, TypeError):
        return None
    return detail if isinstance(detail, str) else None
