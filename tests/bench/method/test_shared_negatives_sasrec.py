"""SASRec and eSASRec with shared negatives: causal, blind to padding, and able to learn what always comes next."""

import argparse

import numpy as np
import pytest
import torch

from bench.method.shared_negatives_sasrec import LigrBlock, Sasrec, batch_loss, padded, train, user_vectors
from training.data.sequences import Targets

ITEMS = 12


@pytest.fixture(params=[None, 2], ids=["sasrec", "ligr"])
def factor(request: pytest.FixtureRequest) -> int | None:
    """Width of SwiGLU, × that of the vectors."""
    chosen: int | None = request.param
    return chosen


@pytest.fixture
def model(factor: int | None) -> Sasrec:
    torch.manual_seed(0)
    return Sasrec(ITEMS, width=8, history=6, blocks=2, heads=2, dropout=0.0, factor=factor).eval()


def test_gates_that_are_shut_leave_a_block_of_esasrec_out() -> None:
    torch.manual_seed(0)
    block = LigrBlock(8, 2, 0.0, 2)
    vectors, seen = torch.randn(3, 4, 8), torch.zeros(6, 4, 4, dtype=torch.bool)
    assert not torch.allclose(block(vectors, seen), vectors)
    for gate in (block.attention_gate, block.feed_gate):
        torch.nn.init.constant_(gate.bias, -1e4)
    torch.testing.assert_close(block(vectors, seen), vectors)


def test_a_later_item_changes_no_earlier_vector(model: Sasrec) -> None:
    with torch.inference_mode():
        before, after = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[1, 2, 3, 9]]))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_padding_changes_no_vector(model: Sasrec) -> None:
    histories = [np.array([5, 1, 7]), np.array([2, 3, 4, 6, 8])]
    together = user_vectors(model, histories)
    apart = np.concatenate([user_vectors(model, [history]) for history in histories])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(padded(histories, ITEMS)[0], [ITEMS, ITEMS, 5, 1, 7])


def test_only_the_newest_items_of_a_history_count(model: Sasrec) -> None:
    long = np.arange(10)
    np.testing.assert_allclose(user_vectors(model, [long]), user_vectors(model, [long[-6:]]), rtol=1e-6)


def test_a_target_is_no_negative_of_itself(model: Sasrec) -> None:
    only = Sasrec(1, width=8, history=6, blocks=1, heads=1, dropout=0.0)
    loss = batch_loss(only, [np.array([0, 0])], negatives=50, random=np.random.default_rng(0))
    assert loss.item() == 0  # every negative drawn is the target


def test_training_learns_what_always_comes_next(factor: int | None) -> None:
    torch.manual_seed(0)
    model = Sasrec(ITEMS, width=16, history=6, blocks=1, heads=1, dropout=0.0, factor=factor)
    circle = np.arange(4 * ITEMS) % ITEMS
    cut = [circle[start : start + 5] for start in range(3 * ITEMS)]
    validation = Targets([circle[:3]] * 4, np.array([3, 3, 3, 3]), ["a", "b", "c", "d"])
    chosen = argparse.Namespace(rate=1e-2, epochs=60, every=20, patience=3, negatives=ITEMS, seed=0)
    train(model, cut, validation, np.ones(ITEMS, dtype=np.bool_), chosen)
    scores = user_vectors(model, [np.array([4, 5])]) @ model.items.weight.detach().numpy()[:-1].T
    assert int(scores.argmax()) == 6
