"""Routes of the catalogue: its items, page by page or one by one. No logic."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service import replies, schemas
from service.bodies import shown, validate
from service.errors import UnknownItem
from service.openapi import operation, path_parameter, query_parameters
from service.rendering import item_of, json_response
from service.routing import KEY_PROBLEMS, Route, Services, add_routes, admit_to_data, item_id_of

_ITEM = operation(parameters=[path_parameter("item_id", "Percent-encoded, a slash too.")])
_PAGE = operation(parameters=query_parameters(schemas.ItemsQuery))

_TABLE = (
    Route("GET", "/items", "items", "catalogue", replies.ItemsAnswer, extra=_PAGE),
    Route("GET", "/items/{item_id}", "item", "catalogue", replies.ItemAnswer, (404, *KEY_PROBLEMS), _ITEM),
)


class CatalogueRoutes:
    """The handlers; every one reads the current bundle once.

    Args:
        services: what they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_routes(app, self, _TABLE)

    async def items(self, request: Request) -> Response:
        """Browse the catalogue, page by page, in its own order."""
        admit_to_data(request, self._services, takes_query=True)
        bundle = self._services.current.get()
        page = validate(schemas.ItemsQuery, dict(request.query_params))
        end = min(page.cursor + page.limit, len(bundle))
        events = int(bundle.popularity.sum())
        hidden = self._services.directives.hidden
        rows = range(page.cursor, end)
        found = [item_of(bundle, row, events, available=bundle.ids.id(row) not in hidden) for row in rows]
        return json_response({"bundle": bundle.id, "items": found, "next": end if end < len(bundle) else None})

    async def item(self, request: Request) -> Response:
        """One item of the current bundle."""
        admit_to_data(request, self._services)
        bundle = self._services.current.get()
        item_id = item_id_of(request)
        row = bundle.ids.row(item_id)
        if row is None:
            raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(item_id)}")
        available = item_id not in self._services.directives.hidden
        return json_response(item_of(bundle, row, int(bundle.popularity.sum()), available=available))
