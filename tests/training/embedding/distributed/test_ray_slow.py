"""`vlm2rec embed --engine ray` on a cluster of this machine: the bytes of one process, also after kills."""

import re
from pathlib import Path

import pytest

from tests.support.processes.ray_clusters import Cluster
from tests.support.processes.ray_jobs import ITEMS, LONGEST_S, ended, killed, shards, start, vectors

pytestmark = pytest.mark.usefixtures("prompt_workers")


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
