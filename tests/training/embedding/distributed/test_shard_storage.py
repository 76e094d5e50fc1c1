"""Workers that share no disk with the run: the model comes to them and shards come back through an object store."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.app import app
from tests.support.processes.inline_workers import Cluster, inline_cluster
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import PREFIX, URL, upload
from tests.training.embedding.distributed.conftest import SHARDS, vectors
from training.backbones.trained_model import TrainedModel
from training.embedding.distributed.shard_storage import ShardStorage
from training.embedding.shards import Shard

STORAGE = "s3://shop/jobs"
MODEL = "/model.safetensors"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = inline_cluster(monkeypatch)
    made.shares_no_disk = True
    return made


@pytest.fixture
def stored(home: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The data set lies in the store alone, and a request is not tried again."""
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(home / "cache"))
    monkeypatch.setattr("training.data.stored.data_store.PATIENCE_S", 2)
    upload(s3, home / "data")
    shutil.rmtree(home / "data")
    return s3


def embed(home: Path, *options: str) -> Result:
    words = ["embed", URL, "--run", str(home / "run"), "--engine", "ray", "--ray-storage", STORAGE, *options]
    return CliRunner().invoke(app, words)


def left(s3: S3Server) -> list[str]:
    """Objects of the job."""
    return [key for key in s3.objects if not key.startswith(PREFIX)]


def test_it_makes_the_bytes_of_one_process_and_leaves_nothing(
    home: Path, stored: S3Server, cluster: Cluster, expected: dict[str, bytes]
) -> None:
    result = embed(home)
    assert result.exit_code == 0, result.output
    assert vectors(home) == expected
    assert sorted(cluster.encoded) == list(range(SHARDS))
    assert {job.storage for job in cluster.jobs} == {job.storage for job in cluster.jobs[:1]}
    assert re.fullmatch(rf"{STORAGE}/work-[0-9a-f]{{16}}", str(cluster.jobs[0].storage))
    assert left(stored) == []
    assert "would embed 0 of 30" in embed(home, "--dry-run").output


def test_a_killed_job_takes_the_shards_that_were_made_meanwhile_and_sends_the_model_once(
    home: Path, stored: S3Server, cluster: Cluster, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = ShardStorage.fetch

    def killed(storage: ShardStorage, number: int, plan: Path) -> None:
        if len(cluster.encoded) == 5:
            raise KeyboardInterrupt
        fetch(storage, number, plan)

    with monkeypatch.context() as patched:
        patched.setattr(ShardStorage, "fetch", killed)
        assert embed(home).exit_code == 130
    waiting = [key for key in left(stored) if key.endswith(".npz")]
    assert len(waiting) == 5
    assert len(list((home / "run" / "embeddings").glob("work-*/*.npz"))) < 5
    result = embed(home)
    assert result.exit_code == 0, result.output
    assert sorted(cluster.encoded) == list(range(SHARDS))
    assert vectors(home) == expected
    assert stored.asked("PUT", MODEL) == 1
    assert left(stored) == []


def test_a_damaged_shard_in_the_store_is_made_again(
    home: Path, stored: S3Server, cluster: Cluster, expected: dict[str, bytes]
) -> None:
    put = ShardStorage.put

    def damaged(storage: ShardStorage, number: int, shard: Shard) -> None:
        put(storage, number, shard)
        if cluster.encoded.count(number) == 0:
            key = f"{storage.url.removeprefix('s3://shop/')}/{number:06d}.npz"
            content, time = stored.objects[key]
            stored.objects[key] = (content[: len(content) // 2], time)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ShardStorage, "put", damaged)
        result = embed(home)
    assert result.exit_code == 0, result.output
    assert sorted(cluster.encoded) == sorted([*range(SHARDS)] * 2)
    assert vectors(home) == expected


@pytest.mark.parametrize("fault", ["half", "gone", "denied"])
def test_a_store_that_fails_meanwhile_ends_the_job_with_one_line_and_the_same_command_goes_on(
    home: Path, stored: S3Server, cluster: Cluster, expected: dict[str, bytes], fault: str
) -> None:
    with stored.faulty(lambda method, key: fault if method == "GET" and key.endswith("000003.npz") else None):
        result = embed(home)
    assert result.exit_code != 0
    assert "000003.npz" in str(result.exception)
    assert re.search(r"start again once the store answers|check AWS_ACCESS_KEY_ID", str(result.exception))
    before = list(cluster.encoded)
    result = embed(home)
    assert result.exit_code == 0, result.output
    assert sorted(cluster.encoded) == list(range(SHARDS))
    assert before != cluster.encoded
    assert vectors(home) == expected


def test_a_store_that_may_not_be_written_is_refused_before_the_work(
    home: Path, stored: S3Server, cluster: Cluster
) -> None:
    with stored.faulty(lambda method, _key: "denied" if method == "PUT" else None):
        result = embed(home)
    assert "--ray-storage needs s3:ListBucket, s3:GetObject, s3:PutObject" in str(result.exception)
    assert not cluster.connected
    assert not list((home / "run").glob("embeddings/work-*"))


def test_another_model_replaces_the_copy_of_the_one_before(home: Path, stored: S3Server, cluster: Cluster) -> None:
    assert embed(home).exit_code == 0
    processor = home / "run" / "train" / "model" / "preprocessor_config.json"
    processor.write_text(processor.read_text() + "\n")
    assert TrainedModel.of(home / "run").provenance != cluster.jobs[0].model
    result = embed(home)
    assert result.exit_code == 0, result.output
    assert len(cluster.encoded) == 2 * SHARDS
    assert len(list((home / "cache").glob("*/run-*"))) == 1


def test_a_url_of_another_form_is_one_line(home: Path, cluster: Cluster) -> None:
    words = ["embed", str(home / "data"), "--run", str(home / "run"), "--engine", "ray", "--ray-storage", "gs://shop/x"]
    result = CliRunner().invoke(app, words)
    assert "s3://bucket/prefix" in str(result.exception)
    assert not cluster.connected
