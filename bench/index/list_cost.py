"""Measures what item-to-item lists add to a search: processor time with and without them, in turns.

    python -m bench.index.list_cost --items 100000 --neighbours 50

Both kinds of search run in one thread on one bundle, so only the lists differ. Time is that of the thread on a
processor, without waiting for one; the least of several rounds counts for each batch, because on a busy machine others
empty the caches. Histories are those of a service (items that are like each other) or random. The bundle stays in the
work directory. Writes JSON.
"""

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench.index.bundles import HISTORY, published, user_histories
from bench.measurements import commit
from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery

K = 20
BATCHES = (1, 16)
QUERIES = 512
BATCHES_OF_A_ROUND = 32


def main() -> None:
    """Build the bundle if it is missing, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--neighbours", type=int, default=50, help="of an item in each of three lists")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where bundles are kept between runs")
    parser.add_argument("--out", type=Path, help="bench/results/list-cost-N.json if not given")
    options = parser.parse_args()
    bundle = prepared(options.work, options.items, options.neighbours)
    random = np.random.default_rng(0).integers(0, options.items, (QUERIES, HISTORY))
    kinds = {"like each other": user_histories(bundle, QUERIES), "random": random}
    found: dict[str, Any] = {"items": options.items, "neighbours": options.neighbours, "history": HISTORY, "k": K}
    with threadpool_limits(1, user_api="blas"):  # as `vlm2rec serve` runs; FAISS takes one anyway
        for kind, histories in kinds.items():
            found[kind] = {f"batch {size}": cost(bundle, histories, size, options.rounds) for size in BATCHES}
    found |= {"rounds": options.rounds, "load_average": round(os.getloadavg()[0], 2), "commit": commit()}
    out = options.out or Path(f"bench/results/list-cost-{options.items}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def prepared(work: Path, items: int, neighbours: int) -> Bundle:
    """The bundle of a size with lists, warm."""
    made = published(items, work, lambda stage, _: print(stage, file=sys.stderr), neighbours=neighbours)
    bundle = Bundle.load(Path(made.bundle))
    bundle.warm_up()
    return bundle


def cost(bundle: Bundle, histories: NDArray[np.int64], size: int, rounds: int) -> dict[str, Any]:
    """Microseconds a request of a search without and with lists in batches of a size.

    Args:
        bundle: with lists.
        histories: (q, h) int64 rows, oldest first.
        size: of a batch, at most q.
        rounds: how often every batch is searched, without and with lists in turns.
    """
    queries = bundle.encode(list(histories))
    kinds: list[list[ListQuery | None]] = [[None] * len(queries), [ListQuery(history) for history in histories]]
    starts = range(0, len(queries) - size + 1, max(size, len(queries) // BATCHES_OF_A_ROUND))
    spent = np.empty((rounds, len(starts), len(kinds)))
    # All batches of one kind, then all of the other: a query that was searched just before has its items in the caches.
    for lap, kind in itertools.product(range(rounds), range(len(kinds))):
        for number, start in enumerate(starts):
            part = slice(start, start + size)
            started = time.thread_time_ns()
            bundle.search(queries[part], K, histories=kinds[kind][part])
            spent[lap, number, kind] = (time.thread_time_ns() - started) / 1000 / size
    without, with_lists = spent.min(axis=0).mean(axis=0).tolist()
    return {
        "without_us": round(without, 1),
        "with_us": round(with_lists, 1),
        "added_us": round(with_lists - without, 1),
        "ratio": round(with_lists / without, 3),
    }


if __name__ == "__main__":
    main()
