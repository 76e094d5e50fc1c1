"""The page at /docs: Swagger UI from a package instead of a content delivery network, under a strict policy."""

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

_FILES: Final = {"/docs/swagger-ui.js": "swagger-ui-bundle.js", "/docs/swagger-ui.css": "swagger-ui.css"}
_DAY = {"cache-control": "public, max-age=86400"}
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class DocsPage:
    """The page and what it needs; made once.

    Args:
        title: of the page.
        openapi_url: path of the document that it shows.
    """

    def __init__(self, title: str, openapi_url: str) -> None:
        script, style = _FILES
        self._html = bytes(
            get_swagger_ui_html(
                openapi_url=openapi_url,
                title=title,
                swagger_js_url=script,
                swagger_css_url=style,
                swagger_favicon_url="data:,",
            ).body
        )
        self._headers = {"content-security-policy": policy_of(self._html)}
        self._files = Path(str(resources.files("fastapi_offline"))) / "static"

    def register(self, app: FastAPI) -> None:
        """Add its routes."""
        app.add_api_route("/docs", self.page, methods=["GET"], include_in_schema=False)
        for path in _FILES:
            app.add_api_route(path, self.file, methods=["GET"], include_in_schema=False)

    async def page(self, _request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._html, headers=self._headers)

    async def file(self, request: Request) -> Response:
        """Script or style."""
        return FileResponse(self._files / _FILES[request.scope["path"]], headers=_DAY)


def policy_of(html: bytes) -> str:
    """The content security policy of a page: scripts and styles of this origin, and the very scripts within it.

    Args:
        html: the page; every script in it is known now, so that one that is added later does not run.
    """
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(html))
    known = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self'{known}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
