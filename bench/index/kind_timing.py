"""Builds one contender of the bench of index kinds, or measures it in turns with the product's own index.

Run by :mod:`bench.index.kinds` with the interpreter of its own environment; prints JSON.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.index.kind_contenders import BASE, CONTENDERS, SAME_GRAPH
from bench.index.kind_faiss import CandidateIndex
from index.search.query_plan import OVER_FETCH
from index.search.scoring import rescore

K = 20
_MARGIN = 1.5  # candidates beyond those that an average filter leaves, as the product takes
_STEP = 1.12  # between two efforts
_MOST_STEPS = 56


@dataclass(frozen=True)
class Queries:
    """Queries of one kind.

    Attributes:
        queries: (q, Σd) float32.
        least_scores: (q,) float32 score of the k-th exact row.
        allowed: (n,) bool; None: every row.
        share: of allowed rows.
    """

    queries: NDArray[np.float32]
    least_scores: NDArray[np.float32]
    allowed: NDArray[np.bool_] | None
    share: float


class Search:
    """A whole search: candidates of the index, without the excluded ones, re-scored from the stored vectors.

    Args:
        contender: the index.
        vectors: (n, Σd) float16.
        rows: (r,) the rows that are in the index.
    """

    def __init__(self, contender: CandidateIndex, vectors: NDArray[np.float16], rows: NDArray[np.int64]) -> None:
        self.contender, self._vectors, self._rows = contender, vectors, rows

    def __call__(self, kind: Queries, number: int, effort: int) -> NDArray[np.float32]:
        """(K,) scores of one query, the best first."""
        query = kind.queries[number : number + 1]
        kept = max(K + OVER_FETCH, self.contender.least)
        fetch = kept if kind.allowed is None else math.ceil(_MARGIN * kept / kind.share)
        found = self.contender.search(query, max(effort, self.contender.low), fetch)
        rows = np.where(found < 0, -1, self._rows[found])
        if kind.allowed is not None:
            chosen = rows[0][(rows[0] >= 0) & kind.allowed[rows[0]]][:kept]
            rows = chosen[None]
        scores: NDArray[np.float32] = rescore(query, rows, self._vectors, K)[1][0]
        return scores

    def recall(self, kind: Queries, effort: int) -> float:
        """Recall@20 over all queries of a kind, 0 … 1."""
        hits = [
            float((self(kind, number, effort) >= kind.least_scores[number]).mean())
            for number in range(len(kind.queries))
        ]
        return float(np.mean(hits))

    def microseconds(self, kind: Queries, effort: int, count: int) -> float:
        """Processor time of a search, the mean of ``count`` queries."""
        whole, thread = time.process_time_ns(), time.thread_time_ns()
        for number in range(count):
            self(kind, number, effort)
        thread, whole = time.thread_time_ns() - thread, time.process_time_ns() - whole
        return max(thread, whole) / count / 1000  # work on another thread counts, too


def least_effort(search: Search, kind: Queries, target: float) -> tuple[int, float] | None:
    """The least effort that reaches a recall, and the recall; None if none does."""
    low, high = 0, _MOST_STEPS
    best = None
    while low <= high:
        middle = (low + high) // 2
        effort = math.ceil(search.contender.low * _STEP**middle)
        recall = search.recall(kind, effort)
        if recall >= target:
            best, high = (effort, recall), middle - 1
        else:
            low = middle + 1
    return best


def measured(
    searches: dict[str, Search],
    kinds: dict[str, Queries],
    efforts: dict[str, dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Processor time of every kind of query: the contenders in turns, several rounds."""
    times: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in searches}
    for _ in range(options.rounds):
        for kind, queries in kinds.items():
            for name, search in searches.items():
                found = efforts[name].get(kind)
                if found:
                    spent = search.microseconds(queries, found[0], min(options.timed, len(queries.queries)))
                    times[name][kind].append(round(spent, 1))
    return times


def loaded(options: argparse.Namespace) -> tuple[NDArray[np.float16], NDArray[np.int64], dict[str, Queries]]:
    """Stored vectors, indexed rows and queries by kind."""
    stored = np.load(options.base.with_name("vectors.npy"), mmap_mode="r").view(np.ndarray)
    with np.load(options.work / "queries.npz") as file:
        names: list[str] = file["names"].tolist()
        filters = {
            name: np.unpackbits(file[f"{name} allowed"], count=len(stored)).view(np.bool_)
            for name in names
            if f"{name} allowed" in file
        }
        kinds = {
            name: Queries(
                file[f"{name} queries"],
                file[f"{name} scores"],
                filters.get(name),
                1.0 if name not in filters else float(filters[name].mean()),
            )
            for name in names
        }
        return stored, file["rows"], kinds


def main() -> None:
    """Build or measure one contender and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["build", "measure"])
    parser.add_argument("name", choices=list(CONTENDERS))
    parser.add_argument("--base", type=Path, required=True, help="index.faiss of the product, vectors.npy beside it")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--target", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--timed", type=int, required=True)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    vectors, rows, kinds = loaded(options)
    file, build, load = CONTENDERS[options.name]
    path = options.work / file
    if options.stage == "build":
        started = time.process_time()
        build(vectors if len(rows) == len(vectors) else vectors[rows], options.base, path)
        print(json.dumps({"build_processor_s": round(time.process_time() - started, 1)}))
        return
    searches = {BASE: Search(*CONTENDERS[BASE][2](vectors, options.base, path), rows)}
    searches[options.name] = Search(*load(vectors, options.base, path), rows)
    known = options.work / "base-efforts.json"
    efforts = {BASE: json.loads(known.read_text())} if known.exists() else {}
    for name, search in searches.items():
        if file in SAME_GRAPH and BASE in efforts:  # another layout of the same graph finds the same rows
            efforts[name] = efforts[BASE]
        elif name not in efforts:
            efforts[name] = {kind: least_effort(search, queries, options.target) for kind, queries in kinds.items()}
    known.write_text(json.dumps(efforts[BASE]))
    times = measured(searches, kinds, efforts, options)
    print(
        json.dumps(
            {
                "efforts": {kind: found and found[0] for kind, found in efforts[options.name].items()},
                "recall": {kind: found and round(found[1], 4) for kind, found in efforts[options.name].items()},
                "us": times[options.name],
                "base_us": times[BASE],
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
