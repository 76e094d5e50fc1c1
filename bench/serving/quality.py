"""Checks served answers against exact search and against the bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.index.bundles import GROUP, GROUPS
from index.bundle.bundle import Bundle
from index.items.item_table import VECTORS_FILE
from index.search.brute_force import exact_top_k

K = 20
PLAIN = "plain"

Asked = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        extra: what the body has beside user and k.
        by_slot: weights of the request by slot name.
        allowed: (n,) bool, rows that may be answered; None: all.
    """

    extra: Asked
    by_slot: Mapping[str, float]
    allowed: NDArray[np.bool_] | None


def kinds_of(bundle: Bundle) -> dict[str, Kind]:
    """Plain requests, each slot three times and alone, and filters that allow a half, a tenth and a hundredth."""
    names = bundle.layout.names
    found = {PLAIN: Kind({}, {}, None)}
    for name in names:
        for label, weights in (
            ("x3", {name: 3.0}),
            ("alone", {other: 0.0 for other in names if other != name}),
        ):
            found[f"{name} {label}"] = Kind({"slot_weights": weights}, weights, None)
    groups = bundle.metadata.column(GROUP).to_numpy()
    for percent in (50, 10, 1):
        bound = percent * GROUPS // 100
        condition = {"filter": {"must": [{"field": GROUP, "lt": bound}]}}
        found[f"filtered {percent} %"] = Kind(condition, {}, groups < bound)
    return found


def recall_served(
    bundle: Bundle, histories: NDArray[np.int64], kind: Kind, ask: Callable[[int, Asked], list[str]]
) -> float:
    """Recall@20 of served answers against exact search without the history itself, 0 … 1.

    Exact search scores as docs/http.md says: slots times their weights, and items that lack a slot of a weight below 1
    times their factor (`index.items.slots.SlotLayout.weight_scales`).

    Args:
        bundle: what serves.
        histories: (u, 10) int64 rows of the users that ask.
        kind: of the requests.
        ask: from the number of a user and the extra of the request to the item ids answered, best first.
    """
    queries = bundle.encode(list(histories)) * bundle.layout.weights(kind.by_slot)
    vectors = np.load(bundle.path / VECTORS_FILE, mmap_mode="r")
    if any(weight < 1 for weight in kind.by_slot.values()):
        scales = bundle.layout.weight_scales(bundle.layout.present(vectors), kind.by_slot)
        vectors = vectors * scales[:, np.newaxis]
    allowed = bundle.indexed if kind.allowed is None else kind.allowed & bundle.indexed
    rows, _ = exact_top_k(queries, vectors, K + histories.shape[1], allowed=None if allowed.all() else allowed)
    hits = wanted = 0
    for number, (exact, history) in enumerate(zip(rows, histories, strict=True)):
        right = [bundle.ids.id(row) for row in exact.tolist() if row >= 0 and row not in history][:K]
        hits += len(set(right) & set(ask(number, kind.extra)))
        wanted += len(right)
    return hits / wanted


def same_as_bundle(bundle: Bundle, histories: NDArray[np.int64], ask: Callable[[int, Asked], list[str]]) -> float:
    """Share of users whose served answer equals the bundle's own answer item for item, 0 … 1."""
    found = bundle.search(bundle.encode(list(histories)), K + histories.shape[1])
    same = 0
    for number, (rows, history) in enumerate(zip(found.rows.tolist(), histories, strict=True)):
        right = [bundle.ids.id(row) for row in rows if row >= 0 and row not in history][:K]
        same += right == ask(number, {})
    return same / len(histories)
