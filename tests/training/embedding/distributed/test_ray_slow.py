"""`vlm2rec embed --engine ray` on a cluster of this machine: the bytes of one process, also after kills."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from index.bundle.store.object_store import ObjectStore
from tests.support.environments import without_coverage
from tests.support.processes.ray_clusters import NO_RAY, TOKEN, Cluster
from tests.support.shops import eventually
from tests.support.stores.moto_server import moto_server
from tests.support.stores.redis_servers import free_port
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import URL, upload
from training.config.run_config import load_config, to_toml

ITEMS = 240
LONGEST_S = 600


@pytest.fixture(autouse=True)
def prompt_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as nice as Ray makes them wait for minutes on a busy machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def large(home: Path) -> Path:
    """The shop eight times, embedded item by item, so that a job takes a while."""
    items = home / "data" / "items.csv"
    header, *rows = items.read_text().splitlines()
    copies = [f"c{copy}{row}" for copy in range(ITEMS // len(rows)) for row in rows]
    items.write_text("\n".join([header, *copies]) + "\n")
    (home / "data" / "interactions.csv").write_text("user_id,item_id,timestamp\nu0,c0i00,1\n")
    sizes = {"embed.shard_items": 2, "embed.batch_items": 1}
    (home / "run" / "config.toml").write_text(to_toml(load_config(overrides=sizes)))
    shutil.copytree(home / "run", home / "alone")
    return home


def start(home: Path, run: str, *options: str, data: str | None = None) -> "subprocess.Popen[str]":
    words = ("embed", data or str(home / "data"), "--run", str(home / run), "--threads", "1", *options)
    environment = {**without_coverage(), "CUDA_VISIBLE_DEVICES": "", "RAY_DEDUP_LOGS": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ended(process: "subprocess.Popen[str]") -> str:
    out, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, errors + out
    return out


def shards(home: Path) -> int:
    return len(list((home / "run" / "embeddings").glob("work-*/*.npz")))


def vectors(home: Path, run: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / run / "embeddings").glob("*.npy")}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    made = Cluster()
    yield made
    made.end()


def killed(home: Path, at: int, kill: Callable[[], None]) -> None:
    """Kill something once a number of shards is there, and not yet all."""
    eventually(lambda: shards(home) >= at, 240)
    assert shards(home) < ITEMS // 2
    kill()


@pytest.mark.slow
def test_a_machine_and_the_command_are_killed_and_a_machine_joins(large: Path, cluster: Cluster) -> None:
    machines = [cluster.add() for _ in range(3)]
    assert "would embed 240 of 240 (0 are done" in ended(start(large, "run", "--dry-run"))
    ended(start(large, "alone"))
    options = ("--engine", "ray", "--ray-address", cluster.address)
    first = start(large, "run", *options)
    killed(large, 10, first.kill)
    first.communicate()
    before = shards(large)
    assert 10 <= before < ITEMS // 2

    second = start(large, "run", *options)
    killed(large, before + 5, lambda: cluster.kill(machines[0]))
    cluster.add()
    said = ended(second)
    done = int(re.findall(r"\(([0-9]+) of them before an interruption\)", said)[0])
    assert 2 * before <= done < ITEMS
    assert vectors(large, "run") == vectors(large, "alone")
    assert "would embed 0 of 240" in ended(start(large, "run", "--dry-run"))


@pytest.mark.slow
def test_a_lost_head_is_one_line_and_the_same_command_goes_on_after_its_restart(large: Path, cluster: Cluster) -> None:
    cluster.add()
    ended(start(large, "alone"))
    options = ("--engine", "ray", "--ray-address", cluster.address)
    first = start(large, "run", *options)
    killed(large, 6, cluster.kill_head)
    _, errors = first.communicate(timeout=LONGEST_S)
    before = shards(large)
    assert first.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(r"^error: the Ray cluster does not answer \(.*\); .* start the same command again to go on$", line)
    assert "Traceback" not in errors
    assert 6 <= before < ITEMS // 2

    cluster.restart_head()
    cluster.add()
    said = ended(start(large, "run", *options))
    assert int(re.findall(r"\(([0-9]+) of them before an interruption\)", said)[0]) == 2 * before
    assert vectors(large, "run") == vectors(large, "alone")


@pytest.mark.slow
def test_workers_read_a_data_set_in_an_object_store(
    home: Path,
    expected: dict[str, bytes],
    s3: S3Server,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(s3, home / "data")
    shutil.rmtree(home / "data")
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(home / "cache"))
    cluster: Cluster = request.getfixturevalue("cluster")  # its machines inherit the variables of the store
    ended(start(home, "run", "--engine", "ray", "--ray-address", cluster.address, data=URL))
    assert vectors(home, "run") == expected


@pytest.mark.slow
def test_machines_without_a_shared_disk_read_and_write_an_object_store_while_one_is_killed(
    large: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data set, model and shards pass through the S3 server of moto; test_shard_storage.py hides the run as well."""
    ended(start(large, "alone"))
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(large / "cache"))
    with moto_server(monkeypatch, "shop"):
        objects = ObjectStore(URL)
        for path in (large / "data").rglob("*"):
            if path.is_file():
                objects.write(path.relative_to(large / "data").as_posix(), path)
        (large / "data").rename(large / "hidden")
        cluster: Cluster = request.getfixturevalue("cluster")  # its machines inherit the variables of the store
        machines = [cluster.add() for _ in range(3)]
        options = ("--engine", "ray", "--ray-address", cluster.address, "--ray-storage", "s3://shop/jobs")
        job = start(large, "run", *options, data=URL)
        killed(large, 10, lambda: cluster.kill(machines[0]))
        ended(job)
        assert vectors(large, "run") == vectors(large, "alone")
        assert ObjectStore("s3://shop/jobs").objects("") == []


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_job_with_one_line(large: Path) -> None:
    """On a cluster that the command starts and ends; the model vanishes before the workers load it."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    process = start(large, "run", "--engine", "ray")
    eventually(lambda: list((large / "run" / "embeddings").glob("work-*")), 240)
    shutil.rmtree(large / "run" / "train")
    _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 2
    assert "workers in a row could not start, the last one because: BackboneError" in errors
    assert "Traceback" not in errors


_OWNER = """
import sys
from training.embedding.distributed.ray_workers import ray_cluster
with ray_cluster(None) as ray:
    print("head", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a cluster as the command starts it by itself, in the home directory ``owner``."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "owner").mkdir()
    environment = {**without_coverage(), "HOME": str(tmp_path / "owner")}
    command = [sys.executable, "-c", _OWNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        yield next(line.split()[1] for line in owner.stdout if line.startswith("head "))
        owner.communicate(timeout=LONGEST_S)


@pytest.mark.slow
def test_a_cluster_that_the_command_starts_asks_for_its_token(
    home: Path, expected: dict[str, bytes], owned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "owner" / ".ray" / "auth_token"
    assert token.is_file()
    monkeypatch.setenv("HOME", str(tmp_path))
    for wrong in ({}, TOKEN):
        with monkeypatch.context() as without:
            for name, value in wrong.items():
                without.setenv(name, value)
            refused = start(home, "run", "--engine", "ray", "--ray-address", owned)
            _, errors = refused.communicate(timeout=LONGEST_S)
        assert refused.returncode == 2, errors
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert "set RAY_AUTH_MODE and the token as the cluster has them" in line
        assert "Traceback" not in errors
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    ended(start(home, "run", "--engine", "ray", "--ray-address", owned))
    assert vectors(home, "run") == expected


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_line(large: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    process = start(large, "run", "--engine", "ray", "--ray-address", f"127.0.0.1:{free_port()}")
    _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 2
    assert re.search(r"error: no Ray cluster at 127.0.0.1:\d+ \(.*Connection refused\); start one with", errors)


@pytest.mark.slow
def test_without_ray_it_says_how_to_install_it(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (large / "ray.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(large))
    process = start(large, "run", "--engine", "ray")
    _, errors = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, "pip install 'vlm2rec[ray]'" in errors) == (2, True)
