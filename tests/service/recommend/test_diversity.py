"""Maximal marginal relevance against a brute-force implementation and values computed by hand."""

import numpy as np
import pytest

from service.recommend.diversity import maximal_marginal_relevance


def by_definition(relevance: np.ndarray, vectors: np.ndarray, diversity: float, count: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(count, len(relevance)):
        best, best_value = -1, -np.inf
        for candidate in range(len(relevance)):
            if candidate in chosen:
                continue
            nearest = max((float(vectors[candidate] @ vectors[other]) for other in chosen), default=0.0)
            value = (1 - diversity) * float(relevance[candidate]) - diversity * nearest
            if value > best_value:
                best, best_value = candidate, value
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_chooses_as_the_definition_says(diversity: float) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(40, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    relevance = np.sort(rng.uniform(-1, 1, 40).astype(np.float32))[::-1]
    chosen = maximal_marginal_relevance(relevance, vectors, diversity, 25)
    assert chosen.tolist() == by_definition(relevance, vectors, diversity, 25)


def test_a_duplicate_is_ranked_late() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    relevance = np.array([0.9, 0.89, 0.1], np.float32)
    assert maximal_marginal_relevance(relevance, vectors, 0.0, 3).tolist() == [0, 1, 2]
    assert maximal_marginal_relevance(relevance, vectors, 0.5, 3).tolist() == [0, 2, 1]


def test_never_gives_more_than_there_are_nor_one_twice() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert sorted(maximal_marginal_relevance(np.ones(3, np.float32), vectors, 1.0, 10).tolist()) == [0, 1, 2]
    assert maximal_marginal_relevance(np.ones(3, np.float32), vectors, 0.5, 0).tolist() == []
