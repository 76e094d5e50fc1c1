"""Measures filtered search on a made catalogue: latency, search path and recall, from one allowed row to all.

    python bench/index/filters.py --rows 1000000

Builds a bundle (kept under --work, so that a second run begins at once), searches it with one thread and one query at a
time, and compares every answer with exact search under the same filter. ``random`` filters are independent of the
query; ``nearest … only`` allows only the rows nearest to it, ``nearest … excluded`` excludes them. Prints one line per
filter and writes JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from bench.index.catalogues import HISTORY, LAYOUT, make_catalogue
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.index_spec import IndexSpec
from index.search.brute_force import exact_top_k, exact_top_k_each
from index.search.float16 import to_float32
from index.search.query_plan import OVER_FETCH, Effort
from index.search.row_mask import RowMask
from index.search.scoring import rescore
from index.search.searcher import Searcher
from index.search.vector_index import CpuIndex

BLOCK = 65_536
SIDED = (0.5, 0.1, 0.01)
SHARES = (1.0, 0.999, 0.9, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
FIELD = "serial"  # the row number, of which the vectors know nothing, so that a bound on it allows any share


def mean_encoder(path: Path) -> None:
    """Write an encoder whose query is the mean of the history; it needs no training."""
    nodes = [
        helper.make_node("ReduceSum", ["histories", "axis"], ["total"], keepdims=0),
        helper.make_node("Cast", ["lengths"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["count", "axis"], ["column"]),
        helper.make_node("Div", ["total", "column"], ["queries"]),
    ]
    inputs = [
        helper.make_tensor_value_info("histories", TensorProto.FLOAT, ["B", "L", LAYOUT.dim]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
    ]
    outputs = [helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["B", LAYOUT.dim])]
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    graph = helper.make_graph(nodes, "mean", inputs, outputs, [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    layout = json.dumps([[slot.name, slot.dim] for slot in LAYOUT.slots])
    helper.set_model_props(model, {"layout": layout, "max_history": str(HISTORY), "format": "1"})
    onnx.save(model, path)


def built(options: argparse.Namespace) -> tuple[Path, float | None]:
    """The bundle of a size and kind, and the seconds of its build; None if it existed."""
    out = options.work / f"filters-{options.rows}-{options.kind}"
    there = sorted(path for path in out.glob("*Z-*") if path.is_dir())
    if there:
        return there[-1], None
    catalogue = make_catalogue(options.rows)
    out.mkdir(parents=True, exist_ok=True)
    mean_encoder(out / "encoder.onnx")
    spec = IndexSpec(kind=options.kind, threads=options.threads)
    with Progress() as bars:
        task = bars.add_task("", total=1.0)
        started = time.perf_counter()
        path = build_bundle(
            catalogue.table,
            out / "encoder.onnx",
            catalogue.queries,
            out,
            spec,
            progress=lambda stage, share: bars.update(task, description=f"{stage:<16}", completed=share),
        )
    return path, time.perf_counter() - started


def filters_of(bundle: Bundle) -> Iterator[tuple[str, RowMask, dict[str, float]]]:
    """Random filters by allowed share, with the cost of the first and of a repeated compilation."""
    for share in SHARES:
        count = round(share * len(bundle))
        if count:
            condition = {"must": [{"field": FIELD, "lt": count}]}
            first, again = (timed_ms(lambda: bundle.allowed(condition))[1] for _ in range(2))  # noqa: B023
            yield f"random {share:g}", bundle.allowed(condition), {"compile_ms": first, "again_ms": again}


def sided(
    queries: NDArray[np.float32], vectors: NDArray[np.floating], indexed: NDArray[np.bool_]
) -> Iterator[tuple[str, list[RowMask]]]:
    """For each query, filters that allow only the rows nearest to it, and filters that exclude them."""
    scores = np.concatenate(
        [queries @ to_float32(vectors[at : at + BLOCK]).T for at in range(0, len(vectors), BLOCK)], 1
    )
    for share in SIDED:
        bounds = np.quantile(scores, 1 - share, axis=1)
        yield (
            f"nearest {share:g} only",
            [RowMask.of(row >= bound, indexed) for row, bound in zip(scores, bounds, strict=True)],
        )
        yield (
            f"nearest {share:g} excluded",
            [RowMask.of(row < bound, indexed) for row, bound in zip(scores, bounds, strict=True)],
        )


def timed_ms(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call and its milliseconds."""
    started = time.perf_counter()
    result = call()
    return result, 1000 * (time.perf_counter() - started)


