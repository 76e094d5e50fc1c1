"""Measures a large catalogue: build, start of `vlm2rec serve`, resident memory, search latency and a swap.

    python bench/index/index_1m.py --items 1000000

The catalogue, the encoder and the bundle stay in the work directory, so an interrupted run continues;
`--rebuild` builds the bundle again. `--neighbours 50` adds item-to-item lists; give it a work directory of its own.
Start-up is measured from the start of the process to the first 200 of /readyz,
with every file of the bundle in the page cache and a Redis that runs already. Writes JSON to
bench/results/index-N.json.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from bench.index.catalogues import HISTORY, LAYOUT, made_lists, saved_catalogue
from bench.index.swap_cost import second_bundle, swap_under_requests
from bench.resident_memory import memory_of, peak_memory
from demo.embedded_redis import EmbeddedRedis
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.registry import Registry
from index.lists.list_query import ListQuery
from index.machine.cores import available_cores

STARTS = 3
REQUESTS = 1_000
K = 20
VECTORS, INDEX = "vectors.npy", "index.faiss"


def main() -> None:
    """Run every stage that has no result yet and write them all."""
    options = arguments()
    if options.stage is not None:  # in a process of its own, so that its memory is its own
        print(json.dumps({"build": build, "search": search}[options.stage](options)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    say(f"catalogue of {options.items} items")
    saved_catalogue(options.work / "table", options.items)
    make_encoder(options.work / "encoder.onnx")
    built = stored_build(options)
    bundle = options.work / "bundles" / built["bundle"]
    say("publish")
    registry = Registry(options.work / "registry")
    registry.publish(bundle, force=True)
    started = time.perf_counter()
    read_all(bundle)
    say(f"every file read in {time.perf_counter() - started:.1f} s")
    found: dict[str, Any] = {"items": options.items, "slots": [[slot.name, slot.dim] for slot in LAYOUT.slots]}
    found["build"] = built
    found["neighbours"] = options.neighbours
    found["bundle"] = {str(path.relative_to(bundle)): path.stat().st_size for path in bundle_files(bundle)}
    say("copy the bundle, to swap to")
    again = second_bundle(registry, bundle, options.work)
    found["serve"] = serve(options, registry.root, found["bundle"][VECTORS] + found["bundle"][INDEX], again)
    found["search"] = in_own_process("search", options)
    found |= {
        "commit": commit(),
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "faiss-cpu", "onnxruntime", "pyarrow", "fastapi", "uvicorn")},
    }
    out = options.out or Path(f"bench/results/index-{options.items}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--kind", default="auto", help="auto, flat, hnsw or ivf")
    parser.add_argument("--neighbours", type=int, default=0, help="of an item in each item-to-item list; 0: no lists")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of the build")
    parser.add_argument("--work", type=Path, help="kept between runs; .bench/index-N if not given")
    parser.add_argument("--port", type=int, default=8895)
    parser.add_argument("--rebuild", action="store_true", help="build the bundle even if there is one")
    parser.add_argument("--out", type=Path, help="bench/results/index-N.json if not given")
    parser.add_argument("--stage", choices=["build", "search"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work or Path(f".bench/index-{options.items}")
    return options


def make_encoder(path: Path) -> None:
    """An untrained encoder of 2 layers of 128: it answers with a recency-weighted mean and some noise."""
    if path.is_file():
        return
    say("encoder")
    import torch

    from training.encoder.model import SequenceEncoder
    from training.encoder.onnx_export import export_encoder

    torch.manual_seed(0)
    export_encoder(SequenceEncoder(LAYOUT.dim, 5 * HISTORY, layers=2).eval(), LAYOUT, path)


def stored_build(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of the build, from an earlier run if its bundle exists."""
    record = options.work / "build.json"
    if record.is_file() and not options.rebuild:
        built: dict[str, Any] = json.loads(record.read_text())
        asked = (built["asked"], built.get("neighbours", 0))
        if asked == (options.kind, options.neighbours) and (options.work / "bundles" / built["bundle"]).is_dir():
            return built
    built = in_own_process("build", options)
    record.write_text(json.dumps(built))
    return built


def in_own_process(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in a process of its own; its result."""
    command = [sys.executable, __file__, "--stage", stage, "--items", str(options.items), "--work", str(options.work)]
    command += ["--kind", options.kind, "--threads", str(options.threads), "--neighbours", str(options.neighbours)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Build the bundle; seconds by stage and peak memory."""
    catalogue = saved_catalogue(options.work / "table", options.items)
    lists = made_lists(options.items, options.neighbours) if options.neighbours else None
    stages: dict[str, float] = {}
    with peak_memory() as peak:
        started, processor_started = time.perf_counter(), time.process_time()
        path = build_bundle(
            catalogue.table,
            options.work / "encoder.onnx",
            catalogue.queries,
            options.work / "bundles",
            IndexSpec(kind=options.kind, threads=options.threads),
            lists=lists,
            progress=stage_timer(stages),
        )
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor_started
    report = json.loads((path / "report.json").read_text())
    return {
        "bundle": path.name,
        "asked": options.kind,
        "neighbours": options.neighbours,
        "kind": report["index"]["kind"],
        "parameters": report["index"]["parameters"],
        "threads": options.threads,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),  # of all threads: tells more on a busy machine
        "seconds_by_stage": {stage: round(spent, 1) for stage, spent in stages.items()},
        "peak_memory": peak,
        "recall": report["index"]["recall"],
    }


