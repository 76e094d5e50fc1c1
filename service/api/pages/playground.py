"""Serves the playground at `/` from the files in `service/static`, under a strict content security policy."""

from importlib import resources
from typing import Final, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api.routing import NamedRoute
from service.http.entity_tags import entity_tag, none_match

FOLDER: Final = "/playground/"
PAGE: Final = "index.html"
_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
# Scripts and styles of this origin only, none inline. Text never becomes markup: trusted types are required, and none
# may be created. `blob:` is for pictures that are fetched with a key.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Cached and revalidated each time: a new version is seen at once, an old one costs a 304.
_CACHED: Final = "no-cache"


class _StaticFile(NamedTuple):
    content: bytes
    headers: dict[str, str]


class Playground:
    """Page, scripts and styles, read once: they need no key, so they must cost nothing.

    There is one route a file, so a path of a request never becomes a path of a file.

    Args:
        app: gets the routes.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._files: dict[str, _StaticFile] = {}
        for entry in resources.files("service").joinpath("static").iterdir():
            media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
            if media_type is not None:
                path = "/" if entry.name == PAGE else FOLDER + entry.name
                self._files[path] = _file(entry.read_bytes(), media_type)

    def register(self) -> None:
        """Add the routes."""
        for path in self._files:
            self._app.router.routes.append(NamedRoute(path, self.file))

    async def file(self, request: Request) -> Response:
        """The page, a script or a style."""
        content, headers = self._files[request.scope["path"]]
        if none_match(request.headers.get("if-none-match"), headers["etag"]):
            return Response(content, headers=headers)
        return Response(status_code=304, headers={name: headers[name] for name in headers if name != "content-type"})


def _file(content: bytes, media_type: str) -> _StaticFile:
    headers = {
        "content-type": media_type,
        "etag": entity_tag(content),
        "cache-control": _CACHED,
        "content-security-policy": POLICY,
    }
    return _StaticFile(content, headers)
