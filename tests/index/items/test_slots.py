"""Slot layouts: the arithmetic of stored vectors by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from index.errors import ItemTableError
from index.items.slots import Slot, SlotLayout

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 3)))


def test_slices_follow_the_order() -> None:
    assert LAYOUT.dim == 5
    assert LAYOUT.slice("text") == slice(0, 2)
    assert LAYOUT.slice("image") == slice(2, 5)
    with pytest.raises(ItemTableError, match=r"unknown slot 'sound'.*text, image"):
        LAYOUT.slice("sound")


def test_stacks_two_present_slots_with_one_over_root_two() -> None:
    stored = LAYOUT.stack({"text": np.array([[3.0, 4.0]]), "image": np.array([[0.0, 0.0, 2.0]])})
    half = math.sqrt(0.5)
    np.testing.assert_allclose(stored, [[0.6 * half, 0.8 * half, 0, 0, half]], rtol=1e-6)


def test_an_absent_slot_is_zero_and_the_rest_has_length_one() -> None:
    stored = LAYOUT.stack({"text": np.array([[3.0, 4.0], [0, 0]]), "image": np.zeros((2, 3))})
    np.testing.assert_allclose(stored, [[0.6, 0.8, 0, 0, 0], [0, 0, 0, 0, 0]], rtol=1e-6)
    assert LAYOUT.present(stored).tolist() == [[True, False], [False, False]]


def test_text_only_is_re_scaled_as_stored() -> None:
    both = LAYOUT.stack({"text": np.array([[3.0, 4.0]]), "image": np.array([[0.0, 0.0, 2.0]])})
    np.testing.assert_allclose(LAYOUT.keep_only(["text"], both), [[0.6, 0.8, 0, 0, 0]], rtol=1e-6)


@given(
    arrays.arrays(np.float32, (4, 2), elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32)),
)
def test_every_stored_row_has_length_one_or_zero(text: np.ndarray, image: np.ndarray) -> None:
    stored = LAYOUT.stack({"text": text, "image": image})
    any_slot = (text != 0).any(axis=1) | (image != 0).any(axis=1)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), any_slot.astype(float), atol=1e-5)


def test_weights_are_spread_over_their_components() -> None:
    assert LAYOUT.weights({"image": 1.5}).tolist() == [1, 1, 1.5, 1.5, 1.5]
    assert LAYOUT.weights({}).tolist() == [1] * 5


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_refuses_an_invalid_weight(weight: float) -> None:
    with pytest.raises(ItemTableError, match="finite and at least 0"):
        LAYOUT.weights({"text": weight})


@pytest.mark.parametrize(
    ("weights", "scales"),
    [
        ({}, [1, 1, 1, 1]),
        ({"text": 3.0, "image": 1.0}, [1, 1, 1, 1]),
        ({"behaviour": 0.0}, [1, (2 / 3) ** 0.5, (4 / 3) ** 0.5, 1]),
        ({"behaviour": 0.5}, [1, (5 / 6) ** 0.5, (10 / 9) ** 0.5, (5 / 3) ** 0.5]),
        ({"text": 0.0, "image": 0.0, "behaviour": 0.0}, [1, 1, 1, 1]),
    ],
)
def test_a_slot_counts_with_its_weight_in_the_number_of_slots(weights: dict[str, float], scales: list[float]) -> None:
    layout = SlotLayout((Slot("text", 2), Slot("image", 3), Slot("behaviour", 1)))
    present = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=np.bool_)
    np.testing.assert_allclose(layout.weight_scales(present, weights), scales, rtol=1e-6)


def test_with_scales_a_slot_of_weight_zero_is_as_if_it_did_not_exist() -> None:
    layout = SlotLayout((Slot("text", 2), Slot("image", 3), Slot("behaviour", 4)))
    rng = np.random.default_rng(0)
    blocks = {slot.name: rng.normal(size=(8, slot.dim)) for slot in layout.slots}
    for number, name in enumerate(layout.names):
        blocks[name][np.arange(8) >> number & 1 == 0] = 0  # every set of slots occurs
    whole, without = layout.stack(blocks), layout.stack({"text": blocks["text"], "image": blocks["image"]})
    query = rng.normal(size=layout.dim) * layout.weights({"behaviour": 0})
    scores = whole @ query * layout.weight_scales(layout.present(whole), {"behaviour": 0})
    np.testing.assert_allclose(scores * np.sqrt(3 / 2), without @ query, atol=1e-6)


@pytest.mark.parametrize(
    ("slots", "rule"),
    [((), "at least one"), ((Slot("a", 1), Slot("a", 2)), "must differ"), ((Slot("a", 0),), "dim must be at least 1")],
)
def test_refuses_an_impossible_layout(slots: tuple[Slot, ...], rule: str) -> None:
    with pytest.raises(ItemTableError, match=rule):
        SlotLayout(slots)


@pytest.mark.parametrize(
    ("slots", "rule"),
    [
        ({}, "no slots"),
        ({"text": np.zeros((1, 2)), "image": np.zeros((2, 3))}, "same number of rows"),
        ({"text": np.zeros((1, 3))}, r"must be \(n, 2\)"),
        ({"text": np.array([[0, 0], [np.nan, 1]])}, "non-finite value in row 1"),
        ({"sound": np.zeros((1, 2))}, "unknown slot"),
    ],
)
def test_refuses_to_stack_slots_that_do_not_fit(slots: dict[str, np.ndarray], rule: str) -> None:
    with pytest.raises(ItemTableError, match=rule):
        LAYOUT.stack(slots)