def search(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of encoding and of a search of one query, one after the other in one thread."""
    registry = Registry(options.work / "registry")
    current = registry.current()
    if current is None:
        raise SystemExit(f"nothing is published in {registry.root}")
    bundle = Bundle.load(registry.path(current))
    bundle.warm_up()
    histories = [bundle.evaluation_queries.history(query) for query in range(len(bundle.evaluation_queries))]
    queries = bundle.encode(histories)
    with threadpool_limits(1, user_api="blas"):  # as `vlm2rec serve` runs; FAISS and ONNX Runtime take one anyway
        return {
            "k": K,
            "queries": len(histories),
            "encode_ms": percentiles(lambda number: bundle.encode([histories[number]]), len(histories)),
            "search_ms": percentiles(
                lambda number: bundle.search(queries[[number]], K, histories=[ListQuery(histories[number])]),
                len(histories),
            ),
        }


def serve(options: argparse.Namespace, registry: Path, indexed_bytes: int, again: str) -> dict[str, Any]:
    """Start the service several times; after the last start measure requests, memory, and a swap to ``again``."""
    starts = []
    measured: dict[str, Any] = {}
    with EmbeddedRedis() as redis:
        for number in range(STARTS + 1):  # the first one warms the cache and is not counted
            command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(registry), "--redis", redis.url]
            command += ["--port", str(options.port), "--log-level", "warning", "--workers", "1"]  # whose memory is read
            started = time.perf_counter()
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                wait_until_ready(options.port, server)
                starts.append(round(time.perf_counter() - started, 3))
                say(f"ready after {starts[-1]:.3f} s")
                if number == STARTS:
                    measured = running(options, registry, again, server.pid)
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()
    resident = measured["memory"]["after_requests"]["VmRSS"]
    return {
        "ready_s": {"median": statistics.median(starts[1:]), "all": starts[1:], "first": starts[0]},
        "requests": REQUESTS,
        **measured,
        "vectors_and_index": indexed_bytes,
        "resident_to_vectors_and_index": round(resident / indexed_bytes, 3),
    }


def running(options: argparse.Namespace, registry: Path, again: str, process: int) -> dict[str, Any]:
    """Requests, a swap under requests, and the memory of the service before and after each."""
    memory = {"when_ready": memory_of(process)}
    recommend = requester(options.port, options.items)
    latencies = percentiles(lambda _number: recommend(), REQUESTS)
    memory["after_requests"] = memory_of(process)
    swapped = swap_under_requests(registry, again, recommend)
    memory["after_swap"] = memory_of(process)
    return {"recommend_ms": latencies, "swap": swapped, "memory": memory}


def requester(port: int, items: int) -> Callable[[], str]:
    """A function that sends a request with a random history, all over one connection, and returns the bundle's id."""
    rng = np.random.default_rng(1)
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def recommend() -> str:
        history = [f"item-{row}" for row in rng.integers(0, items, HISTORY)]
        body = json.dumps({"items": history, "k": K, "fields": ["title"]})
        connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        found = json.loads(content) if answer.status == http.HTTPStatus.OK else {"items": []}
        if len(found["items"]) != K:
            raise SystemExit(f"unexpected answer: {answer.status} {content[:200]!r}")
        return str(found["bundle"])

    return recommend


def wait_until_ready(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Poll /readyz until it answers 200."""
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        if server.poll() is not None:
            raise SystemExit(f"the service ended with exit code {server.returncode}")
        time.sleep(0.005)


def stage_timer(seconds: dict[str, float]) -> Callable[[str, float], None]:
    """A progress callback that adds up the seconds of each stage and shows it on stderr."""
    last = [time.perf_counter(), 0.0]
    stages: list[str] = []

    def report(stage: str, share: float) -> None:
        now = time.perf_counter()
        if stages:
            seconds[stages[-1]] = seconds.get(stages[-1], 0.0) + now - last[0]
        last[0] = now
        if stages[-1:] != [stage] or now - last[1] > 5:
            say(f"{stage} {share:.0%}")
            last[1] = now
        stages.append(stage)

    return report


def percentiles(call: Callable[[int], object], count: int) -> dict[str, float]:
    """Milliseconds of ``count`` calls, one after another."""
    times = []
    for number in range(count):
        started = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - started))
    return {f"p{percent}": round(float(np.percentile(times, percent)), 3) for percent in (50, 90, 99)}


def bundle_files(bundle: Path) -> list[Path]:
    """Every file of a bundle."""
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def read_all(bundle: Path) -> None:
    """Bring every file into the page cache."""
    for path in bundle_files(bundle):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def commit() -> str:
    """The commit, with + if files differ from it."""
    answer = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def processor() -> str:
    """The model of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def say(line: str) -> None:
    """Print a line with the time of day to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
