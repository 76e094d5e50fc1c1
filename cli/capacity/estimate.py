"""Estimates what a shop takes; docs/capacity.md has the same formulae."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from cli.capacity.coefficients import Coefficients, FigureBasis
from cli.capacity.queueing import ServiceTimes, highest_rate
from cli.errors import CapacityError
from index.bundle.index_spec import IndexSpec
from training.config.encoder_config import EncoderConfig

GIB: Final = 2**30
_MEASURED_ITEMS: Final = 10_000_000  # the largest catalogue of the benches
_MEASURED_EVENTS: Final = 1_000_000  # of fit_core_s
_BASE_ITEMS: Final = 100_000  # those of search_ms
_LISTS_ITEMS: Final = 10_000_000  # those of lists_search_ms and lists_build_core_s
_LEAST_VARIATION: Final = 0.01
_MOST_VARIATION: Final = 10.0
_INDEX_DIM: Final = 192  # that of the bytes of an index
_OUTSIDE: Final = ("outside_p50_ms", "outside_p90_ms", "outside_p99_ms")
_LOOP: Final = ("loop_ms", "wake_ms", "variation")
_GRAPH: Final = ("batch_ms", "search_ms", "search_growth", "alone_ms", "alone_growth")
_TIMES: Final = (*_LOOP, *_GRAPH, *_OUTSIDE)
_LISTS_TIMES: Final = (*_LOOP, "lists_search_ms", *_OUTSIDE)
_REMOTE_TIMES: Final = (*_LOOP, "batch_ms", "encode_ms", "remote_search_ms", *_OUTSIDE)
_MODEL: Final = ("vlm_parameters", "item_tokens", "gpu_flops", "gpu_use")


@dataclass(frozen=True)
class Demand:
    """What is asked of the service.

    Attributes:
        items: of the catalogue.
        users: with a stored history.
        rate: requests a second, all replicas together.
        p99_ms: bound of the 99th percentile of the latency, in milliseconds.
        history: mean stored events a user.
        dim: of the vectors, all slots together.
        lists: item-to-item lists.
        load: share of its highest rate that a replica is planned for.
        cores: of a replica; each worker is planned with one.
        workers: processes of a replica; 0: one a core.
        replica_gib: most replica: memory; a catalogue beyond it is searched in Milvus.
        redis_gib: memory of a Redis node.
        milvus_gib: memory of a query node of Milvus.
        stream_events: kept in the event stream (VLM2REC_STREAM_CAP).
        steps: of the training.
        windows: of a training step.
    """

    items: int
    users: int
    rate: int
    p99_ms: float
    history: int = 10
    dim: int = 192
    lists: int = 3
    load: float = 0.3
    cores: int = 2
    workers: int = 0
    replica_gib: float = 64.0
    redis_gib: float = 32.0
    milvus_gib: float = 128.0
    stream_events: int = 1_000_000
    steps: int = 3_000
    windows: int = 32

    @property
    def worker_count(self) -> int:
        """Processes of a replica."""
        return self.workers or self.cores


@dataclass(frozen=True)
class Figure:
    """A line of an estimate.

    Attributes:
        name: what it is.
        value: in `unit`.
        unit: such as GiB.
        basis: computed from measured coefficients alone; computed also from sizes or a data sheet, by the simulation,
            or beyond what was measured; or a guess, as soon as one coefficient is.
        grows_with: what raises it.
        coefficients: that it is made of.
    """

    name: str
    value: float
    unit: str
    basis: FigureBasis
    grows_with: str
    coefficients: tuple[str, ...]


def estimate(demand: Demand, coefficients: Coefficients) -> list[Figure]:
    """All figures of a demand.

    Raises:
        CapacityError: no rate meets the bound of the latency, there are more workers than cores, or a figure exceeds
            all numbers.
    """
    if demand.worker_count > demand.cores:
        raise CapacityError(
            f"--workers must be at most --cores, got {demand.worker_count} on {demand.cores}; with more a "
            "replica answers less"
        )
    try:
        return [
            *_service(demand, coefficients),
            *_redis(demand, coefficients),
            *(_milvus(demand, coefficients) if in_milvus(demand, coefficients) else ()),
            *_offline(demand, coefficients),
        ]
    except OverflowError:
        raise CapacityError(
            "a figure exceeds all numbers; check the sizes, and exponents such as search_growth"
        ) from None


def has_lists(demand: Demand) -> bool:
    """Whether `index build` makes an index with lists; else it is a graph, or there is none for few items."""
    return IndexSpec().choose(demand.items, demand.dim).kind == "ivf"


def item_bytes(demand: Demand, coefficients: Coefficients) -> float:
    """Bytes of the bundle an item: vector, index, metadata, item-to-item lists."""
    of = coefficients.value
    index = of("lists_index_bytes" if has_lists(demand) else "index_bytes")
    vectors = demand.dim * of("vector_bytes") + demand.dim / _INDEX_DIM * index
    lists = demand.lists * EncoderConfig().neighbours(demand.items) * of("list_entry_bytes")
    return vectors + of("metadata_bytes") + lists


def in_milvus(demand: Demand, coefficients: Coefficients) -> bool:
    """Whether the bundle exceeds the replica: memory."""
    mapped = demand.items * item_bytes(demand, coefficients)
    return process_bytes(demand, coefficients) + mapped > demand.replica_gib * GIB


def process_bytes(demand: Demand, coefficients: Coefficients) -> float:
    """Bytes of all workers of a replica that are not mapped from files, which they share."""
    of = coefficients.value
    further = (demand.worker_count - 1) * of("worker_bytes")
    return of("process_bytes") + further + demand.worker_count * demand.items * of("row_bytes")


def service_times(demand: Demand, coefficients: Coefficients) -> ServiceTimes:
    """The times of a worker at the size of the catalogue; with Milvus the search lies outside of the process.

    Raises:
        CapacityError: `variation` is too small or too large for a simulation.
    """
    of = coefficients.value
    if not _LEAST_VARIATION <= of("variation") <= _MOST_VARIATION:
        raise CapacityError(
            f"variation.value must lie in {_LEAST_VARIATION:g} … {_MOST_VARIATION:g}, got {of('variation'):g}: it is "
            "the standard deviation of a time over its mean"
        )
    points = [0.0, *(of(name) for name in _OUTSIDE), 1.5 * of(_OUTSIDE[-1])]
    outside = np.interp(np.linspace(0, 1, 1_000), [0, 0.5, 0.9, 0.99, 1], points)
    batch_ms = of("batch_ms")
    if in_milvus(demand, coefficients):
        search_ms, outside = of("encode_ms"), outside + of("remote_search_ms")
        alone_ms = batch_ms + search_ms
    elif has_lists(demand):  # a batch shares nothing of a scan, so it gains nothing
        batch_ms, search_ms = 0.0, of("lists_search_ms") * demand.items / _LISTS_ITEMS
        alone_ms = search_ms
    else:
        larger = demand.items / _BASE_ITEMS
        search_ms = of("search_ms") * larger ** of("search_growth")
        alone_ms = of("alone_ms") * larger ** of("alone_growth")
    return ServiceTimes(
        loop_ms=of("loop_ms"),
        wake_ms=of("wake_ms"),
        alone_ms=alone_ms,
        batch_ms=batch_ms,
        search_ms=search_ms,
        outside_ms=outside.tolist(),
        variation=of("variation"),
    )


def lone_request_ms(times: ServiceTimes) -> float:
    """The median latency of requests to a process without any other load, in milliseconds."""
    return _busy_ms(times) + float(np.percentile(times.outside_ms, 50))


def workers_factor(demand: Demand, coefficients: Coefficients) -> float:
    """The rate of all workers over that of one that has a core of its own; there is at most one a core.

    Of two on two cores an answer takes `workers_cost` times the processor time. More than two were not measured.
    """
    return 1.0 if demand.worker_count == 1 else demand.worker_count / coefficients.value("workers_cost")


def _busy_ms(times: ServiceTimes) -> float:
    """The time of a request without others in its process: the loop wakes up for it, and for the answer of Redis."""
    return times.loop_ms + 2 * times.wake_ms + times.alone_ms


def _service(demand: Demand, coefficients: Coefficients) -> list[Figure]:
    rate = demand.load * _highest_rate(demand, coefficients)
    if rate <= 0:
        alone_ms = lone_request_ms(service_times(demand, coefficients))
        raise CapacityError(
            f"p99 cannot be {demand.p99_ms:g} ms with {demand.items:,} items: a single request takes about "
            f"{alone_ms:.1f} ms without any load; allow more, search fewer items, or let Milvus search by a lower "
            "--replica-gib"
        )
    replicas, remote = math.ceil(demand.rate / rate) + 1, in_milvus(demand, coefficients)
    several = demand.worker_count > 1
    of_index = "lists_index_bytes" if has_lists(demand) else "index_bytes"
    of_item = ("vector_bytes", of_index, "metadata_bytes", *(("list_entry_bytes",) if demand.lists else ()))
    of_process = ("process_bytes", *(("worker_bytes",) if several else ()), "row_bytes")
    of_memory = (*of_process, *(("metadata_bytes",) if remote else of_item))
    of_rate = _REMOTE_TIMES if remote else _LISTS_TIMES if has_lists(demand) else _TIMES
    if several:
        of_rate = (*of_rate, "workers_cost")
    mapped = coefficients.value("metadata_bytes") if remote else item_bytes(demand, coefficients)
    memory = (process_bytes(demand, coefficients) + demand.items * mapped) / GIB
    swap = memory + demand.items * (mapped + demand.worker_count * coefficients.value("row_bytes")) / GIB
    bundle = demand.items * item_bytes(demand, coefficients) / GIB
    was_measured = demand.items <= _MEASURED_ITEMS
    size = coefficients.basis(of_memory, simple=was_measured)
    speed = coefficients.basis(of_rate, simple=False)
    both = tuple(dict.fromkeys((*of_memory, *of_rate)))
    whole, total = coefficients.basis(of_item, simple=was_measured), coefficients.basis(both, simple=False)
    return [
        Figure("bundle", bundle, "GiB", whole, "items × dimensions", of_item),
        Figure("replica: memory", memory, "GiB", size, "items, workers", of_memory),
        Figure("replica: memory in a swap", swap, "GiB", size, "items, workers", of_memory),
        Figure("replica: rate", rate, "requests/s", speed, "p99, workers, 1 ÷ items", of_rate),
        Figure("replicas, one spare", replicas, "", speed, "requests ÷ rate", of_rate),
        Figure("replicas: cores", replicas * demand.cores, "", speed, "replicas", of_rate),
        Figure("replicas: memory", replicas * memory, "GiB", total, "replicas × items", both),
    ]


def _highest_rate(demand: Demand, coefficients: Coefficients) -> float:
    """The highest rate of a replica within the bound; 0 where a request alone takes longer."""
    times = service_times(demand, coefficients)
    least_ms = _busy_ms(times) + float(np.percentile(times.outside_ms, 99))
    if least_ms >= demand.p99_ms:
        return 0.0
    return workers_factor(demand, coefficients) * highest_rate(times, demand.p99_ms)


def _redis(demand: Demand, coefficients: Coefficients) -> list[Figure]:
    of, of_data = coefficients.value, ("redis_user_bytes", "redis_event_bytes", "redis_stream_bytes")
    histories = demand.users * (of("redis_user_bytes") + demand.history * of("redis_event_bytes"))
    data = histories + demand.stream_events * of("redis_stream_bytes")
    of_memory = (*of_data, "redis_room")
    memory, basis = of("redis_room") * data / GIB, coefficients.basis(of_memory)
    nodes = math.ceil(memory / demand.redis_gib)
    return [
        Figure("Redis: data", data, "bytes", coefficients.basis(of_data), "users × events", of_data),
        Figure("Redis: memory", memory, "GiB", basis, "users × events", of_memory),
        Figure(f"Redis: nodes of {demand.redis_gib:g} GiB", nodes, "", basis, "memory; copies", of_memory),
    ]


def _milvus(demand: Demand, coefficients: Coefficients) -> list[Figure]:
    of, of_memory, of_cores = coefficients.value, ("milvus_bytes", "milvus_replicas"), ("milvus_rate",)
    memory = demand.items * demand.dim * 4 * of("milvus_bytes") * of("milvus_replicas") / GIB
    nodes = max(math.ceil(memory / demand.milvus_gib), math.ceil(of("milvus_replicas")))
    cores = math.ceil(demand.rate / of("milvus_rate"))
    size = coefficients.basis(of_memory)
    return [
        Figure("Milvus: memory", memory, "GiB", size, "items × copies", of_memory),
        Figure(f"Milvus: nodes of {demand.milvus_gib:g} GiB", nodes, "", size, "memory", of_memory),
        Figure("Milvus: cores", cores, "", coefficients.basis(of_cores), "requests", of_cores),
    ]


def _offline(demand: Demand, coefficients: Coefficients) -> list[Figure]:
    of, basis = coefficients.value, coefficients.basis
    item_flops = 2 * of("vlm_parameters") * of("item_tokens")
    reached = of("gpu_flops") * of("gpu_use") * 3_600  # operations an hour
    embedding = demand.items * item_flops / reached
    training = demand.steps * demand.windows * of("training_items") * item_flops * of("training_passes") / reached
    trained = (*_MODEL, "training_items", "training_passes")
    events = demand.users * demand.history
    build, build_h = _build_hours(demand, coefficients)
    built = basis(build, simple=demand.items <= _MEASURED_ITEMS)
    fit, fit_h = ("fit_core_s",), events * of("fit_core_s") / 3_600
    fitted = basis(fit, simple=events <= _MEASURED_EVENTS)
    return [
        Figure("embedding", embedding, "GPU hours", basis(_MODEL), "items × model", _MODEL),
        Figure("training", training, "GPU hours", basis(trained), "steps × model", trained),
        Figure("index build", build_h, "core hours", built, "items", build),
        Figure("encoder, an epoch", fit_h, "core hours", fitted, "interactions", fit),
    ]


def _build_hours(demand: Demand, coefficients: Coefficients) -> tuple[tuple[str, ...], float]:
    """The coefficients of an index build, and its core hours."""
    of = coefficients.value
    if not has_lists(demand):
        return ("build_core_s",), demand.items * of("build_core_s") / 3_600
    hours = demand.items * of("lists_build_core_s") / 3_600
    if demand.items == _LISTS_ITEMS:
        return ("lists_build_core_s",), hours
    growth = of("lists_build_growth") - 1
    return ("lists_build_core_s", "lists_build_growth"), hours * (demand.items / _LISTS_ITEMS) ** growth
