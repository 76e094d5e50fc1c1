"""Estimates what a shop takes; docs/capacity.md has the same formulae."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from cli.capacity.coefficients import Coefficients, FigureBasis
from cli.capacity.queueing import ServiceTimes, highest_rate
from cli.errors import CapacityError
from training.config.encoder_config import EncoderConfig

GIB: Final = 2**30
_MEASURED_ITEMS: Final = 1_000_000  # the largest catalogue of the benches
_BASE_ITEMS: Final = 100_000  # that of search_ms
_INDEX_DIM: Final = 192  # that of index_bytes
_OUTSIDE: Final = ("outside_p50_ms", "outside_p90_ms", "outside_p99_ms")
_TIMES: Final = ("loop_ms", "search_ms", "search_growth", "alone", "contention", *_OUTSIDE)
_REMOTE_TIMES: Final = ("loop_ms", "encode_ms", "remote_search_ms", "alone", "contention", *_OUTSIDE)
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
        cores: of a replica; its search threads are as many, at most four.
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
    load: float = 0.7
    cores: int = 2
    replica_gib: float = 64.0
    redis_gib: float = 32.0
    milvus_gib: float = 128.0
    stream_events: int = 1_000_000
    steps: int = 3_000
    windows: int = 32


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
        CapacityError: no rate meets the bound of the latency.
    """
    return [
        *_service(demand, coefficients),
        *_redis(demand, coefficients),
        *(_milvus(demand, coefficients) if in_milvus(demand, coefficients) else ()),
        *_offline(demand, coefficients),
    ]


def item_bytes(demand: Demand, coefficients: Coefficients) -> float:
    """Bytes of the bundle an item: vector, index, metadata, item-to-item lists."""
    of = coefficients.value
    vectors = demand.dim * of("vector_bytes") + demand.dim / _INDEX_DIM * of("index_bytes")
    lists = demand.lists * EncoderConfig().neighbours(demand.items) * of("list_entry_bytes")
    return vectors + of("metadata_bytes") + lists


def in_milvus(demand: Demand, coefficients: Coefficients) -> bool:
    """Whether the bundle exceeds the replica: memory."""
    whole = coefficients.value("process_bytes") + demand.items * item_bytes(demand, coefficients)
    return whole > demand.replica_gib * GIB


def service_times(demand: Demand, coefficients: Coefficients) -> ServiceTimes:
    """The times of one replica at the size of the catalogue; with Milvus the search lies outside of the process."""
    of = coefficients.value
    points = [0.0, *(of(name) for name in _OUTSIDE), 1.5 * of(_OUTSIDE[-1])]
    outside = np.interp(np.linspace(0, 1, 1_000), [0, 0.5, 0.9, 0.99, 1], points)
    if in_milvus(demand, coefficients):
        search_ms, outside = of("encode_ms"), outside + of("remote_search_ms")
    else:
        search_ms = of("search_ms") * (demand.items / _BASE_ITEMS) ** of("search_growth")
    return ServiceTimes(
        loop_ms=of("loop_ms"),
        search_ms=search_ms,
        alone_ms=search_ms * of("alone"),
        outside_ms=outside.tolist(),
        threads=min(demand.cores, 4),
        cores=demand.cores,
        contention=max(1.0, of("contention")),
    )


def _service(demand: Demand, coefficients: Coefficients) -> list[Figure]:
    times, remote = service_times(demand, coefficients), in_milvus(demand, coefficients)
    least_ms = times.loop_ms + times.alone_ms + float(np.percentile(times.outside_ms, 99))
    rate = demand.load * highest_rate(times, demand.p99_ms) if least_ms < demand.p99_ms else 0.0
    if rate < 1:
        raise CapacityError(
            f"p99 cannot be {demand.p99_ms:g} ms with {demand.items:,} items: a single request takes about "
            f"{least_ms:.1f} ms without any load; allow more, or search fewer items"
        )
    replicas = math.ceil(demand.rate / rate) + 1
    of_item = ("vector_bytes", "index_bytes", "metadata_bytes", *(("list_entry_bytes",) if demand.lists else ()))
    of_process = ("process_bytes", *(("metadata_bytes",) if remote else of_item))
    of_rate = _REMOTE_TIMES if remote else _TIMES
    kept = coefficients.value("metadata_bytes") if remote else item_bytes(demand, coefficients)
    memory = (coefficients.value("process_bytes") + demand.items * kept) / GIB
    bundle = demand.items * item_bytes(demand, coefficients) / GIB
    was_measured = demand.items <= _MEASURED_ITEMS
    size = coefficients.basis(of_process, simple=was_measured)
    speed = coefficients.basis(of_rate, simple=False)
    both = tuple(dict.fromkeys((*of_process, *of_rate)))
    whole, total = coefficients.basis(of_item, simple=was_measured), coefficients.basis(both, simple=False)
    return [
        Figure("bundle", bundle, "GiB", whole, "items × dimensions", of_item),
        Figure("replica: memory", memory, "GiB", size, "items", of_process),
        Figure("replica: memory in a swap", 2 * memory, "GiB", size, "items", of_process),
        Figure("replica: rate", rate, "requests/s", speed, "p99, 1 ÷ items", of_rate),
        Figure("replicas, one spare", replicas, "", speed, "requests ÷ rate", of_rate),
        Figure("replicas: cores", replicas * demand.cores, "", speed, "replicas", of_rate),
        Figure("replicas: memory", replicas * memory, "GiB", total, "replicas × items", both),
    ]


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
    build, fit = ("build_core_s",), ("fit_core_s",)
    built, fitted = (
        basis(names, simple=size <= _MEASURED_ITEMS) for names, size in ((build, demand.items), (fit, events))
    )
    build_h, fit_h = demand.items * of("build_core_s") / 3_600, events * of("fit_core_s") / 3_600
    return [
        Figure("embedding", embedding, "GPU hours", basis(_MODEL), "items × model", _MODEL),
        Figure("training", training, "GPU hours", basis(trained), "steps × model", trained),
        Figure("index build", build_h, "core hours", built, "items", build),
        Figure("encoder, an epoch", fit_h, "core hours", fitted, "interactions", fit),
    ]
