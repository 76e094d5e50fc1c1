"""Measures the index on a GPU: parity with exact search on the CPU, filters, and the used share of memory bandwidth.

    python bench/gpu/gpu_index.py --rows 10000000            # needs faiss-gpu, and torch or cupy to measure the card
    python bench/gpu/gpu_index.py --rows 20000 --device cpu  # shows that the script works; says nothing about a GPU

Flat fp16 reads every stored vector once a batch, so rows × dimensions × 2 bytes over the time of one search, over the
rate at which the card copies memory (bytes read and written), is the share of bandwidth that is used. IVF is trained on
the CPU, on ``--ivf-rows`` of the same rows. Prints and writes JSON; exits with 1 where parity or a filter fails.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.index.catalogues import LAYOUT
from index.search.brute_force import exact_top_k, exact_top_k_each
from index.search.float16 import to_float32
from index.search.query_plan import GROWTH, OVER_FETCH, SCAN, Effort, SearchStep
from index.search.scoring import rescore
from index.search.searcher import Searcher
from index.search.vector_index import CpuIndex, GpuIndex, VectorIndex

K = 20
BLOCK = 65_536
CLUSTERS, INTRINSIC, SPREAD, NOISE = 1024, 36, 1.5, 0.1
SHARES = (0.999, 0.5, 0.1, 0.01, 1e-4, 1e-6)
BATCHES = (1, 8, 32, 128)
COPIED_BYTES = 1 << 30
LEAST_RECALL = 0.999


def stored_vectors(rows: int) -> NDArray[np.float16]:
    """(rows, 192) float16, clustered, made block by block; every thousandth row has no slot."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, INTRINSIC), dtype=np.float32)
    maps = [rng.standard_normal((INTRINSIC, slot.dim), dtype=np.float32) for slot in LAYOUT.slots]
    vectors = np.empty((rows, LAYOUT.dim), dtype=np.float16)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        points = centres[rng.integers(0, CLUSTERS, count)]
        points += SPREAD * rng.standard_normal(points.shape, dtype=np.float32)
        slots = {}
        for slot, shown in zip(LAYOUT.slots, maps, strict=True):
            slots[slot.name] = points @ shown + NOISE * rng.standard_normal((count, slot.dim), dtype=np.float32)
            slots[slot.name][::1000] = 0
        vectors[start : start + count] = LAYOUT.stack(slots)
    return vectors


