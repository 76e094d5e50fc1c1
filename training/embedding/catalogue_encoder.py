"""Encodes rows of a catalogue with a trained model of any family."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.backbones.batches import Collator, PromptBatch, spread
from training.backbones.items.trained_heads import ItemEmbedding
from training.config.types import MODALITIES
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.embedding.item_rows import ItemRowEncoder
from training.errors import EmbeddingsError

if TYPE_CHECKING:
    from training.backbones.vlm import Embedding

_CHUNK_TOKENS = 32_768
Vectors = dict[str, NDArray[np.float32]]
"""Modality → (n, D) float32, rows of length 1; a row of zeros if the modality is absent."""


class RowEncoder(Protocol):
    """Encodes items and histories of one catalogue."""

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Row → reason, for pictures that could not be used."""
        ...

    def items(self, rows: NDArray[np.int64]) -> Vectors:
        """Vectors of (n,) item rows."""
        ...

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> Vectors:
        """Vectors of histories, oldest item first."""
        ...


def catalogue_encoder(
    embedding: "Embedding | ItemEmbedding", dataset: Dataset, *, picture_bytes: int = 0, keep_vectors: bool = False
) -> RowEncoder:
    """The encoder of a catalogue for a trained model of any family.

    Args:
        embedding: a trained model.
        dataset: the catalogue.
        picture_bytes: memory for preprocessed pictures; 0 keeps none.
        keep_vectors: keep what an encoder of items gives for each item, as histories share items; its memory grows with
            the items that were encoded.
    """
    if isinstance(embedding, ItemEmbedding):
        return ItemRowEncoder(embedding, dataset, keep_vectors=keep_vectors)
    return CatalogueEncoder(embedding, dataset, picture_bytes=picture_bytes)


class CatalogueEncoder:
    """Encodes items and histories of one catalogue.

    Args:
        embedding: a trained embedder; it is moved to the GPU if there is one, and set to evaluation.
        dataset: the catalogue.
        picture_bytes: memory for preprocessed pictures; 0 keeps none.
        modalities: what is encoded.
        chunk_tokens: largest padded size of a group of prompts; on a CPU, groups that fit its cache are faster.

    Attributes:
        pictures: the catalogue's pictures, with those read so far.
    """

    def __init__(
        self,
        embedding: "Embedding",
        dataset: Dataset,
        *,
        picture_bytes: int = 0,
        modalities: Sequence[str] = MODALITIES,
        chunk_tokens: int = _CHUNK_TOKENS,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._embedder = embedding.embedder.to(self._device).eval()
        self.pictures = PictureStore(dataset.image_path, embedding.backbone.image_processor, memory_bytes=picture_bytes)
        self._collator = Collator(
            embedding.backbone.tokenizer,
            dataset.texts(),
            self.pictures,
            max_text_tokens=embedding.max_text_tokens,
            max_history=embedding.max_history,
            chunk_tokens=chunk_tokens,
            modalities=modalities,
        )

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Row → reason, for pictures that could not be used."""
        return self.pictures.unreadable

    def items(self, rows: NDArray[np.int64]) -> Vectors:
        """Vectors of items.

        Args:
            rows: (n,) int64 item rows.

        Raises:
            EmbeddingsError: the model gives a value that is not finite.
        """
        return self._encode(*self._collator.items(rows))

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> Vectors:
        """Vectors of histories, for ranking items directly.

        Args:
            histories: item rows, oldest first, at least one each; the newest are read.

        Raises:
            EmbeddingsError: the model gives a value that is not finite.
        """
        return self._encode(*self._collator.sequences(histories))

    @torch.inference_mode()
    def _encode(self, prompts: PromptBatch, places: dict[str, Tensor]) -> Vectors:
        outputs = self._embedder(prompts.to(self._device)).cpu()
        if not torch.isfinite(outputs).all():
            raise EmbeddingsError("the model gives values that are not finite; train it again with a lower rate")
        return {name: spread(outputs, found).numpy() for name, found in places.items()}
