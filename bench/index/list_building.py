"""Measures what making the lists of words and of pictures costs on made catalogues, and the recall of their neighbours.

    python -m bench.index.list_building --items 100000 --list words

Each list is made in a process of its own: processor time, peak of memory beyond the inputs, longest time between two
reports of progress, and the share of the exact nearest items of a sample that the list holds (an item as similar as
the last exact one counts). ``--texts items.csv`` takes real texts instead of made ones. Writes JSON.
"""

import argparse
import csv
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from bench.measurements import commit
from index.lists.item_lists import ItemList
from training.embedding.baseline_features import term_weights
from training.lists.build import look_list, words_list

NEIGHBOURS = 50
SAMPLE = 300
PICTURE_DIM = 128

_ITEMS_PER_GROUP = 200
_WORDS = 300_000
_TITLE, _TEXT = 8, 30
_GROUP_WORDS = 40
_OF_GROUP, _VARIANTS, _CHANGED = 0.35, 0.3, 0.15  # words of the group; copies of an item; words that a copy changes
_BLOCK = 65_536


def main() -> None:
    """Measure one list at one size, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--list", choices=["words", "look"], default="words", dest="name")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS)
    parser.add_argument("--texts", type=Path, help="items.csv of a data set, instead of made texts")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="items whose exact neighbours are found; 0 for none")
    parser.add_argument("--out", type=Path, help="bench/results/list-building-NAME-N.json if not given")
    options = parser.parse_args()
    with get_context("spawn").Pool(1) as pool:  # its peak of memory is that of this list alone
        found = pool.apply(measured, (options.name, options.items, options.neighbours, options.texts, options.sample))
    found |= {"load_average": round(os.getloadavg()[0], 2), "commit": commit()}
    out = options.out or Path(f"bench/results/list-building-{options.name}-{found['items']}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measured(name: str, items: int, neighbours: int, texts: Path | None, sample: int) -> dict[str, Any]:
    """Make a list, and say what it cost and how good it is."""
    inputs: Any = made_features(items) if name == "look" else read_texts(texts) if texts else made_texts(items)
    make: Callable[..., ItemList] = look_list if name == "look" else words_list
    reports = [time.perf_counter()]
    before, started, used = _reset_peak(), time.perf_counter(), processor_time()
    made = make(inputs, neighbours, progress=lambda _items: reports.append(time.perf_counter()))
    found = {
        "list": name,
        "items": len(inputs),
        "neighbours": neighbours,
        "inputs": str(texts.parent.name) if texts else "made",
        "processor_s": round(processor_time() - used, 1),
        "wall_s": round(time.perf_counter() - started, 1),
        "peak_mib": round((_status("VmHWM") - before) / 1024),
        "longest_silence_s": round(float(np.diff([*reports, time.perf_counter()]).max()), 1),
        "entries": len(made.rows),
    }
    if sample:
        chosen = np.sort(np.random.default_rng(1).permutation(len(inputs))[:sample])
        exact = exact_looks(inputs, chosen) if name == "look" else exact_words(inputs, chosen)
        found |= {"sample": len(chosen), "recall": round(recall(made, chosen, exact, neighbours), 4)}
    return found


def made_texts(items: int, *, seed: int = 0) -> list[str]:
    """Titles of 8 words and texts of 30 by Zipf's law, in groups of about 200 items that share words.

    A third of the words are of the item's group, and three items in ten are copies of another with 15 % of the words
    changed, as variants of a product are.
    """
    rng = np.random.default_rng(seed)
    groups, words = max(1, items // _ITEMS_PER_GROUP), _TITLE + _TEXT
    chances = 1 / (np.arange(1, _WORDS + 1) + 2.7) ** 1.07
    ladder = np.cumsum(chances / chances.sum())
    of_groups = np.searchsorted(ladder, rng.random((groups, _GROUP_WORDS)) * 0.8 + 0.2)
    names = np.array([_word(number) for number in range(_WORDS + 1)], dtype=object)
    texts: list[str] = []
    for first in range(0, items, _BLOCK):
        size = min(_BLOCK, items - first)
        chosen = np.searchsorted(ladder, rng.random((size, words)))
        group = rng.integers(0, groups, size)
        own = of_groups[group[:, None], (rng.random((size, words)) ** 2 * _GROUP_WORDS).astype(np.int64)]
        chosen = np.where(rng.random((size, words)) < _OF_GROUP, own, chosen)
        copies = np.flatnonzero(rng.random(size) < _VARIANTS)
        kept = rng.random((len(copies), words)) >= _CHANGED
        chosen[copies] = np.where(kept, chosen[rng.integers(0, size, len(copies))], chosen[copies])
        texts += [f"{' '.join(row[:_TITLE])}. {' '.join(row[_TITLE:])}" for row in names[chosen].tolist()]
    return texts


def made_features(items: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(n, 128) rows of length 1 in groups of about 200, the groups in 50 kinds; every twentieth row is zero."""
    rng = np.random.default_rng(seed)
    groups, scale = max(1, items // _ITEMS_PER_GROUP), 1 / np.sqrt(np.arange(1, PICTURE_DIM + 1))
    kinds = rng.standard_normal((50, PICTURE_DIM)) * scale
    centres = kinds[rng.integers(0, 50, groups)] + rng.standard_normal((groups, PICTURE_DIM)) * scale * 0.7
    features = np.empty((items, PICTURE_DIM), np.float32)
    for first in range(0, items, _BLOCK):
        part = features[first : first + _BLOCK]
        noise = rng.standard_normal(part.shape) * scale * 0.6
        part[:] = centres[rng.integers(0, groups, len(part))] + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    features[::20] = 0
    return features


def read_texts(path: Path) -> list[str | None]:
    """Column ``text``, else ``title``, of a data set's items."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row["text"] or row["title"] or None for row in csv.DictReader(file)]


def exact_looks(features: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """(m, n) cosines of chosen items with all."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.where(lengths > 0, lengths, 1)
    return np.asarray(units[chosen] @ units.T)


def exact_words(texts: Sequence[str | None], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """(m, n) cosines of the texts of chosen items with all."""
    weights, rows = term_weights(texts)
    own = csr_matrix((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape=(len(texts), len(rows)))
    weights = csr_matrix(own @ weights, dtype=np.float32)
    return np.asarray((weights[chosen] @ weights.T).toarray())


def recall(made: ItemList, chosen: NDArray[np.int64], exact: NDArray[np.float32], neighbours: int) -> float:
    """Share of the exact nearest items that a list holds; an item as similar as the last of them counts."""
    found = right = 0
    for row, cosines in zip(chosen, exact, strict=True):
        stored = cosines.astype(np.float16)
        stored[row] = 0
        best = -np.sort(-stored[stored > 0].astype(np.float32))[:neighbours]
        similarities = made.of(int(row))[1].astype(np.float32)
        right += len(best)
        found += int((similarities >= best[-1] * (1 - 1e-3)).sum()) if len(best) else 0
    return found / max(right, 1)


def processor_time() -> float:
    """Seconds of all threads of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _word(number: int) -> str:
    """A word of letters, short for the frequent ones."""
    letters = ""
    while number >= 0:
        letters += chr(ord("a") + number % 26)
        number = number // 26 - 1
    return letters


def _status(field: str) -> int:
    """A field of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _reset_peak() -> int:
    """Resident memory now, in KiB, from which the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


if __name__ == "__main__":
    sys.exit(main())
