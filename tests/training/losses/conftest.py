"""Pairs of a batch in float64, made from arrays."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.loss_configs import loss_config
from training.losses.method_loss import method_loss
from training.losses.modality_pairs import ModalityPairs

Array = NDArray[np.float64]


class Pairs(Protocol):
    """Vectors of one modality; every entry is present unless the arguments say otherwise."""

    def __call__(
        self, sequences: Array, items: Array, sequence_present: object = None, item_present: object = None
    ) -> ModalityPairs: ...


def _pairs(
    sequences: Array, items: Array, sequence_present: object = None, item_present: object = None
) -> ModalityPairs:
    there = np.ones(len(sequences), dtype=bool)
    return ModalityPairs(
        torch.tensor(sequences, dtype=torch.float64),
        torch.tensor(items, dtype=torch.float64),
        torch.tensor(np.asarray(there if sequence_present is None else sequence_present)),
        torch.tensor(np.asarray(there if item_present is None else item_present)),
    )


def _random_pairs(batch: int, dim: int, seed: int, missing: float = 0.0) -> ModalityPairs:
    rng = np.random.default_rng(seed)
    sequences, items = rng.normal(size=(batch, dim)), rng.normal(size=(batch, dim))
    sequences /= np.linalg.norm(sequences, axis=1, keepdims=True)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    here, there = rng.random(batch) >= missing, rng.random(batch) >= missing
    return _pairs(sequences * here[:, None], items * there[:, None], here, there)


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    """Pairs of one modality from (B, D) arrays."""
    return _pairs


@pytest.fixture(scope="session")
def random_pairs() -> Callable[..., ModalityPairs]:
    """Unit vectors in random directions; ``missing`` is the share of rows without the modality."""
    return _random_pairs


@pytest.fixture(scope="session")
def loss_of() -> Callable[..., Any]:
    """:func:`method_loss` of as many different items as there are rows, without histories."""

    def loss(
        text: ModalityPairs,
        image: ModalityPairs,
        *,
        hidden: Tensor | None = None,
        confidence_gap: float = 0.0,
        **options: Any,
    ) -> Any:
        batch = len(text.items)
        nothing: Tensor = torch.full((batch, 1), -1)
        config = loss_config(**options)
        return method_loss(
            text, image, torch.arange(batch), nothing, config, hidden=hidden, confidence_gap=confidence_gap
        )

    return loss
