"""Options and start of the workers of a Ray cluster, for `vlm2rec embed` and `reindex`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.offline.threads import MOST_THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.data.dataset import Dataset
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
WorkerThreadsOption = Annotated[
    int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads; default: all cores, with Ray 1 a worker.")
]


def check_engine(engine: str, address: str | None, most: int | None) -> None:
    """Check that options of Ray come with its engine, and that this is the only process.

    Args:
        engine: ``process`` or ``ray``.
        address: of the cluster.
        most: most workers.

    Raises:
        BadParameter: they do not, or `torchrun` started several processes, which would wait for the lock of the run.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and processes != "1":
        raise typer.BadParameter(
            f"must run in one process, torchrun started {processes}: leave torchrun out. Several processes and "
            "machines embed with --engine ray"
        )
    if engine == "process" and (address is not None or most is not None):
        raise typer.BadParameter("--ray-address and --ray-workers need --engine ray")


def ray_shards(
    dataset: "Dataset", run: Path, *, address: str | None, most: int | None, threads: int | None
) -> "EncodeShards":
    """Let the workers of a Ray cluster make shards; it is connected to only while there are some to be made.

    Args:
        dataset: the catalogue.
        run: the run directory, with the model.
        address: of the cluster; None: one on this machine, for the job.
        most: most workers; None: as many as there is room for.
        threads: of each worker; None: 1, since a worker reserves a CPU for each.
    """

    def encode_shards(
        plan: "EmbeddingPlan", numbers: "Sequence[int]", finished: "Finished", stopped: "Callable[[], bool]"
    ) -> None:
        from training.embedding.distributed.ray_workers import RayWorkers, ray_cluster
        from training.embedding.distributed.shard_pool import ShardPool
        from training.embedding.distributed.shard_worker import ShardJob

        job = ShardJob(
            dataset.name(),
            run.resolve(),
            plan.directory.resolve(),
            dict(plan.model),
            plan.batch_items,
            threads or 1,
            other_interactions(dataset),
        )
        with ray_cluster(address) as ray:
            ShardPool(RayWorkers(ray, job, most)).encode(plan, numbers, finished, stopped)

    return encode_shards


def other_interactions(dataset: "Dataset") -> Path | None:
    """The file of ``--interactions``, for workers; None for those of the data set, which each worker finds itself."""
    source = dataset.source
    if source is None or (source.parent == dataset.directory and source.name.partition(".")[0] == "interactions"):
        return None
    return source.resolve()
