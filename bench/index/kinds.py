"""Measures index libraries and layouts beside the product's own graph: processor time of a search at the same recall.

    python -m bench.index.kinds --items 1000000

Each contender is measured in a process of its own, in turns with the product's index, so that only the ratio of both
counts on a shared machine. A search is the walk and the exact re-scoring of its candidates from the stored vectors;
the effort is the least that reaches the recall for the kind of query; with ``--bundle`` that of the product's index is
the bundle's. Filters are applied as the product applies them:
more candidates are taken, and the excluded ones dropped. The libraries lie in an environment of their own
(bench/requirements/kinds.txt). An interrupted run continues. Writes JSON to bench/results/kinds-N.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench.index.catalogues import LAYOUT, saved_catalogue
from bench.index.index_1m import make_encoder
from bench.index.kind_contenders import CONTENDERS
from bench.markdown_table import markdown_table
from bench.measurements import Measurements
from bench.serving.environments import python_for
from index.evaluation.measure import encoded, evaluation_histories, query_kinds
from index.search.brute_force import exact_top_k_each
from index.search.encoder import OnnxSequenceEncoder
from index.search.query_plan import OVER_FETCH, Effort, IndexCapabilities, plan
from index.search.scoring import rescore

K = 20
SHARES = (0.5, 0.1)
VECTORS, INDEX = "vectors.npy", "index.faiss"
EFFORTS = "base-efforts.json"


def main() -> None:
    """Measure every contender that has no result yet and print the table."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    base = base_index(options)
    settings = {"items": options.items, "target": options.target, "queries": options.queries}
    results = Measurements(options.out, settings, fresh=options.fresh)
    if not (options.work / "queries.npz").exists():
        write_queries(options, base.with_name(VECTORS))
    if options.bundle is not None and not (options.work / EFFORTS).exists():
        (options.work / EFFORTS).write_text(json.dumps(bundle_efforts(options.bundle, options.work / "queries.npz")))
    for name in options.only or CONTENDERS:
        if name not in results:
            started = time.perf_counter()
            try:
                result = measured(name, base, options)
            except subprocess.CalledProcessError as error:
                lines = str(error.stderr).strip().splitlines() or [str(error)]
                result = {"failed": lines[-1] if "Error" in lines[-1] else lines[0]}
                say(f"{name}: {result['failed']}")
            results.put(name, result, took_s=time.perf_counter() - started)
    found = {name: results[name] for name in CONTENDERS if name in results}
    if found:
        print("\n".join(table(found)))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument(
        "--bundle", type=Path, help="of as many items by bench/index/index_1m.py; built here without it"
    )
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="measure only these")
    parser.add_argument("--target", type=float, default=0.97, help="recall@20 of every kind of query")
    parser.add_argument("--queries", type=int, default=256, help="of each kind")
    parser.add_argument("--timed", type=int, default=128, help="queries of each kind in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="kept between runs; .bench/kinds-N if not given")
    parser.add_argument("--out", type=Path, help="bench/results/kinds-N.json if not given")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    options = parser.parse_args()
    options.work = options.work or Path(f".bench/kinds-{options.items}")
    options.out = options.out or Path(f"bench/results/kinds-{options.items}.json")
    return options


def base_index(options: argparse.Namespace) -> Path:
    """The product's index with ``vectors.npy`` beside it."""
    if options.bundle is not None:
        return Path(options.bundle) / INDEX
    saved_catalogue(options.work / "table", options.items)
    home: Path = options.work / "base"
    home.mkdir(exist_ok=True)
    if not (home / VECTORS).exists():
        (home / VECTORS).symlink_to((options.work / "table" / VECTORS).resolve())
    return home / INDEX


def write_queries(options: argparse.Namespace, vectors: Path) -> None:
    """Write the queries of every kind with the score of the k-th exact row, and the rows to index."""
    say("queries")
    catalogue = saved_catalogue(options.work / "table", options.items)
    make_encoder(options.work / "encoder.onnx")
    stored: NDArray[np.float16] = np.load(vectors, mmap_mode="r").view(np.ndarray)
    indexed = LAYOUT.present(stored).any(axis=1)
    histories = evaluation_histories(indexed, catalogue.queries, options.queries)
    plain = encoded(OnnxSequenceEncoder(options.work / "encoder.onnx"), stored, histories)
    kinds = query_kinds(plain, LAYOUT, dict.fromkeys(LAYOUT.names, 1))
    written: dict[str, Any] = {"rows": np.flatnonzero(indexed)}
    with threadpool_limits(1, user_api="blas"):
        for name, queries, allowed in asked(kinds, indexed):
            say(f"exact results: {name}")
            mask = indexed if allowed is None else indexed & allowed
            rows = exact_top_k_each(queries, stored, K + OVER_FETCH, [mask])[0][0]
            written[f"{name} queries"] = queries
            written[f"{name} scores"] = rescore(queries, rows, stored, K)[1][:, -1]
            if allowed is not None:
                written[f"{name} allowed"] = np.packbits(allowed)
    names = np.array([name.removesuffix(" queries") for name in written if name.endswith(" queries")])
    np.savez(options.work / "queries.npz", names=names, **written)


def bundle_efforts(bundle: Path, written: Path) -> dict[str, tuple[int, float] | None]:
    """Effort and recall of each kind of query by the bundle's own manifest; None where it would scan instead."""
    index = json.loads((bundle / "manifest.json").read_text())["index"]
    found = index["effort"]
    bands = tuple((float(skew), int(effort)) for skew, effort in found["bands"])
    level = Effort(tuple(found["typical"]), bands, found["per_k"], found["growth"])
    efforts: dict[str, tuple[int, float] | None] = {}
    with np.load(written) as file:
        rows = file["rows"]
        for name in file["names"].tolist():
            middle = int(np.median(level.of(file[f"{name} queries"], LAYOUT)))
            count = rows.shape[0]
            if f"{name} allowed" in file:
                count = int(np.unpackbits(file[f"{name} allowed"])[rows].sum())
            step = plan(IndexCapabilities("hnsw", rows.shape[0]), K, count, middle, level)
            efforts[name] = (step.effort, index["recall"][name]) if step.path == "index" else None
    return efforts


def asked(
    kinds: dict[str, NDArray[np.float32]], indexed: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.bool_] | None]]:
    """Name, queries and allowed rows of every kind of query, those with a filter at the end."""
    for name, queries in kinds.items():
        yield name, queries, None
    rng = np.random.default_rng(0)
    for share in SHARES:
        yield f"filtered {100 * share:g} %", kinds["plain"], rng.random(indexed.shape[0]) < share


