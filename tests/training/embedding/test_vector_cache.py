from pathlib import Path

import numpy as np
import pytest

from training.embedding.vector_cache import VectorCache
from training.errors import EvaluationError

KEYS = [f"k{number}" for number in range(11)]


class Counting:
    """A vector of a key is its number, in a batch-dependent last digit too, as with a real model."""

    def __init__(self, keys: list[str] = KEYS, *, most: int = 99) -> None:
        self.batches: list[list[int]] = []
        self._keys, self._most = keys, most

    def __call__(self, numbers: list[int]) -> dict[str, np.ndarray]:
        if len(self.batches) == self._most:
            raise KeyboardInterrupt
        self.batches.append(numbers)
        own = np.array([[float(self._keys[n][1:])] for n in numbers], dtype=np.float32)
        return {"text": own + 1e-3 * len(numbers), "image": -own}


def cache(directory: Path) -> VectorCache:
    return VectorCache(directory / "new", shard=4, batch=3)


def test_every_key_is_encoded_once_and_kept(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    encode = Counting()
    made = cache(tmp_path).vectors(KEYS, encode, lambda *done: reported.append(done))
    assert encode.batches == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9, 10]]
    assert reported == [(0, 11), (3, 11), (4, 11), (7, 11), (8, 11), (11, 11)]
    np.testing.assert_array_equal(made["image"][:, 0], -np.arange(11))
    again = cache(tmp_path).vectors(KEYS[::-1], Counting(most=0))
    np.testing.assert_array_equal(again["text"], made["text"][::-1])


def test_the_next_job_encodes_the_same_batches(tmp_path: Path) -> None:
    whole = cache(tmp_path / "whole").vectors(KEYS, Counting())
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path).vectors(KEYS, Counting(most=3))
    rest = Counting()
    made = cache(tmp_path).vectors(KEYS, rest)
    assert rest.batches == [[4, 5, 6], [7], [8, 9, 10]]  # the second shard was not whole
    for name, block in whole.items():
        np.testing.assert_array_equal(made[name], block)


def test_other_keys_use_the_cached_vectors(tmp_path: Path) -> None:
    cache(tmp_path).vectors(["k3", "k1"], Counting(["k3", "k1"]))
    encode = Counting()
    made = cache(tmp_path).vectors(KEYS, encode)
    assert [number for batch in encode.batches for number in batch] == [0, 2, 4, 5, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(made["image"][:, 0], -np.arange(11))


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    made = cache(tmp_path).vectors(KEYS, Counting())
    middle = sorted((tmp_path / "new").glob("*.npz"))[1]
    middle.write_bytes(middle.read_bytes()[:100])
    encode = Counting()
    again = cache(tmp_path).vectors(KEYS, encode)
    assert encode.batches == [[4, 5, 6], [7]]
    np.testing.assert_array_equal(again["text"], made["text"])
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_shards_of_another_shape_are_named(tmp_path: Path) -> None:
    cache(tmp_path).vectors(KEYS[:4], lambda numbers: {"text": np.zeros((len(numbers), 2), dtype=np.float32)})
    with pytest.raises(EvaluationError, match="remove the directory"):
        cache(tmp_path).vectors(KEYS, lambda numbers: {"text": np.zeros((len(numbers), 3), dtype=np.float32)})
