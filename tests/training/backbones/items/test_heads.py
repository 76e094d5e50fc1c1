"""Heads on stored vectors: a hand-made history, principal directions, and batches against single outputs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from training.backbones.batches import spread
from training.backbones.items.feature_batches import FeatureCollator
from training.backbones.items.heads import FeatureBatch, FeatureGroup, ModalityHeads
from training.data.training_pairs import Window

N, TEXT_DIM, IMAGE_DIM, LENGTH = 7, 5, 9, 4
NO_TEXT, NO_PICTURE = 2, 3


@pytest.fixture
def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    blocks = {"text": rng.normal(size=(N, TEXT_DIM)), "image": rng.normal(size=(N, IMAGE_DIM))}
    blocks = {name: block / np.linalg.norm(block, axis=1, keepdims=True) for name, block in blocks.items()}
    blocks["text"][NO_TEXT] = blocks["image"][NO_PICTURE] = 0
    return {name: block.astype(np.float32) for name, block in blocks.items()}


@pytest.fixture
def heads(features: dict[str, np.ndarray]) -> ModalityHeads:
    made = ModalityHeads({"text": TEXT_DIM, "image": IMAGE_DIM}, LENGTH, 3)
    made.start_at(features)
    return made


def one(heads: ModalityHeads, block: np.ndarray, members: list[int], *, history: bool) -> Tensor:
    """The text vector of one item or history, newest first."""
    group = FeatureGroup(
        "text",
        torch.from_numpy(block[members]),
        torch.arange(len(members))[None],
        torch.tensor([history]),
        torch.tensor(members),
    )
    return heads(FeatureBatch((group,)))[0].detach()


def test_untrained_items_are_the_centred_vectors_in_their_principal_directions(
    heads: ModalityHeads, features: dict[str, np.ndarray]
) -> None:
    present = np.delete(features["text"], NO_TEXT, axis=0).astype(np.float64)
    centred = present - present.mean(axis=0)
    _, _, directions = np.linalg.svd(centred)
    expected = centred @ directions[:LENGTH].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    batch, places = FeatureCollator(features, max_history=3).items(np.delete(np.arange(N), NO_TEXT))
    found = spread(heads(batch), places["text"]).detach().numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)  # directions have no sign


def test_a_longer_head_keeps_every_similarity(features: dict[str, np.ndarray]) -> None:
    wide = ModalityHeads({"text": TEXT_DIM}, 8, 3)
    wide.start_at({"text": features["text"]})
    block = features["text"][[0, 1]] - features["text"][np.arange(N) != NO_TEXT].mean(axis=0)
    cosine = block[0] @ block[1] / np.linalg.norm(block[0]) / np.linalg.norm(block[1])
    first, second = (one(wide, features["text"], [row], history=False) for row in (0, 1))
    assert float(first @ second) == pytest.approx(cosine, abs=1e-5)


def test_items_that_are_all_alike_keep_a_direction() -> None:
    """The text of every item may be the same; none of them lacks the modality."""
    alike = ModalityHeads({"text": 3}, 8, 3)
    block = np.tile(np.array([[0.6, 0.8, 0.0]], dtype=np.float32), (5, 1))
    alike.start_at({"text": block})
    assert float(one(alike, block, [2], history=False).norm()) == pytest.approx(1)


def test_an_untrained_history_is_the_mean_of_its_items(heads: ModalityHeads, features: dict[str, np.ndarray]) -> None:
    block = features["text"]
    mean = sum(one(heads, block, [row], history=False) for row in (0, 1, 4)) / 3
    history = one(heads, block, [4, 1, 0], history=True)
    torch.testing.assert_close(history, mean / mean.norm())


def test_recency_weighs_the_newest_item_first(heads: ModalityHeads, features: dict[str, np.ndarray]) -> None:
    with torch.no_grad():
        heads.heads["text"].recency.copy_(torch.tensor([60.0, 0.0, 0.0]))
    history = one(heads, features["text"], [4, 1, 0], history=True)
    torch.testing.assert_close(history, one(heads, features["text"], [4], history=False))


def test_a_batch_of_pairs_gives_each_prefix_and_item_as_if_alone(
    heads: ModalityHeads, features: dict[str, np.ndarray]
) -> None:
    with torch.no_grad():
        for head in heads.heads.values():
            head.recency.copy_(torch.tensor([0.5, -0.2, 0.1]))
            torch.nn.init.normal_(head.step.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    windows = [
        Window(np.array([0, NO_TEXT, 4]), np.array([1, 2, 3]), np.array([NO_TEXT, 4, 5]), np.array([0, 2, 4, 5])),
        Window(np.array([NO_TEXT]), np.array([1]), np.array([NO_PICTURE]), np.array([2])),
    ]
    batch = FeatureCollator(features, max_history=3).pairs(windows)
    outputs = heads(batch.prompts)
    assert batch.item_ids.tolist() == [NO_TEXT, 4, 5, NO_PICTURE]
    assert batch.histories.tolist() == [[0, 2, 4, 5]] * 3 + [[2, -1, -1, -1]]
    assert (batch.items["text"] < 0).tolist() == [True, False, False, False]
    assert (batch.items["image"] < 0).tolist() == [False, False, False, True]
    assert (batch.sequences["text"] < 0).tolist() == [False, False, False, True]
    text = spread(outputs, batch.sequences["text"])
    for row, newest_first in enumerate(([0], [0], [4, 0])):
        torch.testing.assert_close(text[row], one(heads, features["text"], newest_first, history=True))
    torch.testing.assert_close(
        spread(outputs, batch.items["text"])[2], one(heads, features["text"], [5], history=False)
    )
    torch.testing.assert_close(outputs.norm(dim=1), torch.ones(len(outputs)))


def test_only_the_newest_items_of_a_history_are_read(heads: ModalityHeads, features: dict[str, np.ndarray]) -> None:
    collator = FeatureCollator(features, max_history=3)
    long, _ = collator.sequences([np.array([6, 6, 0, 1, 4])])
    short, _ = collator.sequences([np.array([0, 1, 4])])
    torch.testing.assert_close(heads(long), heads(short))


def test_a_history_without_a_modality_and_an_empty_batch_have_no_vector(
    heads: ModalityHeads, features: dict[str, np.ndarray]
) -> None:
    collator = FeatureCollator(features, max_history=3, modalities=("text",))
    batch, places = collator.sequences([np.array([NO_TEXT])])
    assert heads(batch).shape == (0, LENGTH)
    assert places["text"].tolist() == [-1]
