"""`vlm2rec reindex --engine ray` on a real cluster of this machine makes the bytes of one process."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import pytest

from tests.support.environments import without_coverage
from tests.support.processes.ray_clusters import NO_RAY, TOKEN, Cluster

if TYPE_CHECKING:
    from tests.training.nightly.conftest import Shop

LONGEST_S = 600


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    for name, value in (TOKEN | {"RAY_worker_niceness": "0"}).items():  # nice workers start late on a busy machine
        monkeypatch.setenv(name, value)
    made = Cluster()
    made.add()
    yield made
    made.end()


@pytest.mark.slow
def test_a_cluster_makes_the_bytes_of_one_process(nightly: "Shop", cluster: Cluster, tmp_path: Path) -> None:
    nightly.edit(lambda rows: [row | {"text": f"{row['text']} {number}"} for number, row in enumerate(rows)])
    alone = type(nightly)(Path(copytree(nightly.home, tmp_path / "alone")))
    alone.reindex()
    words = nightly.words("--engine", "ray", "--ray-address", cluster.address)
    environment = {**without_coverage(), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert nightly.rows() == alone.rows()
    assert nightly.lists() == alone.lists()
    vectors = [
        {path.name: path.read_bytes() for path in shop.run.glob("embeddings/*.npy")} for shop in (nightly, alone)
    ]
    assert vectors[0] == vectors[1]
