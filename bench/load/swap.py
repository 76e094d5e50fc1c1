"""Swaps five bundles under load (good, good, corrupt, truncated, good) and checks every answer.

    python -m bench.load.swap --items 100000
    python -m bench.load.swap --workers 2    # also: until all workers answer from the new bundle

Open-loop Poisson load on `POST /recommend` (half of it with histories stored in Redis) while the pointer of the
registry moves. No request may fail, and every answer must equal that of the bundle it names, computed offline. Latency
counts from the moment a request was due. Prints and writes JSON; compare figures within one file only.
"""

import argparse
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.bundle_answers import Answered, OfflineAnswers, mixed
from bench.index.catalogues import another_night, make_catalogue
from bench.index.encoder import made_encoder, size_name
from bench.load.open_loop import Client, arrivals, requests_of
from bench.measurements import commit, machine
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.encoder_pair import encoder_hash
from index.bundle.gate import Bounds
from index.bundle.index_spec import IndexSpec
from index.bundle.integrity import write_durably
from index.bundle.manifest import FAISS_FILE, MANIFEST_FILE, Manifest
from index.bundle.pointer import POINTER_FILE
from index.bundle.registry import Registry

K = 20
HISTORY = 10
WINDOW_S = 4.0  # of a swap, from the moment the pointer moves


@dataclass
class SwapSetup:
    """A registry with every bundle in place; only its pointer has to move.

    Attributes:
        registry: its directory.
        first: id of the bundle to begin with.
        swaps: (kind, id) in order; kind is good, corrupt or truncated.
        histories: item ids, oldest first.
        bodies: a request for each history, with the items or with a user.
    """

    registry: Path
    first: str
    swaps: list[tuple[str, str]]
    histories: list[list[str]]
    bodies: list[bytes] = field(default_factory=list)

    @property
    def good(self) -> list[str]:
        """Ids of bundles that may answer."""
        return [self.first, *(bundle for kind, bundle in self.swaps if kind == "good")]


def prepare_swaps(work: Path, bundles: Sequence[Path], histories: int, seed: int = 0) -> SwapSetup:
    """Publish the bundles and damaged copies of the first: good, good, corrupt, truncated, good.

    Args:
        work: gets the registry.
        bundles: three different ones; the last swap goes back to the content of the first, under another id.
        histories: how many to ask with.
        seed: of their choice.
    """
    registry = Registry(work / "registry")
    for bundle in bundles:
        registry.publish(bundle)
    swaps = [("good", bundles[1].name), ("good", bundles[2].name)]
    for hours, kind in enumerate(("corrupt", "truncated", "good"), 1):
        again = registry.publish(sealed_again(bundles[0], work / "again", hours))
        damage(registry.path(again), kind)
        swaps.append((kind, again))
    point_to(registry.root, bundles[0].name)
    first = Bundle.load(registry.path(bundles[0].name))
    picks = np.random.default_rng(seed).integers(len(first.evaluation_queries), size=histories)
    asked = [[first.ids.id(int(row)) for row in first.evaluation_queries.history(int(probe))] for probe in picks]
    bodies = [
        json.dumps({"user_id": f"user-{number}", "k": K} if number % 2 else {"items": items, "k": K}).encode()
        for number, items in enumerate(asked)
    ]
    return SwapSetup(registry.root, bundles[0].name, swaps, asked, bodies)


def sealed_again(bundle: Path, out: Path, hours: int) -> Path:
    """A copy of a bundle that says it was built later, and so has another id."""
    manifest = Manifest.read(bundle)
    kept = {name: getattr(manifest, name) for name in Manifest.model_fields}
    later = Manifest.seal(
        manifest.created + timedelta(hours=hours),
        **{name: value for name, value in kept.items() if name not in {"format", "id", "content", "created"}},
    )
    copy = out / later.id
    shutil.copytree(bundle, copy)
    (copy / MANIFEST_FILE).chmod(0o644)
    (copy / MANIFEST_FILE).write_text(later.to_json())
    return copy


