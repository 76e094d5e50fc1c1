"""Counts what fails in the polls of the watcher, and logs each error once."""

from structlog.typing import FilteringBoundLogger

from service.bundles.metrics import BundleMetrics


class PollErrors:
    """The errors of the latest polls, by what failed.

    Args:
        metrics: counts every failure.
        log: the service's logger.
    """

    def __init__(self, metrics: BundleMetrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log
        self._latest: dict[str, str | None] = {}

    def report(self, what: str, error: str | None) -> None:
        """Count a failure of a poll; log it only when it changes.

        Args:
            what: was tried.
            error: what went wrong; None: nothing did.
        """
        if error is not None:
            self._metrics.failed(what)
        if self._latest.get(what) != error:
            self._latest[what] = error
            if error is not None:
                self._log.error("watcher error", what=what, detail=error)
            else:
                self._log.info("watcher recovered", what=what)
