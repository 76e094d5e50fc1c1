"""Real torchrun: over two hosts with a disk each, and after a process was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.support.environments import without_coverage
from tests.support.processes.hosts import Host, two_hosts
from tests.support.processes.ranks import wait_until
from training.config.run_config import load_config, to_toml
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut
from training.finetune.trainer import train_vlm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STEPS = 6
CHANGES: dict[str, Any] = {
    "train.steps": STEPS,
    "train.batch_size": 7,
    "train.checkpoint_steps": 2,
    "train.validate_every": 2,
    "train.cached_gradients": True,
}
WORKER = """
import os, sys, time
from pathlib import Path
from training.finetune.run_log import RunLog
here = Path(sys.argv.pop(1))
(here / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
write = RunLog.write
def holding(self, step, rest):
    write(self, step, rest)
    while step >= 3 and not (here / "go").exists():
        time.sleep(.01)
RunLog.write = holding
from cli.main import main
main()
"""


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Launch:
    """Training started by torchrun on one or two hosts; it waits after the third step until :meth:`go`."""

    def __init__(self, directory: Path, overrides: dict[str, Any]) -> None:
        self._directory = directory
        self._config = directory / "config.toml"
        self._config.write_text(to_toml(load_config(overrides=overrides)))
        self._worker = directory / "worker.py"
        self._worker.write_text(WORKER)
        self.agents: list[subprocess.Popen[str]] = []

    def start(self, shop: Path, run: Path, options: Sequence[str], host: Host | None = None) -> None:
        train = ["train", str(shop), "--run", str(run), "--config", str(self._config), "--threads", "1"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *options]
        words = [*torchrun, "--", str(self._worker), str(self._directory), *train]
        environment = without_coverage() | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }  # fmt: skip
        if host is not None:
            self.agents.append(host.start(words, environment))
            return
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.agents.append(subprocess.Popen(words, env=environment, **output))  # type: ignore[call-overload]

    def start_on(self, hosts: Sequence[Host], disks: Sequence[Path]) -> None:
        for number, (host, disk) in enumerate(zip(hosts, disks, strict=True)):
            rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].address}:29400", "--rdzv-id", "job"]
            rendezvous += ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", host.address]
            options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2", *rendezvous]
            self.start(disk / "shop", disk / "run", options, host)

    def kill(self, rank: int, log: Path) -> None:
        """SIGKILL to a process once the first one has written three lines of the log."""
        wait_until(lambda: self._ended() or (log.is_file() and len(log.read_text().splitlines()) >= 3))
        os.kill(int((self._directory / f"pid-{rank}").read_text()), signal.SIGKILL)

    def go(self) -> None:
        (self._directory / "go").touch()

    def end(self) -> str:
        """Wait for the agents, which must succeed; what they and their processes said."""
        said = [agent.communicate(timeout=500)[0] for agent in self.agents]
        assert [agent.returncode for agent in self.agents] == [0] * len(said), "\n".join(said)
        return "\n".join(said)

    def _ended(self) -> bool:
        return any(agent.poll() is not None for agent in self.agents)


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def assert_same_run(whole: Path, broken: Path) -> None:
    assert lines(whole) == lines(broken)
    assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))
    first, second = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def make_launch(tmp_path: Path) -> Callable[..., Launch]:
    def make(name: str, overrides: dict[str, Any]) -> Launch:
        (tmp_path / name).mkdir()
        return Launch(tmp_path / name, overrides)

    return make


def disks(shop: Path, directory: Path) -> tuple[Path, Path]:
    """Two disks with a copy of the data set each."""
    for name in ("a", "b"):
        shutil.copytree(shop, directory / name / "shop")
    return directory / "a", directory / "b"


def test_two_hosts_train_as_one_process_does_also_after_a_killed_process(
    shop: Dataset,
    shop_directory: Path,
    shop_parts: LeaveOneOut,
    smallest: dict[str, Any],
    tmp_path: Path,
    make_launch: Callable[..., Launch],
) -> None:
    """Equal to one process within 1e-4 of each logged value; a killed one changes no bit."""
    overrides = {**smallest, **CHANGES}
    runs = {}
    for name in ("whole", "broken"):
        launch = make_launch(name, overrides)
        first, second = disks(shop_directory, tmp_path / name)
        runs[name] = first / "run" / "train"
        with two_hosts() as hosts:
            launch.start_on(hosts, (first, second))
            if name == "broken":
                launch.kill(1, runs[name] / "log.jsonl")
            launch.go()
            launch.end()
        assert [path.name for path in (second / "run" / "train").iterdir()] == ["copy"]
    assert_same_run(runs["whole"], runs["broken"])

    config = load_config(overrides=overrides)
    train_vlm(shop, shop_parts.train, tmp_path / "alone", config, validation=shop_parts.validation)
    for mine, other in zip(lines(tmp_path / "alone"), lines(runs["whole"]), strict=True):
        assert set(mine) == set(other)
        for name, value in mine.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (mine["step"], name)


@pytest.mark.parametrize(("killed", "shard"), [(0, False), (1, True)])
def test_a_killed_process_is_started_again_with_the_last_checkpoint(
    shop_directory: Path,
    smallest: dict[str, Any],
    tmp_path: Path,
    make_launch: Callable[..., Launch],
    killed: int,
    shard: bool,
) -> None:
    """Without --resume, which is implied for processes that torchrun starts again."""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    runs = {}
    for name in ("whole", "broken"):
        launch = make_launch(name, {**smallest, **CHANGES, "train.shard": shard})
        runs[name] = tmp_path / name / "run" / "train"
        launch.start(shop_directory, tmp_path / name / "run", options)
        if name == "broken":
            launch.kill(killed, runs[name] / "log.jsonl")
        launch.go()
        launch.end()
    assert_same_run(runs["whole"], runs["broken"])
    assert not list((runs["broken"] / "checkpoints").glob(".*.part"))


def test_a_restart_never_resumes_the_run_of_another_launch(
    shop_directory: Path, smallest: dict[str, Any], tmp_path: Path, make_launch: Callable[..., Launch]
) -> None:
    run = tmp_path / "run"
    options = ["--standalone", "--nproc-per-node", "1", "--max-restarts", "1"]
    for name, code in (("first", 0), ("second", 1)):
        launch = make_launch(name, {**smallest, **CHANGES})
        launch.go()
        launch.start(shop_directory, run, options)
        said = launch.agents[0].communicate(timeout=300)[0]
        assert launch.agents[0].returncode == code, said
    assert said.count("a training run is here already; go on with --resume") == 2
