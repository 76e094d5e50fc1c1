import numpy as np
import pytest
import torch

from training.embedding.pca import fit_basis
from training.encoder.model import SequenceEncoder, SlotProjection
from training.encoder.next_item_loss import full_softmax_loss, sampled_softmax_loss, slot_scale

DIM, LONGEST = 12, 7


def stirred(layers: int = 2, heads: int = 2) -> SequenceEncoder:
    """An encoder whose every weight matters."""
    torch.manual_seed(0)
    encoder = SequenceEncoder(DIM, LONGEST, width=16, layers=layers, heads=heads, dropout=0.5).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return encoder


@pytest.mark.parametrize(("layers", "heads"), [(0, 1), (1, 1), (2, 2), (3, 4)])
def test_every_position_is_the_answer_for_the_history_that_ends_there(layers: int, heads: int) -> None:
    encoder = stirred(layers, heads)
    histories = torch.randn(3, LONGEST, DIM)
    with torch.inference_mode():
        trained = encoder.every_position(histories)
        for length in range(1, LONGEST + 1):
            served = encoder(histories[:, :length], torch.full((3,), length))
            torch.testing.assert_close(served, trained[:, length - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [0, 2])
def test_neither_padding_nor_the_rest_of_the_batch_matters(layers: int) -> None:
    encoder = stirred(layers)
    histories = torch.randn(3, LONGEST, DIM)
    lengths = torch.tensor([2, LONGEST, 1])
    garbage = histories.clone()
    garbage[0, 2:] = float("nan")
    garbage[2, 1:] = 1e9
    with torch.inference_mode():
        together = encoder(garbage, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = encoder(histories[row : row + 1, :length], torch.tensor([length]))
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_order_matters_and_is_counted_from_the_newest() -> None:
    encoder = stirred()
    with torch.no_grad():
        encoder.mean_scale.zero_()
        encoder.distance_bias[:, :, 2:] = -1e9  # nothing further back than one item is seen by any layer
    history = torch.randn(1, 5, DIM)
    changed = history.clone()
    changed[:, 0] = torch.randn(DIM)
    swapped = history[:, [0, 1, 2, 4, 3]]
    length = torch.tensor([5])
    with torch.inference_mode():
        answer = encoder(history, length)
        torch.testing.assert_close(encoder(changed, length), answer, atol=1e-5, rtol=1e-5)
        assert (encoder(swapped, length) - answer).abs().max() > 0.01


def test_without_layers_it_is_a_recency_weighted_mean() -> None:
    encoder = SequenceEncoder(2, 4, width=8, layers=0)
    history = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [7.0, 7.0]]])
    with torch.inference_mode():
        query = encoder(history, torch.tensor([2]))
    newest, before = 1.0, np.exp(-0.5)  # the weights of a fresh encoder fall by half a nat an item
    expected = 0.25 * np.array([before, newest]) / (newest + before)
    np.testing.assert_allclose(query[0].numpy(), expected, rtol=1e-5)


def test_a_projection_gives_unit_vectors_and_keeps_absent_rows_absent() -> None:
    torch.manual_seed(1)
    projection = SlotProjection({"text": 5, "image": 3}, {"text": 4, "image": 2})
    text = torch.randn(3, 5)
    text[1] = 0
    slots = projection({"text": text, "image": torch.zeros(3, 3)})
    np.testing.assert_allclose(slots["text"].norm(dim=1).detach().numpy(), [1, 0, 1], rtol=1e-5)
    assert not slots["image"].any()


def test_a_basis_centres_and_orders_by_variance() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 3)) * [1.0, 5.0, 2.0] + [9.0, 0.0, -4.0]).astype(np.float32)
    mapped = fit_basis(vectors, 2, whiten=0.0).apply(vectors)
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-5)
    ratio = mapped[:, 0].std() / mapped[:, 1].std()
    assert ratio == pytest.approx(5 / 2, rel=0.1)
    assert np.mean(np.sum(mapped**2, axis=1)) == pytest.approx(1, rel=1e-4)
    assert abs(np.corrcoef(mapped[:, 0], vectors[:, 1])[0, 1]) > 0.99


def test_whitening_makes_the_spread_equal() -> None:
    vectors = (np.random.default_rng(0).standard_normal((400, 3)) * [1.0, 5.0, 2.0]).astype(np.float32)
    mapped = fit_basis(vectors, 3, whiten=1.0).apply(vectors)
    np.testing.assert_allclose(mapped.std(axis=0), np.sqrt(1 / 3), rtol=1e-3)


