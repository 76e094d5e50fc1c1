"""Structured logs: one JSON object a line on standard error, from structlog and from the libraries' own loggers.

A line that belongs to a request has its `request_id`, whoever wrote it.
"""

import atexit
import logging
import sys
from contextvars import ContextVar
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from service.settings.groups import ObservabilitySettings
from service.telemetry.log_writer import LogWriter

REQUEST_ID: ContextVar[str | None] = ContextVar("vlm2rec_request_id", default=None)
"""The request that is worked on; set by `service.http.request_middleware`, in whose task it ends."""

_writers: list[LogWriter] = []


def configure_logs(settings: ObservabilitySettings) -> None:
    """Set up logging for this process; called by the command, never on import.

    Args:
        settings: the lowest level that is written.
    """
    writer = LogWriter(sys.stderr.fileno())
    _writers.append(writer)
    atexit.register(writer.close)
    number = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(writer),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=lambda event, **_: _dumps(event).decode()),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    logging.getLogger("uvicorn.access").disabled = True  # one line a request is written by the service itself


def logger() -> FilteringBoundLogger:
    """The service's logger."""
    made: FilteringBoundLogger = structlog.get_logger("service")
    return made


def lines_failed() -> int:
    """Lines of this process that could not be written."""
    return sum(writer.failed for writer in _writers)


def lines_dropped() -> int:
    """Lines of this process that nobody read in time."""
    return sum(writer.dropped for writer in _writers)


class _Lines:
    """What structlog writes its rendered lines to, one method a level."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, line: bytes) -> None:
        self._writer.write(line + b"\n")

    debug = info = warning = error = critical = msg


class _Handler(logging.Handler):
    """What the libraries' loggers write to."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 - as every handler does: a line that cannot be written must not fail the work
            self.handleError(record)


def _add_request_id(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401 - structlog's types
    request_id = REQUEST_ID.get()
    if request_id is not None and "request_id" not in event:
        event["request_id"] = request_id
    return event


def _dumps(event: object, **_: object) -> bytes:
    return orjson.dumps(event, default=str)
