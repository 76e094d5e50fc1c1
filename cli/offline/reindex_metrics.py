"""Exports the metrics of a re-index job to node_exporter's textfile collector or a Pushgateway."""

import http.client
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway, write_to_textfile

from training.nightly.record import ReindexRecord, ReindexState

JOB = "vlm2rec_reindex"
_TIMEOUT_S = 10.0
_LIVE = ("published", "nothing to do")


def metrics_of(record: ReindexRecord, state: ReindexState) -> CollectorRegistry:
    """Make the gauges of one job; after a failure, last success and bundle are those of an earlier job.

    Args:
        record: progress and outcome of the job.
        state: re-index state of the run.
    """
    registry = CollectorRegistry()
    values: dict[str, tuple[str, float | None]] = {
        "last_run_timestamp_seconds": ("When a job last ended.", time.time()),
        "last_success_timestamp_seconds": ("When a job last ended well.", state.last_success()),
        "duration_seconds": ("What the last job took.", record.seconds),
        "exit_status": ("Exit code of the last job; 0 is success.", float(record.exit_code)),
        "embedded_items": ("Items that the model encoded in the last job.", float(record.encoded)),
        "saved_ratio": ("Share of the catalogue that needed no embedding in the last job.", record.saved),
    }
    for name, (meaning, value) in values.items():
        if value is not None:
            Gauge(f"{JOB}_{name}", meaning, registry=registry).set(value)
    items = Gauge(f"{JOB}_items", "Items of the last job by what became of them.", ["outcome"], registry=registry)
    for outcome in ("new", "changed", "unchanged", "deleted"):
        items.labels(outcome).set(getattr(record, outcome))
    items.labels("unreadable").set(len(record.unreadable))
    items.labels("not_found").set(record.not_found)
    bundle = record.bundle if record.outcome in _LIVE else state.read().get("published")
    if isinstance(bundle, str):
        info = Gauge(f"{JOB}_bundle_info", "The bundle that the job published last.", ["bundle"], registry=registry)
        info.labels(bundle).set(1)
    return registry


def export(
    registry: CollectorRegistry, *, textfile: Path | None, gateway: str | None, run: str, warn: Callable[[str], None]
) -> None:
    """Write or push metrics; a failure is a warning, because the job itself has ended.

    Args:
        registry: of :func:`metrics_of`.
        textfile: file for node_exporter, replaced atomically; None for none.
        gateway: address of a Pushgateway; None for none.
        run: name of the run, by which the gateway groups.
        warn: called with a message for each failure.
    """
    if textfile is not None:
        try:
            write_to_textfile(str(textfile), registry)
        except OSError as error:
            warn(f"{textfile}: the metrics cannot be written ({error}); check --textfile")
    if gateway is not None:
        try:
            push_to_gateway(gateway, job=JOB, registry=registry, grouping_key={"run": run}, timeout=_TIMEOUT_S)
        except (OSError, ValueError, http.client.HTTPException) as error:
            warn(f"{gateway}: the metrics cannot be pushed ({error}); check --pushgateway")
