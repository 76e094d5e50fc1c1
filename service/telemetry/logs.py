"""Writes structured logs to standard error, one JSON object per line, from structlog and from the standard library.

Every line that is written during a request has its `request_id`, also one of a library.
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
from service.telemetry.log_writer import DirectLogWriter, LogWriter

REQUEST_ID: ContextVar[str | None] = ContextVar("vlm2rec_request_id", default=None)
"""Id of the current request; `service.http.request_middleware` sets it in the task of the request."""

_writers: list[LogWriter | DirectLogWriter] = []


def configure_logs(settings: ObservabilitySettings, *, worker: int | None = None, threaded: bool = True) -> None:
    """Set up logging for this process; the command calls it, no import does.

    Args:
        settings: the lowest level of the lines that are written.
        worker: number of this worker process, which every line then has; None: there is only one process.
        threaded: False: lines are written without a thread, in a process that forks.
    """
    writer = LogWriter(sys.stderr.fileno()) if threaded else DirectLogWriter(sys.stderr.fileno())
    if worker is not None:
        _writers.clear()  # of the parent process
    _writers.append(writer)
    atexit.register(writer.close)
    number = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        *([] if worker is None else [_adds_worker(worker)]),
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _StructlogOutput(writer),
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
    logging.getLogger("uvicorn.access").disabled = True  # the service itself writes one line per request


def logger() -> FilteringBoundLogger:
    """The service's logger."""
    log: FilteringBoundLogger = structlog.get_logger("service")
    return log


def lines_failed() -> int:
    """Log lines of this process that could not be written."""
    return sum(writer.failed for writer in _writers)


def lines_dropped() -> int:
    """Log lines of this process that were dropped, because they were not read in time."""
    return sum(writer.dropped for writer in _writers)


class _StructlogOutput:
    """Writes the rendered lines of structlog; it needs a method for each level."""

    def __init__(self, writer: LogWriter | DirectLogWriter) -> None:
        self._writer = writer

    def msg(self, line: bytes) -> None:
        self._writer.write(line + b"\n")

    debug = info = warning = error = critical = msg


class _Handler(logging.Handler):
    """Writes the lines of the standard library's loggers."""

    def __init__(self, writer: LogWriter | DirectLogWriter) -> None:
        super().__init__()
        self._writer = writer

    def close(self) -> None:
        """Write the waiting lines, for at most a second; `logging.shutdown` calls it in a process without `atexit`."""
        self._writer.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 - as in every handler: a line that cannot be formatted must not fail its caller
            self.handleError(record)


def _adds_worker(worker: int) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401 - structlog's types
        event["worker"] = worker
        return event

    return add


def _add_request_id(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401 - structlog's types
    request_id = REQUEST_ID.get()
    if request_id is not None and "request_id" not in event:
        event["request_id"] = request_id
    return event


def _dumps(event: object, **_: object) -> bytes:
    return orjson.dumps(event, default=str)
