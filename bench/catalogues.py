"""Made catalogues for benches: clustered vectors of low intrinsic dimension, as learned ones are."""

import numpy as np
from numpy.typing import NDArray

from index.slots import Slot, SlotLayout

LAYOUT = SlotLayout((Slot("text", 64), Slot("image", 64), Slot("behaviour", 64)))

_LATENT = 24
_ITEMS_PER_CLUSTER = 250
_SPREAD, _NOISE = 0.6, 0.1
_WITHOUT_PICTURE, _COLD = 0.1, 0.05


def made_vectors(rows: int, seed: int) -> NDArray[np.float16]:
    """(rows, 192) float16 stored vectors; some lack their picture or their behaviour. One seed, one catalogue."""
    rng = np.random.default_rng(seed)
    clusters = max(16, rows // _ITEMS_PER_CLUSTER)
    centres = rng.standard_normal((clusters, _LATENT), dtype=np.float32)
    points = centres[rng.integers(0, clusters, rows)] + _SPREAD * rng.standard_normal((rows, _LATENT), dtype=np.float32)
    slots = {}
    for slot in LAYOUT.slots:
        shown = points @ rng.standard_normal((_LATENT, slot.dim), dtype=np.float32) / np.sqrt(np.float32(_LATENT))
        slots[slot.name] = shown + _NOISE * rng.standard_normal(shown.shape, dtype=np.float32)
    slots["image"][rng.random(rows) < _WITHOUT_PICTURE] = 0
    slots["behaviour"][rng.random(rows) < _COLD] = 0
    return LAYOUT.stack(slots).astype(np.float16)
