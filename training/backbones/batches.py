"""Turns pairs of history and next item into batches of prompts for the vision-language model."""

# A batch holds every distinct picture once, however many prompts show it, and its prompts in groups of similar length
# to save padding.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.items.slots import TEXT
from training.backbones.item_tokens import ItemTokens
from training.backbones.prompts import Prompt, PromptWriter
from training.config.types import CHUNK_PATCHES, MODALITIES
from training.data.pictures import Picture, PictureStore
from training.data.training_pairs import Window

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SMALLEST_GROUP = 8
_LENGTH_RATIO = 1.25


@dataclass(frozen=True)
class PromptGroup:
    """Prompts of similar length.

    Attributes:
        input_ids: (n, T) int64, padded on the right.
        lengths: (n,) int64, tokens of each prompt.
        pooled: (k, 2) int64, prompt and position of every token to pool.
        visual: (v,) int64, for every visual token of the group, row by row, its number among the batch's.
        pictures: (o,) int64, for every picture in the group, row by row, its number among the batch's.
    """

    input_ids: Tensor
    lengths: Tensor
    pooled: Tensor
    visual: Tensor
    pictures: Tensor

    def to(self, device: torch.device) -> "PromptGroup":
        """The same on a device."""
        parts = (self.input_ids, self.lengths, self.pooled, self.visual, self.pictures)
        return PromptGroup(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class PictureGroup:
    """Pictures that the vision tower encodes in one pass.

    Attributes:
        patches: (P, values) float32 of the pictures, one after the other.
        grids: (k, 3) int64, patches of each picture as frames × rows × columns; their products add up to P.
    """

    patches: Tensor
    grids: Tensor

    def to(self, device: torch.device) -> "PictureGroup":
        """The same on a device."""
        return PictureGroup(self.patches.to(device), self.grids.to(device))


@dataclass(frozen=True)
class PromptBatch:
    """The input of one encoding pass.

    Attributes:
        groups: the prompts; an encoder's output has a row per token to pool, in this order.
        pictures: the distinct pictures that the prompts show, numbered through all groups of pictures.
    """

    groups: tuple[PromptGroup, ...]
    pictures: tuple[PictureGroup, ...]

    def to(self, device: torch.device) -> "PromptBatch":
        """The same on a device."""
        return PromptBatch(
            tuple(group.to(device) for group in self.groups), tuple(group.to(device) for group in self.pictures)
        )


class ModelInputs(Protocol):
    """What a model reads in one pass."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        ...


@dataclass(frozen=True)
class PairBatch:
    """B pairs (history, next item) in B rows.

    Attributes:
        prompts: to encode, a :class:`PromptBatch` or the input of another family; an item that is next in several
            pairs is encoded once.
        sequences: modality → (B,) int64 row of the encoder's output, −1 if the history lacks the modality.
        items: modality → (B,) int64 row of the encoder's output for the next item, −1 if it lacks the modality.
        item_ids: (B,) int64 item rows.
        histories: (B, L) int64 item rows that must not be negatives of the pair, padded with −1.
    """

    prompts: ModelInputs
    sequences: dict[str, Tensor]
    items: dict[str, Tensor]
    item_ids: Tensor
    histories: Tensor


class Collator:
    """Turns item rows into prompts.

    Args:
        tokenizer: of the model.
        texts: the text of each item, None if it has none.
        pictures: the catalogue's pictures.
        max_text_tokens: tokens kept of an item's text.
        max_history: items of a history that are read, the newest ones.
        chunk_tokens: largest padded size of a group of prompts, unless a single prompt is longer.
        chunk_patches: most patches of a group of pictures, unless a single picture has more.
        modalities: modalities to encode; the others count as absent everywhere.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Sequence[str | None],
        pictures: PictureStore,
        *,
        max_text_tokens: int,
        max_history: int,
        chunk_tokens: int,
        chunk_patches: int = CHUNK_PATCHES,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        self._writer = PromptWriter(tokenizer)
        self._tokens = ItemTokens(self._writer, texts, max_text_tokens)
        self._pictures = pictures
        self._max_history = max_history
        self._chunks = _Chunks(chunk_tokens, chunk_patches)
        self.modalities = tuple(modalities)

    def pairs(self, windows: Sequence[Window]) -> PairBatch:
        """A batch of pairs.

        Args:
            windows: consecutive items of users, each with the items that must not be its negatives.
        """
        collection = _PromptCollection(self._pictures)
        targets = np.concatenate([window.targets for window in windows])
        distinct, back = np.unique(targets, return_inverse=True)
        items = {m: self._items(collection, m, distinct)[back] for m in self.modalities}
        sequences = {m: self._windows(collection, m, windows) for m in self.modalities}
        prompts, order = collection.prompts(self._writer, self._chunks)
        return PairBatch(
            prompts,
            {m: _placed(numbers, order) for m, numbers in sequences.items()},
            {m: _placed(numbers, order) for m, numbers in items.items()},
            torch.from_numpy(targets),
            torch.from_numpy(excluded_rows(windows)),
        )

    def items(self, rows: NDArray[np.int64]) -> tuple[PromptBatch, dict[str, Tensor]]:
        """Item prompts of these rows, and per modality the (n,) rows of the encoder's output, −1 where absent."""
        collection = _PromptCollection(self._pictures)
        numbers = {m: self._items(collection, m, rows) for m in self.modalities}
        prompts, order = collection.prompts(self._writer, self._chunks)
        return prompts, {m: _placed(found, order) for m, found in numbers.items()}

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> tuple[PromptBatch, dict[str, Tensor]]:
        """Sequence prompts of these histories; returns the same as :meth:`items`."""
        collection = _PromptCollection(self._pictures)
        kept = [history[-self._max_history :] for history in histories]
        numbers = {
            m: np.array(
                [self._write(collection, f"sequence_{m}", m, rows, [len(rows)])[0] for rows in kept], dtype=np.int64
            )
            for m in self.modalities
        }
        prompts, order = collection.prompts(self._writer, self._chunks)
        return prompts, {m: _placed(found, order) for m, found in numbers.items()}

    def _items(self, collection: "_PromptCollection", modality: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        name = f"item_{modality}"
        return np.array(
            [self._write(collection, name, modality, rows[n : n + 1], [1])[0] for n in range(len(rows))], np.int64
        )

    def _windows(self, collection: "_PromptCollection", modality: str, windows: Sequence[Window]) -> NDArray[np.int64]:
        name = f"sequence_{modality}"
        return np.concatenate(
            [self._write(collection, name, modality, window.rows, window.lengths.tolist()) for window in windows]
        )

    def _write(
        self, collection: "_PromptCollection", name: str, modality: str, rows: NDArray[np.int64], lengths: Sequence[int]
    ) -> NDArray[np.int64]:
        """Write one prompt; returns for each prefix of so many items the number of its token, −1 without any."""
        if modality == TEXT:
            texts = self._tokens.of(rows.tolist())
            present = [tokens is not None for tokens in texts]
            prompt, shown = self._writer.texts(name, [tokens for tokens in texts if tokens is not None]), []
        else:
            numbers = [collection.show(row) for row in rows.tolist()]
            present = [number is not None for number in numbers]
            shown = [number for number in numbers if number is not None]
            prompt = self._writer.pictures(name, [collection.sizes[number] for number in shown])
        # A prefix ends at the mark of its last item with the modality.
        last = np.cumsum(present)[np.asarray(lengths) - 1] - 1
        pooled, back = np.unique(last[last >= 0], return_inverse=True)
        found = np.full(len(lengths), -1, dtype=np.int64)
        if len(pooled):
            found[last >= 0] = collection.add(prompt, [prompt.marks[mark] for mark in pooled.tolist()], shown) + back
        return found


@dataclass(frozen=True)
class _Chunks:
    tokens: int
    patches: int


@dataclass(frozen=True)
class _Entry:
    ids: list[int]
    pooled: list[int]
    pictures: list[int]
    first: int


class _PromptCollection:
    """Collects prompts and the distinct pictures that they show."""

    def __init__(self, pictures: PictureStore) -> None:
        self._store = pictures
        self._entries: list[_Entry] = []
        self._pooled = 0
        self._numbers: dict[int, int | None] = {}
        self._shown: list[Picture] = []
        self.sizes: list[int] = []

    def add(self, prompt: Prompt, pooled: list[int], pictures: list[int]) -> int:
        """Add a prompt; returns the number of its first token to pool."""
        entry = _Entry(prompt.ids, pooled, pictures, self._pooled)
        self._entries.append(entry)
        self._pooled += len(pooled)
        return entry.first

    def show(self, row: int) -> int | None:
        """Add an item's picture; returns its number in this batch, None if it has none."""
        if row not in self._numbers:
            picture = self._store.get(row)
            if picture is None:
                self._numbers[row] = None
            else:
                self._numbers[row] = len(self._shown)
                self._shown.append(picture)
                self.sizes.append(self._store.tokens(picture))
        return self._numbers[row]

    def prompts(self, writer: PromptWriter, chunks: _Chunks) -> tuple[PromptBatch, NDArray[np.int64]]:
        """The prompts in groups, and for each token to pool its row across the groups."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        by_length = sorted(self._entries, key=lambda entry: len(entry.ids))
        order = np.empty(self._pooled, dtype=np.int64)
        done = 0
        for entry in by_length:
            order[entry.first : entry.first + len(entry.pooled)] = np.arange(done, done + len(entry.pooled))
            done += len(entry.pooled)
        groups = tuple(_group(members, starts, writer.pad) for members in _grouped(by_length, chunks.tokens))
        pictures = tuple(
            PictureGroup(
                torch.from_numpy(np.concatenate([picture.patches for picture in part])),
                torch.from_numpy(np.stack([picture.grid for picture in part])),
            )
            for part in _cut(self._shown, chunks.patches)
        )
        return PromptBatch(groups, pictures), order


def _group(members: Sequence[_Entry], starts: NDArray[np.int64], pad: int) -> PromptGroup:
    """Pad these prompts to one length.

    Args:
        members: sorted by length.
        starts: first visual token of each of the batch's pictures, and their number in all.
        pad: id of the padding token.
    """
    padded = np.full((len(members), len(members[-1].ids)), pad, dtype=np.int64)
    for row, entry in enumerate(members):
        padded[row, : len(entry.ids)] = entry.ids
    shown = [number for entry in members for number in entry.pictures]
    visual = [np.arange(starts[number], starts[number + 1]) for number in shown]
    return PromptGroup(
        torch.from_numpy(padded),
        torch.tensor([len(entry.ids) for entry in members]),
        torch.tensor([(row, position) for row, entry in enumerate(members) for position in entry.pooled]),
        torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *visual])),
        torch.tensor(shown, dtype=torch.int64),
    )


def _grouped(by_length: Sequence[_Entry], chunk_tokens: int) -> Iterator[Sequence[_Entry]]:
    """Split prompts, sorted by length, where padding would grow or a group would become too large."""
    start = 0
    for position in range(1, len(by_length) + 1):
        if position < len(by_length):
            length, count = len(by_length[position].ids), position - start
            longer = count >= _SMALLEST_GROUP and length > _LENGTH_RATIO * len(by_length[start].ids)
            if not longer and (count + 1) * length <= chunk_tokens:
                continue
        yield by_length[start:position]
        start = position


def _cut(pictures: Sequence[Picture], chunk_patches: int) -> Iterator[Sequence[Picture]]:
    """Split pictures, in their order, into groups of at most so many patches."""
    start, filled = 0, 0
    for position, picture in enumerate(pictures):
        size = len(picture.patches)
        if position > start and filled + size > chunk_patches:
            yield pictures[start:position]
            start, filled = position, 0
        filled += size
    if start < len(pictures):
        yield pictures[start:]


def _placed(numbers: NDArray[np.int64], order: NDArray[np.int64]) -> Tensor:
    """Numbers of tokens to pool (−1 = none) as rows of the encoder's output."""
    if not len(order):
        return torch.from_numpy(numbers)
    return torch.from_numpy(np.where(numbers < 0, -1, order[np.maximum(numbers, 0)]))


def excluded_rows(windows: Sequence[Window]) -> NDArray[np.int64]:
    """(pairs, L) int64 item rows that must not be negatives of each pair, padded with −1."""
    own = np.full((len(windows), max(1, *(len(window.own) for window in windows))), -1, dtype=np.int64)
    for row, window in enumerate(windows):
        own[row, : len(window.own)] = window.own
    return np.repeat(own, [len(window.targets) for window in windows], axis=0)


def spread(outputs: Tensor, rows: Tensor) -> Tensor:
    """Select rows of the encoder's output, zeros where absent.

    Args:
        outputs: (K, D) of a whole batch.
        rows: (B,) int64, −1 = absent.

    Returns:
        (B, D).
    """
    padded = torch.cat([outputs.new_zeros(1, outputs.shape[1]), outputs])
    return padded[rows + 1]
