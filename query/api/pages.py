"""The routes of the dashboard: the page, and the files that it loads."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from infra.errors import UserError
from infra.logs import get
from query.api.negotiation import IDENTITY, preferred_coding
from query.dashboard.assets import FOLDER, Asset, Assets

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self';"
    b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of the page: nothing from elsewhere, and nothing inline."""
# The address of a file changes with what is in it; the page's does not.
_FOR_EVER, _REVALIDATED = "public, max-age=31536000, immutable", "no-cache"


def add_pages(app: Starlette) -> None:
    """Serve the dashboard at `/`. Without its libraries, a page that says so."""
    try:
        assets = Assets.load()
    except UserError as error:
        get("http").warning("the dashboard cannot be served", error=str(error))
        text = f"The dashboard cannot be shown: {error}.\nThe HTTP interface works without it; /docs describes it.\n"
        app.add_route("/", lambda _: PlainTextResponse(text, 503), include_in_schema=False)
        return

    def page(request: Request) -> Response:
        return _respond(request, assets.page, {"Cache-Control": _REVALIDATED})

    def file(request: Request) -> Response:
        asset = assets.files.get(request.url.path)
        if asset is None:
            return PlainTextResponse("no such file; reload the page: it has been updated\n", 404)
        return _respond(request, asset, {"Cache-Control": _FOR_EVER})

    app.add_route("/", page, include_in_schema=False)
    app.add_route(f"/{FOLDER}/{{path:path}}", file, include_in_schema=False)


def _respond(request: Request, asset: Asset, headers: dict[str, str]) -> Response:
    values = request.headers.getlist("accept-encoding")
    coding = preferred_coding(", ".join(values) if values else None, small=False)
    encoded = asset.encoded.get(coding or IDENTITY)
    headers |= {"Vary": "Accept-Encoding"} | ({} if encoded is None else {"Content-Encoding": coding or IDENTITY})
    return Response(asset.body if encoded is None else encoded, headers=headers, media_type=asset.media_type)