def seconds(call: Callable[[], Any], repeats: int = 20) -> float:
    """The median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def copy_rate(device: str) -> tuple[float, str]:
    """Bytes a second, read and written together, of a large copy in the device's memory, and what measured it."""
    if device == "cpu":
        source = np.zeros(COPIED_BYTES // 4, dtype=np.uint8)
        target = np.zeros_like(source)
        return 2 * source.nbytes / seconds(lambda: np.copyto(target, source)), "numpy"
    try:
        import torch
    except ImportError:
        import cupy

        there = cupy.zeros(COPIED_BYTES, dtype=cupy.uint8)
        other = cupy.zeros_like(there)

        def copy_with_cupy() -> None:
            cupy.copyto(other, there)
            cupy.cuda.runtime.deviceSynchronize()

        return 2 * COPIED_BYTES / seconds(copy_with_cupy), "cupy"
    source_there = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target_there = torch.zeros_like(source_there)

    def copy_with_torch() -> None:
        target_there.copy_(source_there)
        torch.cuda.synchronize()

    return 2 * COPIED_BYTES / seconds(copy_with_torch), "torch"


def opened(
    faiss_index: Any,  # noqa: ANN401 - faiss has no types
    vectors: NDArray[np.float16],
    indexed: NDArray[np.bool_],
    device: str,
) -> VectorIndex:
    """A FAISS index in the adapter that serves it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "index.faiss"
        faiss.write_index(faiss_index, str(path))
        on_cpu = CpuIndex(path, vectors, indexed, threads=faiss.omp_get_max_threads())
        return GpuIndex(on_cpu) if device == "cuda" else on_cpu


def found_share(
    answer: tuple[NDArray[np.int64], NDArray[np.float32]], right: tuple[NDArray[np.int64], NDArray[np.float32]]
) -> dict[str, float]:
    """Parity with the exact answer: the share of equal rows at equal positions, and recall by score."""
    real = right[0] >= 0
    if not real.any():
        return {"same_rows": 1.0, "recall": 1.0}
    last = np.where(real, right[1], np.inf).min(axis=1, keepdims=True)
    return {
        "same_rows": round(float((answer[0] == right[0])[real].mean()), 5),
        "recall": round(float((answer[1] >= last)[real].mean()), 5),
    }


def exactly(
    queries: NDArray[np.float32], vectors: NDArray[np.float16], masks: list[NDArray[np.bool_]], k: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The exact answer under each mask."""
    answers = exact_top_k_each(queries, vectors, k + OVER_FETCH, masks)
    return [rescore(queries, rows, vectors, k) for rows, _ in answers]


def filters(
    searcher: Searcher, queries: NDArray[np.float32], vectors: NDArray[np.float16], indexed: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Check every filter: only allowed rows, as many as exist, and the exact ones."""
    rng = np.random.default_rng(1)
    rows = vectors.shape[0]
    masks = {f"random {share:g}": rng.random(rows) < max(share, 1 / rows) for share in SHARES}
    near = exact_top_k(queries[:1], vectors, min(10_000, rows // 10), allowed=indexed)[0][0]
    masks["nearest excluded"] = np.ones(rows, dtype=np.bool_)
    masks["nearest excluded"][near] = False
    masks["none"] = np.zeros(rows, dtype=np.bool_)
    lines = []
    rights = exactly(queries, vectors, [mask & indexed for mask in masks.values()], K)
    for (name, mask), right in zip(masks.items(), rights, strict=True):
        answer = searcher.search(queries, K, mask)
        real = answer[0] >= 0
        lines.append(
            {
                "filter": name,
                "allowed": int((mask & indexed).sum()),
                "path": searcher.planned(queries[0], K, mask).path if mask.any() else "none",
                "only_allowed": bool((mask & indexed)[answer[0][real]].all()),
                "complete": bool((real.sum(axis=1) == min(K, int((mask & indexed).sum()))).all()),
            }
            | found_share(answer, right)
        )
    return lines


def flat(
    vectors: NDArray[np.float16], indexed: NDArray[np.bool_], queries: NDArray[np.float32], options: argparse.Namespace
) -> dict[str, Any]:
    """Flat fp16: parity at several depths, filters, bandwidth."""
    bare = faiss.IndexScalarQuantizer(LAYOUT.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index = opened(bare, vectors, indexed, options.device)
    effort = Effort((1 / 3,) * 3, ((1.0, SCAN),), K + OVER_FETCH, GROWTH["flat"])
    searcher = Searcher(index, vectors, indexed, LAYOUT, effort)
    result: dict[str, Any] = {"parity": {}, "bandwidth": {}}
    for k in (K, 1000, 3000):  # the last is beyond what a GPU gives, so the stored vectors are scanned instead
        few = queries[:8] if k > K else queries
        right = exactly(few, vectors, [indexed], k)[0]
        result["parity"][f"k={k}"] = found_share(searcher.search(few, k), right)
    result["filters"] = filters(searcher, queries[:16], vectors, indexed)
    rate, tool = copy_rate(options.device)
    size = int(indexed.sum()) * LAYOUT.dim * 2
    result["copy_gb_s"], result["copy_measured_with"] = round(rate / 1e9, 1), tool
    for batch in BATCHES:
        asked = np.ascontiguousarray(np.resize(queries, (batch, LAYOUT.dim)))
        step = SearchStep("index", K + OVER_FETCH, SCAN)
        spent = seconds(lambda: index.search(asked, step, None))  # noqa: B023
        result["bandwidth"][f"batch={batch}"] = {
            "ms": round(1000 * spent, 4),
            "queries_s": round(batch / spent, 1),
            "share_of_copy": round(size / spent / rate, 4),
        }
    return result


def ivf(
    vectors: NDArray[np.float16], indexed: NDArray[np.bool_], queries: NDArray[np.float32], options: argparse.Namespace
) -> dict[str, Any]:
    """IVF with sq8 codes, trained on the CPU: the same candidates on both devices, recall and filters."""
    rows = min(options.ivf_rows, vectors.shape[0])
    vectors, indexed = vectors[:rows], indexed[:rows]
    lists = max(1, min(int(4 * rows**0.5), rows // 39))
    centroids = faiss.IndexFlatIP(LAYOUT.dim)
    codes, product = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    inverted = faiss.IndexIVFScalarQuantizer(centroids, LAYOUT.dim, lists, codes, product, False)
    inverted.cp.niter, inverted.cp.spherical = 10, True
    held = np.flatnonzero(indexed)
    inverted.train(to_float32(vectors[held[:: max(1, len(held) // (64 * lists))]]))
    for start in range(0, len(held), BLOCK):
        inverted.add(to_float32(vectors[held[start : start + BLOCK]]))
    index = opened(inverted, vectors, indexed, options.device)
    reference = opened(inverted, vectors, indexed, "cpu")
    probes = min(options.probes, lists)
    step = SearchStep("index", K + OVER_FETCH, probes)
    here, there = (one.search(queries, step, None) for one in (reference, index))
    same = np.mean([len(set(a) & set(b)) / len(set(a)) for a, b in zip(here.tolist(), there.tolist(), strict=True)])
    effort = Effort((1 / 3,) * 3, ((1.0, probes),), K + OVER_FETCH, GROWTH["ivf"])
    searcher = Searcher(index, vectors, indexed, LAYOUT, effort)
    right = exactly(queries, vectors, [indexed], K)[0]
    return {
        "rows": rows,
        "lists": lists,
        "probes": probes,
        "same_candidates_as_cpu": round(float(same), 5),
        "parity": found_share(searcher.search(queries, K), right),
        "filters": filters(searcher, queries[:16], vectors, indexed),
        "ms": round(1000 * seconds(lambda: index.search(queries[:1], step, None)), 4),
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Failed conditions."""
    wrong = []
    for kind in ("flat", "ivf"):
        for line in result[kind]["filters"]:
            if not (line["only_allowed"] and line["complete"]):
                wrong.append(f"{kind}: filter {line['filter']} gave wrong or too few rows")
            if kind == "flat" and line["recall"] < LEAST_RECALL:
                wrong.append(f"flat: filter {line['filter']} has recall {line['recall']}")
    wrong += [
        f"flat: {k} has recall {got['recall']}"
        for k, got in result["flat"]["parity"].items()
        if got["recall"] < LEAST_RECALL
    ]
    if result["ivf"]["same_candidates_as_cpu"] < LEAST_RECALL:
        wrong.append(f"ivf: only {result['ivf']['same_candidates_as_cpu']} of the candidates are those of the CPU")
    return wrong


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ivf-rows", type=int, default=1_000_000)
    parser.add_argument("--probes", type=int, default=64, help="lists that IVF looks into")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="bench/results/gpu_index.json for cuda; only printed for cpu")
    options = parser.parse_args()
    vectors = stored_vectors(options.rows)
    indexed = LAYOUT.present(vectors).any(axis=1)
    rng = np.random.default_rng(2)
    queries = to_float32(vectors[rng.choice(np.flatnonzero(indexed), options.queries)])
    queries += 0.02 * rng.standard_normal(queries.shape, dtype=np.float32)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "device": options.device,
        "rows": options.rows,
        "dim": LAYOUT.dim,
        "flat": flat(vectors, indexed, queries, options),
        "ivf": ivf(vectors, indexed, queries, options),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": installed(("faiss-gpu", "faiss-cpu", "torch", "cupy", "numpy")),
    }
    result["failures"] = failures(result)
    print(json.dumps(result, indent=1))
    out = options.out or (Path("bench/results/gpu_index.json") if options.device == "cuda" else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
