"""Computes RecTools' HR, NDCG and coverage in the environment of `bench/method/rectools_values.py`."""

import json
import sys

import numpy as np
import pandas as pd
import rectools
from rectools import Columns
from rectools.metrics import NDCG, CatalogCoverage, HitRate

_CUTS = (10, 20)


def main() -> None:
    """Read the cases from stdin, write values to stdout."""
    case = json.load(sys.stdin)
    scores = np.array(case["scores"])
    targets = pd.DataFrame({Columns.User: range(len(scores)), Columns.Item: case["targets"]})
    history = [set(rows) for rows in case["histories"]]
    full = _ranked(scores, [[i for i in range(scores.shape[1]) if i not in seen] for seen in history])
    few = _ranked(scores, [[*rows, target] for rows, target in zip(case["negatives"], case["targets"], strict=True)])
    values = {f"hr@{k}": _per_user(HitRate(k=k), full, targets) for k in _CUTS}
    values |= {f"ndcg@{k}": _per_user(NDCG(k=k, divide_by_achievable=True), full, targets) for k in _CUTS}
    values |= {f"hr@{k}/100": _per_user(HitRate(k=k), few, targets) for k in _CUTS}
    values |= {f"ndcg@{k}/100": _per_user(NDCG(k=k, divide_by_achievable=True), few, targets) for k in _CUTS}
    coverage = CatalogCoverage(k=10, normalize=True).calc(full, range(scores.shape[1]))
    versions = {"rectools": rectools.VERSION, "numpy": np.__version__, "pandas": pd.__version__}
    json.dump({"versions": versions, "values": values, "coverage@10": float(coverage)}, sys.stdout)


def _ranked(scores: np.ndarray, candidates: list[list[int]]) -> pd.DataFrame:
    """Candidates of each user by score, best first, as RecTools' table of recommendations."""
    parts = []
    for user, items in enumerate(candidates):
        ordered = sorted(items, key=lambda item: -scores[user, item])
        ranks = range(1, len(ordered) + 1)
        parts.append(pd.DataFrame({Columns.User: user, Columns.Item: ordered, Columns.Rank: ranks}))
    return pd.concat(parts)


def _per_user(metric: HitRate | NDCG, recommended: pd.DataFrame, targets: pd.DataFrame) -> list[float]:
    return [float(value) for value in metric.calc_per_user(recommended, targets).sort_index()]


if __name__ == "__main__":
    main()
