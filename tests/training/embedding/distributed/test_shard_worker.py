"""A worker refuses a machine that sees another catalogue, model or disk than the job was planned with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.embedding.distributed.conftest import SIZES
from training.backbones.trained_model import TrainedModel
from training.data.dataset import load_dataset
from training.embedding.distributed.shard_worker import ShardJob, ShardWorker
from training.embedding.job import pending_items
from training.embedding.plan import EmbeddingPlan
from training.errors import EmbeddingsError

JobOf = Callable[[Path, EmbeddingPlan], ShardJob]


@pytest.fixture
def plan(home: Path) -> EmbeddingPlan:
    model = TrainedModel.of(home / "run")
    pending = pending_items(load_dataset(home / "data"), model.provenance, model.embeddings)
    return EmbeddingPlan.open(model.embeddings, pending.wanted_contents(), pending.model, **SIZES)


def test_a_retry_writes_the_same_bytes(home: Path, plan: EmbeddingPlan, job_of: JobOf) -> None:
    written = []
    for _ in range(2):
        worker = ShardWorker(job_of(home, plan))
        assert ", process " in worker.prepare()
        assert worker.encode(1, plan.planned(1)) == 1
        written.append((plan.directory / "000001.npz").read_bytes())
    assert written[0] == written[1]
    assert plan.has(1)
    assert not list(plan.directory.glob("*.part"))


@pytest.mark.parametrize("change", ["text", "picture", "gone"])
def test_another_catalogue_is_refused(home: Path, plan: EmbeddingPlan, job_of: JobOf, change: str) -> None:
    items = home / "data" / "items.csv"
    lines = items.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("i01"))
    if change == "text":
        lines[place] = lines[place].replace("thing", "other")
    elif change == "gone":
        del lines[place]
    else:
        (home / "data" / "images" / "1.png").write_bytes((home / "data" / "images" / "2.png").read_bytes())
    items.write_text("\n".join(lines) + "\n")
    worker = ShardWorker(job_of(home, plan))
    worker.prepare()
    with pytest.raises(EmbeddingsError, match=r"the data set must be the same on every machine"):
        worker.encode(0, plan.planned(0))
    assert not plan.has(0)


def test_another_model_or_disk_is_refused(home: Path, plan: EmbeddingPlan, job_of: JobOf) -> None:
    job = job_of(home, plan)
    with pytest.raises(EmbeddingsError, match="has another model on this machine"):
        ShardWorker(replace(job, model=job.model | {"weights": "abc"})).prepare()
    with pytest.raises(EmbeddingsError, match="is not on this machine; data set and run must be on a shared disk"):
        ShardWorker(replace(job, plan=home / "none")).prepare()
    with pytest.raises(EmbeddingsError, match="has not loaded its model"):
        ShardWorker(job).encode(0, plan.planned(0))
