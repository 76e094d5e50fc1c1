"""`vlm2rec reindex --engine ray` makes the bytes of one process, killed, stopped and resumed.

The workers are in this process; test_reindex_ray_slow.py has a real cluster.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes.inline_workers import Cluster, inline_cluster
from tests.support.stores.s3_server import S3Server
from training.backbones.trained_model import TrainedModel
from training.embedding.distributed.shard_worker import ShardWorker
from training.errors import TrainingError

if TYPE_CHECKING:
    from tests.training.nightly.conftest import Shop

RAY = ("--engine", "ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return inline_cluster(monkeypatch)


@pytest.fixture
def changed(nightly: "Shop") -> "Shop":
    """Every text is another one, so that four shards are to be made."""
    nightly.edit(lambda rows: [row | {"text": f"{row['text']} {number}"} for number, row in enumerate(rows)])
    return nightly


def made(shop: "Shop") -> dict[str, Any]:
    """What one process and a cluster have in common: vectors, rows and lists of the bundle."""
    vectors = {path.name: path.read_bytes() for path in (shop.run / "embeddings").glob("*.npy")}
    return {"embeddings": vectors, "rows": shop.rows(), "lists": shop.lists()}


@pytest.fixture
def expected(changed: "Shop", tmp_path: Path) -> dict[str, Any]:
    """What one process makes."""
    alone = type(changed)(Path(copytree(changed.home, tmp_path / "alone")))
    alone.reindex()
    return made(alone)


def test_a_cluster_makes_the_bytes_of_one_process(changed: "Shop", cluster: Cluster, expected: dict[str, Any]) -> None:
    summary = changed.reindex(*RAY, "--ray-workers", 3)
    assert summary["outcome"] == "published"
    assert summary["embedding"]["encoded"] == summary["embedding"]["needed"] == 30
    assert sorted(cluster.encoded) == [0, 1, 2, 3]
    assert made(changed) == expected
    assert {job.threads for job in cluster.jobs} == {1}
    assert cluster.jobs[0].model == TrainedModel.of(changed.run).provenance
    assert len(cluster.jobs) == 3
    assert changed.reindex(*RAY)["outcome"] == "nothing to do"
    assert cluster.connected == 1, "where nothing is to be embedded, no cluster is asked for"


@pytest.mark.parametrize("second", [RAY, ()], ids=["by the cluster", "by one process"])
def test_a_killed_job_goes_on_with_the_next_shard(
    changed: "Shop", cluster: Cluster, expected: dict[str, Any], second: Sequence[str]
) -> None:
    def killed(made: int) -> None:
        if made == 2:
            raise KeyboardInterrupt

    cluster.before_shard = killed
    assert changed.reindex(*RAY, code=130)["outcome"] == "interrupted"
    cluster.before_shard = lambda _made: None
    dry = changed.invoke("--dry-run", *RAY)
    assert "would embed 14 of 30 items, 16 more were embedded by an interrupted job" in dry.output
    summary = changed.reindex(*second)["embedding"]
    assert (summary["encoded"], summary["resumed"]) == (14, 16)
    assert made(changed) == expected


def test_a_dry_run_asks_for_no_cluster_and_changes_nothing(changed: "Shop", cluster: Cluster) -> None:
    before = changed.files()
    result = changed.invoke("--dry-run", *RAY, "--ray-address", "127.0.0.1:1")
    assert result.exit_code == 0, result.output
    assert "would embed 30 of 30 items" in result.output
    assert changed.files() == before
    assert not cluster.connected


def test_sigterm_ends_the_job_after_the_current_shards(
    changed: "Shop", cluster: Cluster, expected: dict[str, Any]
) -> None:
    cluster.before_shard = lambda made: os.kill(os.getpid(), signal.SIGTERM) if made == 1 else None
    assert changed.reindex(*RAY, code=143)["outcome"] == "stopped"
    cluster.before_shard = lambda _made: None
    assert changed.reindex(*RAY)["embedding"]["resumed"] > 0
    assert made(changed) == expected


def test_interactions_of_another_file_are_read_by_the_workers_too(changed: "Shop", cluster: Cluster) -> None:
    elsewhere = changed.home / "elsewhere.csv"
    (changed.data / "interactions.csv").rename(elsewhere)
    assert changed.reindex(*RAY, "--interactions", elsewhere)["embedding"]["encoded"] == 30
    assert {job.interactions for job in cluster.jobs} == {elsewhere.resolve()}


def test_without_a_shared_disk_the_model_and_other_interactions_pass_through_the_store(
    changed: "Shop",
    cluster: Cluster,
    s3: S3Server,
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    elsewhere = changed.home / "elsewhere.csv"
    (changed.data / "interactions.csv").rename(elsewhere)
    cluster.shares_no_disk = True
    storage = ("--ray-storage", "s3://shop/jobs")
    assert changed.reindex(*RAY, *storage, "--interactions", elsewhere)["embedding"]["encoded"] == 30
    assert made(changed) == expected
    assert s3.objects == {}
    assert changed.reindex(*RAY, *storage, "--interactions", elsewhere)["outcome"] == "nothing to do"


def test_workers_that_cannot_start_end_the_job_with_one_line(
    changed: "Shop", cluster: Cluster, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    def refused(_worker: ShardWorker) -> str:
        raise TrainingError("no model here")

    bundle = changed.registry.current()
    with monkeypatch.context() as patched:
        patched.setattr(ShardWorker, "prepare", refused)
        result = changed.invoke(*RAY)
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "workers in a row could not start, the last one because: no model here" in line
    assert changed.registry.current() == bundle
    changed.reindex()
    assert made(changed) == expected


def test_options_of_a_cluster_need_its_engine(nightly: "Shop") -> None:
    result = nightly.invoke("--ray-address", "127.0.0.1:6379")
    assert result.exit_code == 2
    assert "the options --ray-… need --engine ray" in str(result.exception) + result.output
