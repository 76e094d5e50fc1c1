"""Configures uvicorn for `service.http.protocol`."""

from typing import Any

import uvicorn

from service.http.admission import Admission
from service.http.connections import Connections


class GuardedConfig(uvicorn.Config):
    """Uvicorn's configuration with the connections and the admission that the protocol uses.

    Args:
        app: ASGI application.
        connections: all of the server.
        admission: counts the requests in progress.
        **options: of `uvicorn.Config`.
    """

    def __init__(self, app: Any, connections: Connections, admission: Admission, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(app, http="service.http.protocol:GuardedProtocol", **options)
        self.connections = connections
        self.admission = admission