def measured(
    bundle: Bundle,
    searcher: Searcher,
    queries: NDArray[np.float32],
    filters: list[RowMask],
    k: int,
    wanted: NDArray[Any],
) -> dict[str, Any]:
    """Latency, path, recall and the number of answers of one kind of filter, one query at a time."""
    times, hits, paths, complete = [], [], {}, True
    for query, allowed, right in zip(queries, filters, wanted, strict=True):
        step = searcher.planned(query, k, allowed)
        paths[step.path] = paths.get(step.path, 0) + 1
        found, spent = timed_ms(lambda: bundle.search(query[None], k, allowed=allowed))  # noqa: B023
        times.append(spent)
        least = min(k, allowed.count)
        rows, scores = found.rows[0, :least], found.scores[0, :least]
        complete &= bool((rows >= 0).all() and allowed.mask[rows].all() and len(set(rows.tolist())) == least)
        hits.append(float((scores >= right[least - 1]).mean()) if least else 1.0)
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "allowed": int(np.median([allowed.count for allowed in filters])),
        "path": max(paths, key=lambda path: paths[path]),
        "fetch": step.fetch,
        "effort": step.effort,
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        f"recall@{k}": round(float(np.mean(hits)), 4),
        "complete": complete,
    }


def right_scores(
    queries: NDArray[np.float32], vectors: NDArray[np.floating], filters: list[RowMask], k: int
) -> NDArray[np.float32]:
    """(B, k) exact scores of each query under its own filter."""
    answers = []
    for query, allowed in zip(queries, filters, strict=True):
        rows, _ = exact_top_k(query[None], vectors, k + OVER_FETCH, allowed=allowed.findable)
        answers.append(rescore(query[None], rows, vectors, k)[1][0])
    return np.array(answers)


def rows_of(bundle: Bundle, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Lines of the result, one per filter."""
    vectors = np.load(bundle.path / "vectors.npy", mmap_mode="r").view(np.ndarray)
    effort = bundle.manifest.index.effort
    level = Effort(effort.typical, effort.bands, effort.per_k, effort.growth)
    searcher = Searcher(
        CpuIndex(bundle.path / "index.faiss", vectors, bundle.indexed), vectors, bundle.indexed, LAYOUT, level
    )
    last = range(max(0, len(bundle.evaluation_queries) - options.queries), len(bundle.evaluation_queries))
    queries = bundle.encode([bundle.evaluation_queries.history(query) for query in last])
    bundle.search(queries[:1], options.k)
    shared = list(filters_of(bundle))
    masks = [allowed.findable for _, allowed, _ in shared]
    exact = exact_top_k_each(queries, vectors, options.k + OVER_FETCH, masks)
    for (name, allowed, costs), (rows, _) in zip(shared, exact, strict=True):
        wanted = rescore(queries, rows, vectors, options.k)[1]
        filters = [allowed] * len(queries)
        yield {"filter": name} | measured(bundle, searcher, queries, filters, options.k, wanted) | costs
    few = queries[: options.sided_queries]
    for name, filters in sided(few, vectors, bundle.indexed):
        wanted = right_scores(few, vectors, filters, options.k)
        yield {"filter": name} | measured(bundle, searcher, few, filters, options.k, wanted)


def main() -> None:
    """Build, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", default="auto", help="auto, flat, hnsw or ivf")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--queries", type=int, default=200, help="asked under each random filter")
    parser.add_argument("--sided-queries", type=int, default=32, help="asked under each filter of their own")
    parser.add_argument("--threads", type=int, default=2, help="of the build; searches take one")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where bundles are kept")
    parser.add_argument("--out", type=Path, default=Path("bench/results/filters.json"))
    options = parser.parse_args()
    path, seconds = built(options)
    bundle = Bundle.load(path)
    lines = []
    with threadpool_limits(1, user_api="blas"):  # as `vlm2rec serve` runs
        for line in rows_of(bundle, options):
            print(json.dumps(line), flush=True)
            lines.append(line)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    report = json.loads((path / "report.json").read_text())
    result = {
        "rows": options.rows,
        "k": options.k,
        "queries": options.queries,
        "build_s": seconds,
        "index": report["index"],
        "index_bytes": report["index_bytes"],
        "search_ms": report["search_ms"],
        "filters": lines,
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("faiss-cpu", "numpy", "pyarrow")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