def damage(bundle: Path, kind: str) -> None:
    """Change one byte in the middle of the vectors with size and time kept, cut the index in half, or do nothing."""
    name = {"corrupt": "vectors.npy", "truncated": FAISS_FILE}.get(kind)
    if name is None:
        return
    # A file of its own first: publishing links files where it can.
    path = bundle / name
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.unlink()
    path.write_bytes(content if kind == "corrupt" else content[: len(content) // 2])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def point_to(registry: Path, bundle_id: str) -> None:
    """Write the pointer directly; publishing would repair or refuse a damaged bundle."""
    write_durably(registry / POINTER_FILE, json.dumps({"format": 1, "current": bundle_id, "previous": []}).encode())


class Server:
    """A running `vlm2rec serve` on a registry, with a Redis of its own and, by default, one process.

    Args:
        registry: of the bundles.
        state: directory for the copy of the operator state.
        workers: processes that answer.
        **further: settings by variable.
    """

    def __init__(self, registry: Path, state: Path, *, workers: int = 1, **further: str) -> None:
        self.workers = workers
        settings = {"VLM2REC_LOG_LEVEL": "error", "VLM2REC_WORKERS": str(workers)}
        settings |= {"VLM2REC_DIRECTIVES_FILE": str(state / "directives.json")} | further
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--registry", str(registry), "--embedded-redis", "--port", "0"],
            stdout=subprocess.PIPE,
            env={**os.environ, **settings},
            text=True,
        )
        announced = "" if self._process.stdout is None else self._process.stdout.readline()
        found = re.search(r"http://[\d.]+:(\d+)", announced)
        if found is None:
            sys.exit("the service did not start")
        self.port = int(found[1])

    def call(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Send one request; its answer."""
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", sent, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: bytes = answer.read()
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.call("/metrics").decode().splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def end(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)


def load(server: Server, setup: SwapSetup, rate: float, seconds: float) -> list[Answered]:
    """Send every body in turn at random moments, independent of the answers."""
    requests = requests_of("/recommend", setup.bodies)
    numbers = {request: number for number, request in enumerate(requests)}
    answered: list[Answered] = []

    def keep(request: bytes, due: float, at: float, status: int, body: bytes) -> None:
        answered.append(Answered(numbers[request], due, at - due, status, body))

    client = Client(server.port, keep)
    gc.disable()  # a collection among all that building bundles loaded would hold up the client, not the server
    due = time.perf_counter() + 0.1 + arrivals(rate, seconds, seed=0)
    try:
        client.run(requests, due)
    finally:
        gc.enable()
        client.close()
    # What was still unanswered, or never sent, when the client gave up.
    lost = [Answered(0, record[0], float("inf"), 0, b"") for record in client.records if record[1] == 0]
    return answered + lost


def drive(server: Server, setup: SwapSetup, rate: float, seconds: float) -> tuple[list[Answered], list[float]]:
    """Offer load and move the pointer five times meanwhile; the answers and the times of the moves."""
    moved: list[float] = []

    def move() -> None:
        for _, bundle_id in setup.swaps:
            time.sleep(seconds / (len(setup.swaps) + 1))
            moved.append(time.perf_counter())
            point_to(setup.registry, bundle_id)

    mover = threading.Thread(target=move)
    mover.start()
    answers = load(server, setup, rate, seconds)
    mover.join()
    return answers, moved


def store_histories(server: Server, setup: SwapSetup) -> None:
    """Store the histories of the requests that name a user."""
    for number, items in enumerate(setup.histories):
        if number % 2:
            events = [
                {"user_id": f"user-{number}", "item_id": item, "timestamp": place} for place, item in enumerate(items)
            ]
            server.call("/events", {"events": events})


def expected(setup: SwapSetup) -> dict[str, OfflineAnswers]:
    """What each good bundle answers."""
    return {
        bundle_id: OfflineAnswers.of(Bundle.load(setup.registry / bundle_id), setup.histories, K)
        for bundle_id in setup.good
    }


def quantiles(answers: Sequence[Answered]) -> dict[str, float]:
    """Latencies in milliseconds, of one answer at least."""
    p50, p90, p99, most = np.percentile([answer.seconds * 1000 for answer in answers], [50, 90, 99, 100]).tolist()
    return {"requests": len(answers), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": most}


def judge(
    setup: SwapSetup, answers: list[Answered], moved: list[float], wrong: list[str], server: Server
) -> dict[str, Any]:
    """The figures of a run.

    Raises:
        SystemExit: no request was due during a swap, or none beside them, so that there is nothing to compare.
    """
    windows = [(moment, moment + WINDOW_S) for moment in moved]
    during = [[answer for answer in answers if start <= answer.due < end] for start, end in windows]
    quiet = [answer for answer in answers if not any(start <= answer.due < end for start, end in windows)]
    if not all([quiet, *during]):
        raise SystemExit("a swap, or the time beside the swaps, had no request; raise --rate or the seconds of the run")
    swaps = []
    for (kind, bundle_id), moment, end, own in zip(setup.swaps, moved, [*moved[1:], np.inf], during, strict=True):
        taken = swap_seconds([answer for answer in answers if moment <= answer.due < end], bundle_id, moment)
        swaps.append({"kind": kind} | taken | quantiles(own))
    before, worst = quantiles(quiet), max(swap["p99_ms"] for swap in swaps)
    return {
        "requests": len(answers),
        "failed": sum(answer.status != 200 for answer in answers),
        "wrong_answers": len(wrong),
        "bundles_answering": len({json.loads(answer.body)["bundle"] for answer in answers if answer.status == 200}),
        "quiet": before,
        "swaps": swaps,
        "p99_during_ms": worst,
        "p99_bound_ms": max(2 * before["p99_ms"], 20.0),
        "refusals": server.metric("vlm2rec_bundle_refusals_total"),
        "swapped": server.metric("vlm2rec_bundle_swaps_total"),
        "bundles_in_memory": server.metric("vlm2rec_bundles_in_memory"),
        "holds": (
            all(answer.status == 200 for answer in answers)
            and not wrong
            and worst <= max(2 * before["p99_ms"], 20.0)
            and server.metric("vlm2rec_bundle_refusals_total") == 2 * server.workers  # each refuses both
        ),
    }


def swap_seconds(answers: Sequence[Answered], bundle_id: str, moment: float) -> dict[str, float | None]:
    """Seconds from a move of the pointer to the first answer of the bundle, and to the last of another one.

    Args:
        answers: to requests that were due after it and before the next move.
        bundle_id: to which it moved.
        moment: of the move (perf_counter).
    """
    marker = f'"bundle":"{bundle_id}"'.encode()
    new = [answer.due + answer.seconds - moment for answer in answers if marker in answer.body]
    old = [answer.due + answer.seconds - moment for answer in answers if marker not in answer.body]
    return {
        "seconds_to_first_answer": min(new, default=None),
        "seconds_until_all": max(old, default=0.0) if new else None,
    }


def made_bundles(work: Path, items: int) -> list[Path]:
    """Three bundles of the same items with different vectors, made once for a size and an encoder."""
    out, encoder = work / f"built-{items}", made_encoder(work)
    done = out / "done"
    if done.exists() and done.read_text() == encoder_hash(encoder):
        return sorted(out.glob("*Z-*"))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    made, spec = make_catalogue(items), IndexSpec(bounds=Bounds(recall=None))
    for day in range(3):
        print(f"building bundle {day + 1} of 3 with {items} items", file=sys.stderr)
        now = datetime(2026, 1, 1 + day, tzinfo=UTC)
        build_bundle(another_night(made.table, day), encoder, made.queries, out, spec, now=now)
    done.write_text(encoder_hash(encoder))
    return sorted(out.glob("*Z-*"))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1, help="processes that answer")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where built bundles are kept")
    parser.add_argument("--out", type=Path, help="bench/results/swap.json, or swap-workers.json, if not given")
    options = parser.parse_args()
    built = made_bundles(options.work, options.items)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        setup = prepare_swaps(Path(scratch), built, histories=256)
        server = Server(setup.registry, Path(scratch), workers=options.workers)
        try:
            store_histories(server, setup)
            load(server, setup, options.rate, 2.0)  # warm, not counted
            answers, moved = drive(server, setup, options.rate, options.seconds)
            time.sleep(1.1)  # metrics are at most a second old
            found = judge(setup, answers, moved, mixed(answers, expected(setup)), server)
        finally:
            server.end()
    found |= {
        "items": options.items,
        "rate": options.rate,
        "seconds": options.seconds,
        "workers": options.workers,
        "encoder": size_name(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("fastapi", "uvicorn", "faiss-cpu", "onnxruntime", "numpy")},
    }
    out = options.out or Path(f"bench/results/swap{'-workers' if options.workers > 1 else ''}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
