"""Controls when a connection reads, while pipelined requests wait on it."""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class PipelineFlow(FlowControl):
    """Flow control that does not resume reading while pipelined requests wait."""

    def __init__(self, transport: asyncio.Transport, pipeline: Any) -> None:  # noqa: ANN401 - uvicorn's deque
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Resume reading, unless a pipelined request waits."""
        if not self._pipeline:
            super().resume_reading()
