"""Prepares what all measurements share: bundles, Redis servers with histories, and requests."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench.index.bundles import Published, user_histories
from bench.load.closed_loop import closed_loop
from bench.load.histories import fill, user_id
from bench.serving.contenders import Contender
from bench.serving.plan import ServingPlan
from bench.serving.quality import Asked, K
from bench.serving.running import PATH, RunningContender
from demo.embedded_redis import EmbeddedRedis
from index.bundle.bundle import Bundle

_MOST_HISTORIES = 10_000
_MOST_BODIES = 10_000


class Setting:
    """Bundles, Redis servers and request bodies, made at first use.

    Args:
        plan: sizes, rates and durations.
        bundles: by size.
    """

    def __init__(self, plan: ServingPlan, bundles: Mapping[int, Published]) -> None:
        self.plan = plan
        self._published = bundles
        self._stack = ExitStack()
        self._urls: dict[tuple[int, int], str] = {}
        self._bundles: dict[int, Bundle] = {}
        self._histories: dict[int, NDArray[np.int64]] = {}

    def __enter__(self) -> Self:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vlm2rec-bench-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def bundle(self, rows: int) -> Bundle:
        """The bundle of a size, for direct use."""
        if rows not in self._bundles:
            self._bundles[rows] = Bundle.load(Path(self._published[rows].bundle))
        return self._bundles[rows]

    def histories(self, rows: int) -> NDArray[np.int64]:
        """(u, 10) int64 rows, the histories of the first users; later users have the same again."""
        if rows not in self._histories:
            users = min(max(self.plan.users, self.plan.checked), _MOST_HISTORIES)
            self._histories[rows] = user_histories(self.bundle(rows), users)
        return self._histories[rows]

    def redis(self, rows: int, users: int) -> str:
        """URL of a Redis that holds the histories of so many users."""
        if (rows, users) not in self._urls:
            id_of, histories = self.bundle(rows).ids.id, self.histories(rows).tolist()
            server = self._stack.enter_context(EmbeddedRedis())
            fill(server.url, [[id_of(row) for row in histories[user % len(histories)]] for user in range(users)])
            self._urls[rows, users] = server.url
        return self._urls[rows, users]

    def start(self, contender: Contender, rows: int, users: int, **options: Any) -> RunningContender:  # noqa: ANN401
        """A contender on the bundle of a size and the Redis of so many users, not yet started.

        Args:
            contender: what to start.
            rows: the size.
            users: histories in its Redis.
            **options: of `RunningContender`.

        Raises:
            CannotInstall: its packages cannot be had.
        """
        return RunningContender(
            contender,
            registry=self._published[rows].registry,
            bundle=self._published[rows].bundle,
            redis=self.redis(rows, users),
            probe=self._asked(0),
            log=self._directory / "contender.log",
            **options,
        )

    def closed(self, running: RunningContender, users: int, connections: int, seconds: float) -> dict[str, Any]:
        """Closed-loop load, see :func:`bench.load.closed_loop.closed_loop`, with ``cpu_ms`` of an answer.

        These milliseconds are processor time of all processes of the contender, for each answer with 200.
        """
        bodies, before = self._bodies(running.contender, users), running.cpu_seconds()
        began = time.perf_counter()
        found = closed_loop(running.port, PATH, bodies, connections, seconds)
        used, took_s = running.cpu_seconds() - before, time.perf_counter() - began
        answers = (found["good"] + found["degraded"]) * took_s
        return found | ({"cpu_ms": 1000 * used / answers} if answers else {})

    def open(self, running: RunningContender, users: int, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """Open-loop load from a process of its own; see :func:`bench.load.open_loop.summary`."""
        command = [sys.executable, "-m", "bench.load.open_loop", "--port", str(running.port), "--path", PATH]
        command += ["--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed)]
        command += ["--bodies", str(self._bodies(running.contender, users))]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return found

    def ask(self, running: RunningContender, user: int, extra: Asked) -> list[str]:
        """The item ids of the answer to a user, best first.

        Raises:
            RuntimeError: the answer is not 200.
        """
        status, body = running.ask(self._asked(user) | extra)
        if status != 200:
            raise RuntimeError(f"{running.contender.name} answered {status} to a plain request: {body[:200]!r}")
        return running.contender.items(body)

    def _asked(self, user: int) -> dict[str, Any]:
        return {"user_id": user_id(user), "k": K}

    def _bodies(self, contender: Contender, users: int) -> Path:
        """A file of bodies in a random order, one a line, each of another user."""
        path = self._directory / f"bodies-{users}-{contender.in_a_list}.jsonl"
        if not path.exists():
            order = np.random.default_rng(users).permutation(users)[:_MOST_BODIES].tolist()
            path.write_bytes(b"\n".join(contender.body(self._asked(user)) for user in order))
        return path