def test_absent_rows_neither_count_nor_get_a_vector() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    padded = np.concatenate([vectors, np.zeros((30, 4), dtype=np.float32)])
    with_absent, without = fit_basis(padded, 3, whiten=0.5), fit_basis(vectors, 3, whiten=0.5)
    np.testing.assert_allclose(with_absent.mean, without.mean, atol=1e-7)
    np.testing.assert_allclose(with_absent.apply(padded)[:50], without.apply(vectors), atol=1e-5)
    assert not with_absent.apply(padded)[50:].any()


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_equal_rows_stay_present(rows: int) -> None:
    vectors = np.tile(np.array([[0.6, -0.8]], dtype=np.float32), (rows, 1))
    mapped = fit_basis(vectors, 2, whiten=0.0).apply(vectors)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), np.ones(rows), rtol=1e-6)


def test_the_scale_counts_the_slots_that_are_kept_and_present() -> None:
    kept = torch.tensor([[True, True, True], [True, False, False], [False, True, True]])
    present = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])
    expected = [[1 / np.sqrt(3), 1, 0], [1, 0, 0], [1 / np.sqrt(2), 1, 0]]
    np.testing.assert_allclose(slot_scale(kept, present).numpy(), expected, rtol=1e-6)


def test_full_softmax_of_orthonormal_items_in_closed_form() -> None:
    items, tau = torch.eye(6), 0.5
    loss = full_softmax_loss(items[None, :4], items, torch.arange(4)[None], torch.ones(1, 6), tau)
    assert float(loss) == pytest.approx(np.log(np.exp(1 / tau) + 5) - 1 / tau, rel=1e-6)
    permuted = full_softmax_loss(items[None, :4], items, torch.tensor([[1, 2, 3, 0]]), torch.ones(1, 6), tau)
    assert float(permuted) == pytest.approx(np.log(np.exp(1 / tau) + 5), rel=1e-6)


def test_absent_items_neither_compete_nor_count_as_targets() -> None:
    items, scale = torch.eye(6), torch.tensor([[1.0, 1, 1, 0, 0, 1]])
    loss = full_softmax_loss(items[None, :2], items, torch.arange(2)[None], scale, 1.0)
    assert float(loss) == pytest.approx(np.log(np.e + 3) - 1, rel=1e-6)
    with_more = full_softmax_loss(items[None, [0, 3, 1, 2]], items, torch.tensor([[0, 3, 1, -1]]), scale, 1.0)
    torch.testing.assert_close(with_more, loss)
    nothing = full_softmax_loss(items[None, :2], items, torch.tensor([[3, -1]]), scale, 1.0)
    assert float(nothing) == 0


def test_the_scale_is_that_of_the_stored_vector() -> None:
    """Unit slots and a scale give the scores that the stored vectors give."""
    torch.manual_seed(4)
    units, queries = torch.randn(3, 4), torch.randn(1, 2, 4)
    targets, scale = torch.tensor([[2, 0]]), torch.tensor([[1.0, 0.5, 0.25]])
    stored = full_softmax_loss(queries, units * scale[0][:, None], targets, torch.ones(1, 3), 0.3)
    torch.testing.assert_close(full_softmax_loss(queries, units, targets, scale, 0.3), stored)


def test_a_sample_of_all_items_once_is_the_full_softmax() -> None:
    torch.manual_seed(2)
    queries, items = torch.randn(2, 3, 5), torch.randn(9, 5)
    targets = torch.tensor([[0, 8, -1], [3, 4, 1]])
    scale = torch.rand(2, 9)
    scale[1, 4] = 0
    sampled = sampled_softmax_loss(queries, items, targets, scale, torch.arange(9), torch.zeros(9), 0.7)
    torch.testing.assert_close(sampled, full_softmax_loss(queries, items, targets, scale, 0.7))


def test_an_item_drawn_three_times_as_often_counts_a_third_each_time() -> None:
    torch.manual_seed(3)
    queries, items = torch.randn(2, 1, 5), torch.randn(4, 5)
    targets, scale = torch.tensor([[0], [0]]), torch.ones(2, 4)
    drawn = torch.tensor([1, 2, 0, 2, 2, 3])  # the target itself among them does not count
    expected_times = torch.tensor([1.0, 3.0, 1.0, 3.0, 3.0, 1.0])
    sampled = sampled_softmax_loss(queries, items, targets, scale, drawn, expected_times.log(), 1.0)
    torch.testing.assert_close(sampled, full_softmax_loss(queries, items, targets, scale, 1.0))
    nothing = torch.full((2, 1), -1)
    assert float(sampled_softmax_loss(queries, items, nothing, scale, drawn, expected_times.log(), 1.0)) == 0
