"""Jobs of `vlm2rec embed` as processes, with and without a Ray cluster."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.environments import without_coverage
from tests.support.shops import eventually

ITEMS = 240  # of the fixture `large`
LONGEST_S = 600


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


def killed(home: Path, at: int, kill: Callable[[], None]) -> None:
    """Kill something once a number of shards is there, and not yet all."""
    eventually(lambda: shards(home) >= at, 240)
    assert shards(home) < ITEMS // 2
    kill()
