"""Merges the metrics of all worker processes, whichever of them is asked (docs/adr/0030).

- Counters and histograms lie in files in the shared directory, in the format of prometheus_client's multiprocess mode,
  and are summed. A file belongs to a worker's number, not to its process: a replacement goes on with the numbers of the
  worker that died, so no count is lost and none falls.
- Gauges, also those that are computed at a scrape, are published by each worker every second and merged by `RULES`.

The library's own values for that mode take twice as long, and its gauges neither call functions nor forget a label.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MutexValue

from index.machine.disk import allocate
from service.runtime.worker_board import WorkerBoard, WorkerState
from service.settings.worker_place import WorkerPlace

_FILE_BYTES: Final = {"counter": 256 << 10, "histogram": 1 << 20}  # taken at the start; a file may grow beyond
_CPU: Final = "process_cpu_seconds_total"
_Key = tuple[str, tuple[tuple[str, str], ...]]


def _mean(numbers: list[float]) -> float:
    """Mean of the workers that have measured something."""
    measured = [number for number in numbers if not math.isnan(number)]
    return fmean(measured) if measured else math.nan


RULES: Final[dict[str, Callable[[list[float]], float]]] = {
    "vlm2rec_requests_in_progress": sum,
    "vlm2rec_connections": sum,
    "vlm2rec_queue_depth": sum,
    "vlm2rec_log_lines_dropped": sum,
    "vlm2rec_log_lines_failed": sum,
    "vlm2rec_recall": _mean,
    "vlm2rec_slot_share": _mean,
    "vlm2rec_slot_balance": _mean,
    "process_virtual_memory_bytes": sum,
    "process_resident_memory_bytes": sum,
    "process_open_fds": sum,
    "process_max_fds": min,
    "process_start_time_seconds": min,
    _CPU: sum,
}
"""How the gauges of several workers become one number, by sample name. The default is `max`: most gauges are equal in
all workers (the figures of the bundle) or worst where they are highest (how long ago the watcher polled)."""


class WorkerMetrics:
    """The metrics of one worker, which the others can read, and those of all workers together.

    Args:
        place: which worker this is.
        board: shows which workers run.
    """

    def __init__(self, place: WorkerPlace, board: WorkerBoard) -> None:
        self._place = place
        self._board = board
        self._files: dict[str, MmapedDict] = {}
        self._cells: dict[str, tuple[object, memoryview[float]]] = {}
        self._creating = Lock()
        # Not found by their names in a registry, as they do not describe themselves.
        self._of_process = (ProcessCollector(registry=None), PlatformCollector(registry=None))
        self._names: list[str] = []
        self._published: list[list[Any]] = []
        earlier = [sample for family in self._read(place.number) for sample in family[3] if sample[0] == _CPU]
        self._cpu_before = sum(sample[2] for sample in earlier)

    def install(self) -> None:
        """Keep the counters and histograms of this process, which are created from now on, in the shared files."""
        values.ValueClass = self._value_of

    def publish(self, registry: CollectorRegistry) -> None:
        """Let the other workers read the gauges of this one as they are now.

        Args:
            registry: all metrics of this process.

        Raises:
            OSError: there is no room for them; the others still have those of before.
        """
        self._collect(registry)
        self._write()

    def _collect(self, registry: CollectorRegistry) -> None:
        if not self._names:
            self._names = [family.name for family in registry.collect() if family.type == "gauge"]
        self._published = [
            [
                family.name,
                family.documentation,
                family.type,
                [
                    [sample.name, sample.labels, sample.value + (self._cpu_before if sample.name == _CPU else 0.0)]
                    for sample in family.samples
                ],
            ]
            for families in (registry.restricted_registry(self._names), *self._of_process)
            for family in families.collect()
        ]

    def _write(self) -> None:
        path = self._gauges_of(self._place.number)
        written = path.with_suffix(".part")
        try:
            written.write_text(json.dumps(self._published))
            written.replace(path)
        except OSError:
            written.unlink(missing_ok=True)
            raise

    def exposition(self, registry: CollectorRegistry) -> bytes:
        """The metrics of all workers in Prometheus' text format; gauges of other workers are up to a second old.

        Args:
            registry: all metrics of this process.
        """
        self._collect(registry)
        with suppress(OSError):  # the task that publishes every second logs it
            self._write()
        merged = CollectorRegistry(auto_describe=False)
        counters = MultiProcessCollector.merge(self._counter_files())  # type: ignore[no-untyped-call]  # untyped in the library
        merged.register(_Families([*self._gauges(), *counters]))
        return generate_latest(merged)

    def _value_of(
        self,
        kind: str,
        metric_name: str,
        name: str,
        labelnames: Iterable[str],
        labelvalues: Iterable[str],
        help_text: str,
        **_more: object,
    ) -> "MutexValue | _SharedValue":
        """A new value of the library; only counters and histograms are shared."""
        if kind not in _FILE_BYTES:
            return MutexValue(kind, metric_name, name, labelnames, labelvalues, help_text)  # type: ignore[no-untyped-call]  # untyped in the library
        key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        with self._creating:
            file = self._files.get(kind)
            if file is None:
                file = self._files[kind] = _open(self._file_of(kind, self._place.number), _FILE_BYTES[kind])
            file.read_value(key)  # type: ignore[no-untyped-call]  # untyped in the library - makes the entry
            mapping = file._m  # noqa: SLF001 - the entry's place in the mapping has no public name
            if kind not in self._cells or self._cells[kind][0] is not mapping:  # the file has grown
                self._cells[kind] = mapping, memoryview(mapping).cast("B").cast("d")
            return _SharedValue(self._cells[kind][1], file._positions[key] // 8)  # noqa: SLF001 - as above

    def _gauges(self) -> Iterator[Metric]:
        """The merged gauges of the workers that run, and of all workers the processor time."""
        found: dict[str, tuple[list[Any], dict[_Key, list[float]]]] = {}
        for number in range(1, self._place.count + 1):
            mine = number == self._place.number
            runs = mine or self._board.state(number) is not WorkerState.STARTING
            for family in self._published if mine else self._read(number):
                samples = found.setdefault(family[0], (family, {}))[1]
                for name, labels, value in family[3]:
                    if runs or name == _CPU:
                        samples.setdefault((name, tuple(labels.items())), []).append(value)
        for family, samples in found.values():
            metric = Metric(family[0], family[1], family[2])
            for (name, labels), numbers in samples.items():
                metric.add_sample(name, dict(labels), RULES.get(name, max)(numbers))
            yield metric

    def _read(self, number: int) -> list[list[Any]]:
        """What a worker published last: name, documentation, type and samples of each family."""
        try:
            published: list[list[Any]] = json.loads(self._gauges_of(number).read_bytes())
        except FileNotFoundError:
            return []
        return published

    def _counter_files(self) -> list[str]:
        numbers = range(1, self._place.count + 1)
        paths = [self._file_of(kind, number) for kind in _FILE_BYTES for number in numbers]
        return [str(path) for path in paths if path.exists()]

    def _file_of(self, kind: str, number: int) -> Path:
        return self._place.directory / f"{kind}_{number}.db"

    def _gauges_of(self, number: int) -> Path:
        return self._place.directory / f"gauges-{number}.json"


class _SharedValue:
    """One number in a mapped file; adding to it is as fast as adding to a number of this process."""

    __slots__ = ("_at", "_cells", "_lock")
    _multiprocess = True

    def __init__(self, cells: "memoryview[float]", at: int) -> None:
        self._cells = cells
        self._at = at
        self._lock = Lock()

    def inc(self, amount: float) -> None:
        """Add to the number."""
        with self._lock:
            self._cells[self._at] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - as the library calls it
        """Set the number."""
        with self._lock:
            self._cells[self._at] = value

    def get(self) -> float:
        """The number."""
        value: float = self._cells[self._at]
        return value

    def set_exemplar(self, exemplar: object) -> None:
        """Do nothing: there are no exemplars."""

    def get_exemplar(self) -> None:
        """None: there are no exemplars."""


class _Families(Collector):
    """Collects families that were merged already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """The families."""
        return self._families


def _open(path: Path, size: int) -> MmapedDict:
    """Open a file of numbers; a new one gets its space now, as a full disk would end the process at a later write."""
    if not path.exists():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            allocate(path, descriptor, size)
        finally:
            os.close(descriptor)
    return MmapedDict(str(path))  # type: ignore[no-untyped-call]  # untyped in the library
