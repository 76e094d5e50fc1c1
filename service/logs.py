"""Structured logs: one JSON object a line on standard error, from structlog and from the libraries' own loggers."""

import logging
import sys

import orjson
import structlog
from structlog.typing import FilteringBoundLogger, Processor


def configure_logs(level: str) -> None:
    """Set up logging for this process; called by the command, never on import.

    Args:
        level: least severe level written: debug, info, warning or error.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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


def _dumps(event: object, **_: object) -> bytes:
    return orjson.dumps(event, default=str)
