"""HTTP to addresses of our own, which never goes through a proxy, and to others, which may.

Proxies are named by `http_proxy` and its like in the environment, for what lies outside.
"""

from __future__ import annotations

import ipaddress
import ssl
import urllib.request
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def open_url(request: str | urllib.request.Request, timeout_s: float) -> HTTPResponse:
    """Open an address on this machine or in this installation. Raises OSError.

    A certificate is not checked: it names the machine as others call it.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    response: HTTPResponse = opener.open(request, timeout=timeout_s)
    return response


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an HTTPError like any other answer that is no success."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def open_with_secret(
    request: urllib.request.Request, timeout_s: float, context: ssl.SSLContext | None = None
) -> HTTPResponse:
    """Open an address from the settings with credentials: they go to that address alone, and through the environment's proxy only by TLS.
    `context`: of TLS; None: that of the system. Raises OSError."""
    proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme == "https"}
    handlers = [_NoRedirects(), urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler(proxies)]
    response: HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)
    return response


def open_anywhere(request: urllib.request.Request, timeout_s: float) -> HTTPResponse:
    """Open an address from the settings: through the environment's proxy, unless it is on this machine. Raises OSError."""
    if is_loopback(request.full_url):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    else:
        opener = urllib.request.build_opener()
    response: HTTPResponse = opener.open(request, timeout=timeout_s)
    return response
