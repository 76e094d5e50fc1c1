"""Answers one batch for every peer: stored history → encoder → index → the best unseen items.

All peers use the `index.bundle.bundle.Bundle` and the Redis lists that `vlm2rec serve` reads, one thread per call;
peers differ only in how requests reach :meth:`Answering.answer` and how many at a time.

Configured by the environment: ``BENCH_BUNDLE`` (directory), ``BENCH_REDIS`` (URL), ``BENCH_PORT``, ``BENCH_WORKERS``
and ``BENCH_BATCH`` (each peer defines their meaning).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index.bundle.bundle import Bundle
from service.stores.history_keys import keys_of

PORT = int(os.environ.get("BENCH_PORT", "8000"))
REDIS = os.environ.get("BENCH_REDIS", "")
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
BATCH = int(os.environ.get("BENCH_BATCH", "64"))
LONGEST = 10
"""The newest items of a history that are used, as many as the bench stores."""


def key_of(user_id: str) -> str:
    """The key of a user's history in `service.stores.redis_histories`."""
    return keys_of("vlm2rec", user_id).history


class Answering:
    """A loaded bundle that answers batches of stored histories."""

    def __init__(self) -> None:
        self._bundle = Bundle.load(Path(os.environ["BENCH_BUNDLE"]), threads=1)
        self._bundle.warm_up()

    def answer(self, histories: Sequence[Sequence[bytes]], counts: Sequence[int]) -> list[dict[str, Any]]:
        """Answers to a batch.

        Args:
            histories: entries as Redis holds them, oldest first; each of at least one item of the catalogue.
            counts: how many items each wants.
        """
        row_of, id_of = self._bundle.ids.row, self._bundle.ids.id
        named = [[row_of(entry.partition(b"\x1f")[0].decode()) for entry in history] for history in histories]
        seen = [[row for row in rows if row is not None] for rows in named]
        queries = self._bundle.encode([np.array(rows, dtype=np.int64) for rows in seen])
        found = self._bundle.search(queries, max(counts) + LONGEST)
        answers = []
        for rows, scores, excluded, wanted in zip(
            found.rows.tolist(), found.scores.tolist(), seen, counts, strict=True
        ):
            kept = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0 and row not in excluded]
            answers.append({"items": [{"item_id": id_of(row), "score": score} for row, score in kept[:wanted]]})
        return answers
