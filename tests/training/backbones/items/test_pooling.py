"""Pooling of hand-made hidden states, padded on either side."""

import pytest
import torch

from training.backbones.items.pooling import TextPooling, pooled

HIDDEN = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 7.0]], [[9.0, 9.0], [2.0, 4.0], [9.0, 1.0]]])


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("mean", [[1, 1, 0], [0, 1, 1]], [[2.0, 1.0], [5.5, 2.5]]),
        ("cls", [[1, 1, 0], [0, 1, 1]], [[1.0, 0.0], [2.0, 4.0]]),
        ("last", [[1, 1, 0], [0, 1, 1]], [[3.0, 2.0], [9.0, 1.0]]),
        ("last", [[1, 1, 1], [1, 0, 0]], [[5.0, 7.0], [9.0, 9.0]]),
    ],
)
def test_padding_is_never_read(pooling: TextPooling, mask: list[list[int]], expected: list[list[float]]) -> None:
    assert pooled(HIDDEN, torch.tensor(mask), pooling).tolist() == expected
