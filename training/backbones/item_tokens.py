"""Tokens of item texts, made when they are needed; those used last stay in memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.backbones.prompts import PromptWriter

MOST_KEPT: Final = 200_000
"""Items whose tokens stay in memory; some hundred bytes each."""


class ItemTokens:
    """Token ids of a catalogue's texts by row; thread-safe.

    Args:
        writer: has the tokenizer.
        texts: the text of each item, None if it has none.
        limit: at most so many tokens of a text are kept.
        most: number of items whose tokens stay in memory.
    """

    def __init__(self, writer: PromptWriter, texts: Sequence[str | None], limit: int, *, most: int = MOST_KEPT) -> None:
        self._writer, self._texts, self._limit, self._most = writer, texts, limit, most
        self._kept: OrderedDict[int, NDArray[np.int32] | None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, rows: Sequence[int]) -> list[NDArray[np.int32] | None]:
        """(length,) int32 for each of these item rows; None for one without a text or without any token."""
        with self._lock:
            new = list(dict.fromkeys(row for row in rows if row not in self._kept))
            if new:
                made = self._writer.tokenise([self._texts[row] for row in new], self._limit)
                self._kept.update(zip(new, made, strict=True))
            found = [self._kept[row] for row in rows]
            for row in rows:
                self._kept.move_to_end(row)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return found
