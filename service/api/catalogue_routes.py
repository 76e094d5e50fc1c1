"""Answers the routes of the catalogue: pages of items, one item, and its picture."""

from collections.abc import Container
from functools import partial
from typing import Annotated

import orjson
from fastapi import FastAPI
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from index.filters.text_search import TextPage
from index.items.thumbnails import MEDIA_TYPE
from service.access.auth import KeyRing
from service.api import cursors, response_models
from service.api.cursors import Cursor, next_cursor
from service.api.openapi import operation, path_parameter, query_parameters
from service.api.rendering import items_of, json_response
from service.api.requests.request_body import shown, validate
from service.api.requests.request_models import MAX_WINDOW, SearchText
from service.api.routing import KEY_PROBLEMS, Operation, add_operations, admit_to_data, item_id_of
from service.bundles.active_bundle import ActiveBundle
from service.errors import NoPicture, UnknownItem
from service.http.entity_tags import entity_tag, none_match
from service.runtime.bounded_executor import BoundedExecutor
from service.settings.plain_numbers import PlainNumbers


class ItemsQuery(PlainNumbers):
    """Query parameters of ``GET /items``."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=MAX_WINDOW, description="Items wanted.")
    cursor: Annotated[str, Field(pattern=cursors.PATTERN)] = Field(
        "0",
        description="`next` of the page before, taken as it is; or a number: a place in whichever catalogue answers.",
    )
    q: SearchText | SkipJsonSchema[None] = Field(
        None, description="A text that the id, the title or another text field contains, whatever the case."
    )


# A picture changes with the bundle. The key of a request decides who may see it, so no shared cache may keep it.
_CACHED = "private, max-age=3600"
_ITEM = operation(parameters=[path_parameter("item_id", "Percent-encoded, a slash too.")])
_PAGE = operation(parameters=query_parameters(ItemsQuery))

_OPERATIONS = (
    Operation(
        "GET",
        "/items",
        "items",
        "catalogue",
        response_models.ItemsAnswer,
        (410, *KEY_PROBLEMS),
        _PAGE,
        scope="catalogue",
    ),
    Operation(
        "GET",
        "/items/{item_id}",
        "item",
        "catalogue",
        response_models.ItemAnswer,
        (404, *KEY_PROBLEMS),
        _ITEM,
        scope="catalogue",
    ),
    Operation(
        "GET",
        "/items/{item_id}/image",
        "image",
        "catalogue",
        None,
        (404, *KEY_PROBLEMS),
        _ITEM,
        MEDIA_TYPE,
        "catalogue",
    ),
)


class CatalogueRoutes:
    """Handlers of the catalogue; each reads the active bundle once.

    Args:
        keys: of the data routes.
        active_bundle: the bundle that answers.
        hidden: ids that operators have hidden.
        executor: runs what takes longer than a recommendation.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        hidden: Container[str],
        executor: BoundedExecutor,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._hidden = hidden
        self._executor = executor

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def items(self, request: Request) -> Response:
        """Browse the catalogue, page by page, in its own order, or look for a text in it."""
        trace = admit_to_data(request, self._keys, self._active_bundle, takes_query=True)
        page = validate(ItemsQuery, dict(request.query_params))
        bundle = self._active_bundle.get()
        Cursor.read(page.cursor).check(bundle.id, page.q)
        trace.lap("parse")
        content = await self._executor.run(partial(_page, bundle, page, self._hidden))
        trace.lap("browse")
        return Response(content, media_type="application/json")

    async def item(self, request: Request) -> Response:
        """One item of the current bundle."""
        admit_to_data(request, self._keys, self._active_bundle)
        bundle = self._active_bundle.get()
        return json_response(items_of(bundle, [_row(bundle, request)], self._hidden)[0])

    async def image(self, request: Request) -> Response:
        """A small picture of an item, at most 256 pixels a side."""
        admit_to_data(request, self._keys, self._active_bundle)
        bundle = self._active_bundle.get()
        row = _row(bundle, request)
        picture = None if bundle.thumbnails is None else bundle.thumbnails.get(row)
        if picture is None:
            raise NoPicture(f"bundle {bundle.id} has no picture of item {shown(bundle.ids.id(row))}")
        headers = {"ETag": entity_tag(picture), "Cache-Control": _CACHED}
        if not none_match(request.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(picture, headers=headers, media_type=MEDIA_TYPE)


def _page(bundle: Bundle, page: ItemsQuery, hidden: Container[str]) -> bytes:
    """The JSON of one page. It runs beside the thread that hides items; a look-up in a set is atomic."""
    start = Cursor.read(page.cursor).position
    if page.q is None:
        end = min(start + page.limit, len(bundle))
        found = TextPage(list(range(start, end)), end if end < len(bundle) else None)
    else:
        found = bundle.text_search.page(page.q, start, page.limit)
    following = None if found.next is None else next_cursor(found.next, bundle.id, page.q)
    return orjson.dumps({"bundle": bundle.id, "items": items_of(bundle, found.rows, hidden), "next": following})


def _row(bundle: Bundle, request: Request) -> int:
    """The row of the item in the path.

    Raises:
        UnknownItem: the bundle does not have it.
    """
    item_id = item_id_of(request, bundle.id)
    row = bundle.ids.row(item_id)
    if row is None:
        raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(item_id)}")
    return row
