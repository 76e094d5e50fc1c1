"""Defines the constants and literal types that configuration and training code share."""

from typing import Annotated, Literal

from pydantic import Field

from index.items.slots import IMAGE, TEXT

Count = Annotated[int, Field(le=2**31 - 1)]
"""A number that needs no tighter bound; the libraries that get it hold it in 32 bits."""

MODALITIES = (TEXT, IMAGE)
CHUNK_PATCHES = 65_536
"""Default number of patches that the vision tower encodes at a time."""

Fusion = Literal["sum", "concat"]
WeakBy = Literal["ema", "row", "auc"]
GapKind = Literal["log_ratio", "probability", "one_sided", "own_scale", "auc"]
WpclKind = Literal["margin", "per_negative", "hard_negatives"]
