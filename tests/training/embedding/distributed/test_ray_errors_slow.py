"""`vlm2rec embed --engine ray` where workers, cluster, token or package are missing: one line says so."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.environments import without_coverage
from tests.support.processes.ray_clusters import NO_RAY, TOKEN
from tests.support.processes.ray_jobs import LONGEST_S, ended, start, vectors
from tests.support.shops import eventually
from tests.support.stores.redis_servers import free_port

pytestmark = pytest.mark.usefixtures("prompt_workers")


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
