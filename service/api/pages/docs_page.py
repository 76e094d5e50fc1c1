"""Serves the OpenAPI document and Swagger UI at /docs, from a package and under a strict content security policy."""

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Final

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from service.api.routing import NamedRoute

_FILES: Final = {"/docs/swagger-ui.js": "swagger-ui-bundle.js", "/docs/swagger-ui.css": "swagger-ui.css"}
_DOCUMENT: Final = "/openapi.json"
_DAY = {"cache-control": "public, max-age=86400"}
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class DocsPage:
    """Document, page, script and style. All are made once: they need no key, so they must cost nothing.

    Args:
        app: has the document and gets the routes.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._document: bytes | None = None
        script, style = _FILES
        self._html = bytes(
            get_swagger_ui_html(
                openapi_url=_beside(_DOCUMENT),
                title=app.title,
                swagger_js_url=_beside(script),
                swagger_css_url=_beside(style),
                swagger_favicon_url="data:,",
            ).body
        )
        self._headers = {"content-security-policy": policy_of(self._html)}
        self._files = Path(str(resources.files("fastapi_offline"))) / "static"

    def register(self) -> None:
        """Add the routes."""
        for path, handler in (
            (_DOCUMENT, self.document),
            ("/docs", self.page),
            *((file, self.file) for file in _FILES),
        ):
            self._app.router.routes.append(NamedRoute(path, handler))

    async def document(self, _request: Request) -> Response:
        """The document."""
        if self._document is None:
            self._document = orjson.dumps(self._app.openapi())
        return Response(self._document, media_type="application/json")

    async def page(self, _request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._html, headers=self._headers)

    async def file(self, request: Request) -> Response:
        """Script or style."""
        return FileResponse(self._files / _FILES[request.scope["path"]], headers=_DAY)


def _beside(path: str) -> str:
    """A path of the service relative to the page at /docs, so that a proxy may put a prefix before both."""
    return path.removeprefix("/")


def policy_of(html: bytes) -> str:
    """The content security policy of a page: scripts and styles of this origin, and the inline scripts it has now.

    Args:
        html: the page; a script that is added to it later does not run.
    """
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(html))
    known = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self'{known}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
