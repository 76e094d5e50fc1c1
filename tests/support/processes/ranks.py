"""Starts `vlm2rec` in several processes of one group, as torchrun does, but forked, so that starting costs little."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch.distributed import TCPStore

from tests.support.processes.forked_commands import exit_code, start_command

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

_AS_RANK = """
import os
os.environ |= {{  # as torchrun sets them
    "RANK": "{rank}", "LOCAL_RANK": "{local}", "WORLD_SIZE": "{count}", "LOCAL_WORLD_SIZE": "{count}",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
}}
"""


class Ranks:
    """Processes that train together over gloo.

    Args:
        commands: the words of each process's command line.
        before: code that runs in each process first.
        machines: whether each process counts as the first of a machine.
    """

    def __init__(self, commands: Sequence[Sequence[object]], before: str = "", *, machines: bool = False) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes: list[ForkServerProcess] = []
        for rank, words in enumerate(commands):
            values = {"rank": rank, "local": 0 if machines else rank, "count": len(commands), "port": self._store.port}
            self.processes.append(start_command(words, _AS_RANK.format(**values) + before))

    def exit_codes(self, within: float = 300) -> list[int | None]:
        """The exit code of each process once all have ended, minus the signal that ended it."""
        return [exit_code(process, within) for process in self.processes]


def wait_until(due: Callable[[], bool], within: float = 300) -> None:
    """Wait until something is the case."""
    end = time.monotonic() + within
    while not due():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
