"""Caches a model's vectors by key in shards, so that a killed job loses one shard."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.embedding.shards import Shard
from training.errors import EvaluationError

Encode = Callable[[list[int]], dict[str, NDArray[np.float32]]]
"""From positions of keys to modality → (b, D) float32 in their order."""


class VectorCache:
    """Vectors in a directory that belongs to one model and one catalogue.

    The missing keys are encoded in order, in shards and batches of fixed size. So the job after a killed one encodes
    the same batches and gets the same vectors bit for bit.

    Args:
        directory: of the shards; made with the first shard.
        shard: keys of a shard.
        batch: keys encoded at a time.
    """

    def __init__(self, directory: Path, *, shard: int, batch: int) -> None:
        self._directory, self._shard, self._batch = directory, shard, batch

    def vectors(
        self,
        keys: Sequence[str],
        encode: Encode,
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors of these keys; missing ones are encoded.

        Args:
            keys: distinct, at least one.
            encode: called with the positions of missing keys.
            progress: called with the numbers of available and of all keys.

        Returns:
            Modality → (n, D) float32, rows as the keys.

        Raises:
            EvaluationError: a shard does not fit the others.
        """
        parts = self._read(set(keys))
        known = {key for part in parts for key in part.item_ids}
        missing = [number for number, key in enumerate(keys) if key not in known]
        progress(len(known), len(keys))
        if missing:
            free = self._next_number()
            for start in range(0, len(missing), self._shard):
                numbers = missing[start : start + self._shard]
                blocks = []
                for place in range(0, len(numbers), self._batch):
                    blocks.append(encode(numbers[place : place + self._batch]))
                    progress(len(keys) - len(missing) + start + place + len(numbers[place:][: self._batch]), len(keys))
                joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
                parts.append(Shard([keys[number] for number in numbers], joined, {}))
                self._directory.mkdir(parents=True, exist_ok=True)
                parts[-1].save(self._directory / f"{free:06d}.npz")
                free += 1
        return self._in_order(keys, parts)

    def _read(self, wanted: set[str]) -> list[Shard]:
        """The stored vectors of the wanted keys, each once; damaged shards are removed."""
        found, known = [], set[str]()
        for path in sorted(self._directory.glob("*.npz")):
            shard = Shard.read(path)
            if shard is None:
                path.unlink()
                continue
            part = shard.only(wanted - known)
            known.update(part.item_ids)
            if part.item_ids:
                found.append(part)
        return found

    def _next_number(self) -> int:
        return max((int(path.stem) for path in self._directory.glob("*.npz") if path.stem.isdigit()), default=-1) + 1

    def _in_order(self, keys: Sequence[str], parts: Sequence[Shard]) -> dict[str, NDArray[np.float32]]:
        place = {key: number for number, key in enumerate(key for part in parts for key in part.item_ids)}
        order = [place[key] for key in keys]
        try:
            return {name: np.concatenate([part.vectors[name] for part in parts])[order] for name in parts[0].vectors}
        except (KeyError, ValueError) as error:
            raise EvaluationError(
                f"{self._directory}: its shards do not fit each other ({error}); remove the directory"
            ) from error
