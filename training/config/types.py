"""Names and constants that a configuration shares with the code that it configures."""

from typing import Literal

from index.items.slots import IMAGE, TEXT

MODALITIES = (TEXT, IMAGE)
CHUNK_PATCHES = 65_536
"""Patches that the vision tower sees at a time unless a configuration says otherwise."""

Fusion = Literal["sum", "concat"]
WeakBy = Literal["ema", "row"]
GapKind = Literal["log_ratio", "probability"]
