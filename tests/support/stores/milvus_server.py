"""A Milvus for tests: milvus-lite behind its own gRPC server in this process, which can be stopped and started."""

import importlib.util
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest


class MilvusServer:
    """Milvus on a port of its own; what it holds lies in a directory.

    Args:
        directory: of the data.

    Attributes:
        uri: for clients.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._server: Any = None
        self._database: Any = None
        self.start()

    def start(self) -> None:
        from milvus_lite.adapter.grpc.server import start_server_in_thread

        self._server, self._database, _ = start_server_in_thread(str(self._directory), port=self._port)
        for name in self._database.list_collections():  # Milvus itself loads again what was loaded
            self._database.get_collection(name).load()

    def stop(self) -> None:
        """End at once, as if killed between two calls."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._database.close()
            self._server = None

    @property
    def address(self) -> str:
        """As the setting takes it."""
        return f"milvus+{self.uri}"


def open_server(directory: Path) -> MilvusServer:
    """A running server; skips the test where milvus-lite is not installed."""
    if importlib.util.find_spec("milvus_lite") is None or importlib.util.find_spec("pymilvus") is None:
        pytest.skip("pymilvus and milvus-lite are not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the imports of other libraries
        import milvus_lite.adapter.grpc.server  # noqa: F401
        import pymilvus  # noqa: F401
    return MilvusServer(directory)
