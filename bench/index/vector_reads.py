"""Measures what reading the vectors of history items costs where Milvus is searched.

    python -m bench.index.vector_reads shop/interactions.csv sports/interactions.csv

Two parts, written as JSON:

- *cache*: the events of each data set are replayed in the order of their times. Each is a request of its user, whose
  newest ten items before it are the history. Counted: how many of these items a cache of a share of the catalogue
  holds, and how many requests need no fetch.
- *file*: bytes that the disk gives for a request that reads ten random rows of a mapped file of vectors which is not in
  the page cache, as mapped and with ``MADV_RANDOM``. On a busy machine the bytes are exact and the times are not.
"""

import argparse
import csv
import json
import mmap
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.index.bundles import HISTORY
from bench.measurements import commit
from service.retrieval.milvus.row_vector_cache import RowVectorCache

SHARES = (0.01, 0.05, 0.1, 0.25)
DIM = 192
_ROW_BYTES = 2 * DIM
_REQUESTS = 20  # the file must be much larger than what they read ahead


def main() -> None:
    """Measure both parts and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path, nargs="*", help="files with the columns user_id, item_id and timestamp")
    parser.add_argument("--file-mb", type=int, default=512, help="size of the mapped file")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where that file is made, on a disk")
    parser.add_argument("--out", type=Path, default=Path("bench/results/vector-reads.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"history": HISTORY, "dim": DIM, "file_mb": options.file_mb, "requests": _REQUESTS}
    found["cache"] = {path.parent.name: replayed(path) for path in options.events}
    found["file"] = cold_reads(options.work, options.file_mb)
    found |= {"load_average": round(os.getloadavg()[0], 2), "commit": commit()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def replayed(path: Path) -> dict[str, Any]:
    """Shares of history items that were cached, and of requests without a fetch, by the size of the cache."""
    with path.open(newline="") as file:
        events = sorted(csv.DictReader(file), key=lambda event: float(event["timestamp"]))
    numbers = {item: number for number, item in enumerate(dict.fromkeys(event["item_id"] for event in events))}
    seen: defaultdict[str, list[int]] = defaultdict(list)
    histories = []
    for event in events:
        history = seen[event["user_id"]]
        if history:
            histories.append(np.unique(history[-HISTORY:]).tolist())
        history.append(numbers[event["item_id"]])
    caches = {f"{share:g}": held(histories, max(1, int(share * len(numbers)))) for share in SHARES}
    return {"items": len(numbers), "requests": len(histories), "rows": sum(map(len, histories)), "caches": caches}


def held(histories: list[list[int]], vectors: int) -> dict[str, float]:
    """What a cache of so many vectors holds of histories, from an empty one on."""
    cache = RowVectorCache(vectors * RowVectorCache.bytes_of(1), 1)
    cached = whole = 0
    for history in histories:
        found = cache.get(history)[0]
        missing = [row for row, is_there in zip(history, found.tolist(), strict=True) if not is_there]
        cached += len(history) - len(missing)
        whole += not missing
        cache.put(missing, np.zeros((len(missing), 1), dtype=np.float32))
    return {
        "rows_cached": round(cached / sum(map(len, histories)), 4),
        "requests_without_fetch": round(whole / len(histories), 4),
        "fetched_rows_a_request": round((sum(map(len, histories)) - cached) / len(histories), 3),
    }


def cold_reads(work: Path, size_mb: int) -> dict[str, Any]:
    """Bytes from the disk and milliseconds of a request of ten random rows, by the advice given for the mapping."""
    rows = (size_mb << 20) // _ROW_BYTES
    with tempfile.NamedTemporaryFile(dir=work) as file:
        for _ in range(size_mb):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        return {
            name: cold(file.fileno(), rows, advice, seed)
            for seed, (name, advice) in enumerate((("mapped", mmap.MADV_NORMAL), ("random", mmap.MADV_RANDOM)))
        }


def cold(descriptor: int, rows: int, advice: int, seed: int) -> dict[str, float]:
    """The same for one advice, from an empty page cache on; each request reads other rows."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    mapping = mmap.mmap(descriptor, rows * _ROW_BYTES, access=mmap.ACCESS_READ)
    mapping.madvise(advice)
    vectors = np.frombuffer(mapping, dtype=np.float16).reshape(rows, DIM)
    histories = np.random.default_rng(seed).integers(rows, size=(_REQUESTS, HISTORY))
    spent, before = [], bytes_read()
    for history in histories:
        started = time.perf_counter()
        vectors.take(history, axis=0)
        spent.append((time.perf_counter() - started) * 1000)
    read = bytes_read() - before
    return {
        "kib_a_request": round(read / _REQUESTS / 1024, 1),
        "p50_ms": round(float(np.percentile(spent, 50)), 2),
        "p99_ms": round(float(np.percentile(spent, 99)), 2),
    }


def bytes_read() -> int:
    """Bytes that the disk gave this process so far."""
    counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counted["read_bytes"])


if __name__ == "__main__":
    main()
