from collections.abc import Callable

import numpy as np
import pytest

from training.data.sequences import Sequences
from training.errors import EvaluationError
from training.ranking.interaction_models import Ease, ItemKnn

Make = Callable[[list[list[int]]], Sequences]


@pytest.fixture
def train(make_sequences: Make) -> Sequences:
    """60 users with 1 to 12 of 30 items, some of them twice; items 28 and 29 have no event."""
    rng = np.random.default_rng(2)
    return make_sequences([rng.integers(0, 28, rng.integers(1, 13)).tolist() for _ in range(60)])


def matrix(train: Sequences, items: int) -> np.ndarray:
    users = np.zeros((len(train), items))
    for user in range(len(train)):
        users[user, train.of(user)] = 1
    return users


def test_item_knn_by_hand(make_sequences: Make) -> None:
    # Users of the items 0 … 3: 3, 2, 2 and 0; both 0 and 1: 2; 0 and 2: 1; 1 and 2: 1. A repeat counts once.
    model = ItemKnn(make_sequences([[0, 1, 0], [1, 2, 0], [2], [0]]), 4, neighbours=3, shrink=0)
    near_0 = np.array([0, 2 / np.sqrt(6), 1 / np.sqrt(6), 0])
    near_1 = np.array([2 / np.sqrt(6), 0, 1 / 2, 0])
    found = model.scores([np.array([0]), np.array([1, 0, 1]), np.array([3])])
    np.testing.assert_allclose(found, [near_0, near_0 + near_1, np.zeros(4)], rtol=1e-6)


@pytest.mark.parametrize("block", [7, 512])
def test_item_knn_is_that_of_a_loop(train: Sequences, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.ranking.interaction_models._ROWS_PER_BLOCK", block)
    users = matrix(train, 30)
    sizes = np.sqrt(users.sum(axis=0))
    expected = np.zeros((30, 30))
    for item in range(30):
        similar = users[:, item] @ users / (sizes[item] * sizes + 2.5)
        similar[item] = 0
        nearest = np.argsort(-similar, kind="stable")[:4]
        expected[item, nearest] = similar[nearest]
    model = ItemKnn(train, 30, neighbours=4, shrink=2.5)
    found = model.scores([np.array([item]) for item in range(30)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.count_nonzero(found, axis=1) <= 4).all()


@pytest.mark.parametrize("block", [7, 512])
def test_ease_is_the_least_squares_fit_of_every_item_on_the_others(
    train: Sequences, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.ranking.interaction_models._ROWS_PER_BLOCK", block)
    users, regularisation = matrix(train, 30), 1.5
    expected = np.zeros((30, 30))
    for item in range(28):
        others = [row for row in range(30) if row != item]
        gram = users[:, others].T @ users[:, others] + regularisation * np.eye(29)
        expected[others, item] = np.linalg.solve(gram, users[:, others].T @ users[:, item])
    model = Ease(train, 30, regularisation=regularisation)
    single = model.scores([np.array([item]) for item in range(30)])
    np.testing.assert_allclose(single, expected, atol=1e-6)
    np.testing.assert_array_equal(single[:, 28:], 0)
    several = model.scores([np.array([3, 5, 3, 29])])
    np.testing.assert_allclose(several, [expected[3] + expected[5]], atol=1e-6)


def test_ease_needs_a_regularisation_that_keeps_the_matrix_positive(make_sequences: Make) -> None:
    with pytest.raises(EvaluationError, match="too small"):
        Ease(make_sequences([[0, 1], [0, 1]]), 2, regularisation=-1.0)