def measured(name: str, base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build and measure a contender; what an earlier run built is used again."""
    record = options.work / f"{CONTENDERS[name][0]}.built.json"
    if not record.exists():
        say(f"{name}: build")
        record.write_text(json.dumps(in_own_process("build", name, base, options)))
    say(f"{name}: measure")
    found = json.loads(record.read_text()) | in_own_process("measure", name, base, options)
    found |= {"rounds": options.rounds, "timed": options.timed}
    found["bytes"] = sum(file.stat().st_size for file in built_files(options.work / CONTENDERS[name][0], base))
    return found


def built_files(path: Path, base: Path) -> list[Path]:
    """The files of a contender."""
    if not path.exists():
        return [base]
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def in_own_process(stage: str, name: str, base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one stage with the libraries of the bench; its result."""
    command = [str(python_for("kinds")), "-m", "bench.index.kind_timing", stage, name]
    command += ["--base", str(base), "--work", str(options.work), "--target", str(options.target)]
    command += ["--rounds", str(options.rounds), "--timed", str(options.timed)]
    variables = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Least microseconds of each kind of query, and in brackets how many times less than the product's index."""
    kinds = list(results[next(iter(results))]["us"])
    yield from markdown_table(
        ["index", "MB", "build s", *kinds],
        [
            [name, f"{found['bytes'] / 1e6:.0f}", f"{found['build_processor_s']:.0f}"]
            + [cell(found["us"][kind], found["base_us"][kind]) for kind in kinds]
            for name, found in results.items()
        ],
    )


def cell(times: list[float], base: list[float]) -> str:
    """Least time and the ratio to the product's: the median over the rounds with the least and the largest.

    A dash: no effort reaches the recall, or the product would scan instead.
    """
    if not times:
        return "–"
    ratios = sorted(own / other for own, other in zip(base, times, strict=True))
    return f"{min(times):.0f} ({statistics.median(ratios):.2f}; {ratios[0]:.2f}–{ratios[-1]:.2f})"


def say(line: str) -> None:
    """Print a line with the time of day to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
