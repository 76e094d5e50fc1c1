"""Options and start of the workers of a Ray cluster, for `vlm2rec embed` and `reindex`."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.offline.threads import MOST_THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.data.dataset import Dataset
    from training.embedding.distributed.shard_worker import ShardJob
    from training.embedding.job import EncodeShards, Finished
    from training.embedding.plan import EmbeddingPlan

_PANEL = "Several machines"

EngineOption = Annotated[
    Literal["process", "ray"],
    typer.Option(help="This process, or the workers of a Ray cluster.", rich_help_panel=_PANEL),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Head of the cluster, or auto; without it a cluster on this machine, for this job.",
        rich_help_panel=_PANEL,
    ),
]
RayWorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most workers; default: one a GPU, else a CPU for each thread.", rich_help_panel=_PANEL),
]
RayStorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="s3://BUCKET/PREFIX",
        help="Pass model and shards through this place; without it RUN is on a disk that all machines share.",
        rich_help_panel=_PANEL,
    ),
]
WorkerThreadsOption = Annotated[
    int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads; default: all cores, with Ray 1 a worker.")
]


def check_engine(engine: str, address: str | None, most: int | None, storage: str | None) -> None:
    """Check that options of Ray come with its engine, and that this is the only process.

    Args:
        engine: ``process`` or ``ray``.
        address: of the cluster.
        most: most workers.
        storage: URL between run and workers.

    Raises:
        BadParameter: they do not, or `torchrun` started several processes, which would wait for the lock of the run.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and processes != "1":
        raise typer.BadParameter(
            f"must run in one process, torchrun started {processes}: leave torchrun out. Several processes and "
            "machines embed with --engine ray"
        )
    if engine == "process" and not (address is None and most is None and storage is None):
        raise typer.BadParameter("the options --ray-… need --engine ray")


def ray_shards(
    engine: str,
    dataset: "Dataset",
    run: Path,
    *,
    address: str | None,
    most: int | None,
    threads: int | None,
    storage: str | None,
) -> "EncodeShards | None":
    """Let the workers of a Ray cluster make shards; it is connected to only while there are some to be made.

    Args:
        engine: ``ray``; of any other one the result is None.
        dataset: the catalogue.
        run: the run directory, with the model.
        address: of the cluster; None: one on this machine, for the job.
        most: most workers; None: as many as there is room for.
        threads: of each worker; None: 1, since a worker reserves a CPU for each.
        storage: URL of an object store through which model and shards pass; None: the run is on a shared disk.

    Raises:
        EmbeddingsError: the object store cannot be written.
    """
    if engine != "ray":
        return None
    from training.embedding.distributed.read_features import features_read
    from training.embedding.distributed.shard_storage import ShardStorage
    from training.embedding.distributed.shard_worker import ShardJob

    if storage is not None:
        ShardStorage(storage).check_writable()

    def job_of(plan: "EmbeddingPlan") -> ShardJob:
        return ShardJob(
            dataset.name(),
            run.resolve(),
            plan.directory.resolve(),
            dict(plan.model),
            plan.batch_items,
            threads or 1,
            other_interactions(dataset),
        )

    def encode_shards(
        plan: "EmbeddingPlan", numbers: "Sequence[int]", finished: "Finished", stopped: "Callable[[], bool]"
    ) -> None:
        if storage is None:
            if numbers:
                _encode(job_of(plan), address, most, plan, numbers, finished, stopped)
            return
        objects = ShardStorage.of_plan(storage, plan.directory)
        collect = partial(objects.fetch, plan=plan.directory)
        waiting = set(numbers)
        for number in waiting.intersection(objects.finished()):
            collect(number)
            if plan.has(number):
                finished(number)
                waiting.discard(number)
        if waiting:
            job = job_of(plan)
            sent = objects.put_run(run, job.interactions, features=features_read(run, plan))
            job = replace(job, storage=objects.url, interactions=sent)
            _encode(job, address, most, plan, sorted(waiting), finished, stopped, collect)
        objects.remove()

    return encode_shards


def _encode(
    job: "ShardJob",
    address: str | None,
    most: int | None,
    plan: "EmbeddingPlan",
    numbers: "Sequence[int]",
    finished: "Finished",
    stopped: "Callable[[], bool]",
    collect: "Callable[[int], None]" = lambda _number: None,
) -> None:
    from training.embedding.distributed.ray_workers import RayWorkers, ray_cluster
    from training.embedding.distributed.shard_pool import ShardPool

    with ray_cluster(address) as ray:
        ShardPool(RayWorkers(ray, job, most), collect=collect).encode(plan, numbers, finished, stopped)


def other_interactions(dataset: "Dataset") -> Path | None:
    """The file of ``--interactions``, for workers; None for those of the data set, which each worker finds itself."""
    source = dataset.source
    if source is None or (source.parent == dataset.directory and source.name.partition(".")[0] == "interactions"):
        return None
    return source.resolve()
