"""Runs code in real processes that one process forks, which has imported everything; so starting one costs little.

A forked process ends without saving what coverage measured, so the one that forks is started without it.
"""

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess

import pytest

from tests.support.environments import without_coverage

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "cli.app",
        "cli.offline.train",
        "cli.online.index",
        "training.nightly.reindex",
        "training.backbones.vlm",
        "training.encoder.projection",
        "training.finetune.trainer",
    ]
)

_UNSYNCED = "from tests.support.processes.unsynced_files import leave_unsynced; leave_unsynced()"


def start_command(words: Sequence[object], before: str = "") -> ForkServerProcess:
    """Start `vlm2rec` in a process of its own, after some code."""
    argv = ["vlm2rec", *map(str, words)]
    return start_code(f"import sys; sys.argv = {argv!r}\n{before}\nfrom cli.main import main; main()")


def start_code(code: str) -> ForkServerProcess:
    """Start some code in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - without_coverage().keys():
            patch.delenv(name)
        for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    process = _FORKS.Process(target=exec, args=(f"{_UNSYNCED}\n{code}", {}))
    process.start()
    return process


def exit_code(process: ForkServerProcess, within: float = 120) -> int | None:
    """The exit code of a process once it ends, minus the signal that ended it."""
    process.join(within)
    code = process.exitcode
    process.close()
    return code
