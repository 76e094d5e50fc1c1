"""Encodes rows of a catalogue with an encoder of items, taking stored vectors where the content is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from index.items.slots import IMAGE, TEXT
from training.backbones.batches import spread
from training.backbones.identity import differences
from training.backbones.items.feature_batches import FeatureCollator
from training.backbones.items.item_encoder import on_device
from training.backbones.items.trained_heads import ItemEmbedding
from training.backbones.prompts import plain_text
from training.data.dataset import Dataset
from training.data.picture_reader import open_picture
from training.embedding.content_hashes import PICTURE_HASH, TEXT_HASH, picture_hash, text_hash
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError, PictureError

if TYPE_CHECKING:
    from PIL import Image

_BATCH = 64
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class _Known:
    """Stored vectors of an encoder by content.

    Attributes:
        rows: modality → hash of a content → row of the vectors.
        vectors: modality → (n, F) float32.
    """

    rows: Mapping[str, Mapping[str, int]]
    vectors: Mapping[str, NDArray[np.float32]]

    @classmethod
    def of(cls, embedding: ItemEmbedding) -> "_Known":
        """The stored vectors; nothing if there are none of this encoder."""
        try:
            found = Embeddings.load(embedding.features, check=False)
        except EmbeddingsError:
            return cls({}, {})
        if found.contents is None or differences(found.model, embedding.source.provenance()):
            return cls({}, {})
        hashes = {TEXT: found.contents.frame[TEXT_HASH], IMAGE: found.contents.frame[PICTURE_HASH]}
        rows = {
            name: {digest: row for row, digest in enumerate(column) if digest is not None}
            for name, column in hashes.items()
            if name not in embedding.trained
        }
        return cls(rows, found.vectors)

    def vector(self, modality: str, digest: str) -> NDArray[np.float32] | None:
        """(F,) float32; None where the content is not known or has no vector."""
        row = self.rows.get(modality, {}).get(digest)
        if row is None:
            return None
        found = self.vectors[modality][row]
        return found if found.any() else None


class ItemRowEncoder:
    """Encodes items and histories of one catalogue; implements ``RowEncoder``.

    Args:
        embedding: an encoder, with heads or alone; it is moved to the GPU if there is one.
        dataset: the catalogue.

    Attributes:
        unreadable: row → reason, for pictures that could not be used.
    """

    def __init__(self, embedding: ItemEmbedding, dataset: Dataset) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder, self._heads = embedding.encoder, embedding.heads
        self._encoder.model.to(self._device).eval()
        if self._heads is not None:
            self._heads.to(self._device).eval()
        self._dataset, self._texts = dataset, dataset.texts()
        self._known = _Known.of(embedding) if self._heads is not None else _Known({}, {})
        # Pages of zeros cost no memory until they are written.
        sizes = self._encoder.dims
        self._features = {name: np.zeros((len(dataset), size), dtype=np.float32) for name, size in sizes.items()}
        self._text_blocks, self._read_features = embedding.text_blocks, dict(self._features)
        if self._text_blocks is not None:
            self._read_features[TEXT] = np.zeros((len(dataset), self._text_blocks.dim), dtype=np.float32)
        self._done = np.zeros(len(dataset), dtype=np.bool_)
        self.unreadable: dict[int, str] = {}

    def items(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Vectors of items.

        Args:
            rows: (n,) int64 item rows.

        Returns:
            Modality → (n, D) float32, rows of length 1; zeros where an item lacks the modality.

        Raises:
            EmbeddingsError: the model gives a value that is not finite.
        """
        self._encode(rows)
        if self._heads is None:
            return {name: block[rows] for name, block in self._features.items()}
        return self._read(rows, None)

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        """Vectors of histories.

        Args:
            histories: item rows, oldest first, at least one each; the newest are read.

        Raises:
            EmbeddingsError: the model gives a value that is not finite, or it has no heads, which read histories.
        """
        self._encode(np.unique(np.concatenate(histories)))
        return self._read(None, histories)

    @torch.inference_mode()
    def _read(
        self, rows: NDArray[np.int64] | None, histories: Sequence[NDArray[np.int64]] | None
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors of the heads, of items or of histories."""
        if self._heads is None:
            raise EmbeddingsError("an encoder without heads reads no histories; train heads with `vlm2rec train`")
        collator = FeatureCollator(self._read_features, max_history=self._heads.max_history)
        batch, places = collator.items(rows) if rows is not None else collator.sequences(histories or ())
        outputs = self._heads(batch.to(self._device)).cpu()
        if not torch.isfinite(outputs).all():
            raise EmbeddingsError("the model gives values that are not finite; train it again with a lower rate")
        return {name: spread(outputs, found).numpy() for name, found in places.items()}

    def _encode(self, rows: NDArray[np.int64]) -> None:
        """Fill in the encoder's vectors of these rows."""
        new = rows[~self._done[rows]]
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH].tolist()
            self._encode_texts(part)
            self._encode_pictures(part)
            if self._text_blocks is not None:
                texts = [self._texts[row] for row in part]
                self._read_features[TEXT][part] = self._text_blocks.join(self._features[TEXT][part], texts)
        self._done[new] = True

    def _encode_texts(self, rows: Sequence[int]) -> None:
        wanted: dict[int, str] = {}
        for row in rows:
            text = self._texts[row]
            if text is None or not text.strip():
                continue
            known = self._known.vector(TEXT, text_hash(text))
            if known is not None:
                self._features[TEXT][row] = known
            else:
                wanted[row] = plain_text(text)
        if wanted:
            self._place(TEXT, list(wanted), self._encoder.prepare_texts(list(wanted.values())))

    def _encode_pictures(self, rows: Sequence[int]) -> None:
        wanted: dict[int, Image.Image] = {}
        for row in rows:
            path = self._dataset.image_path(row)
            if path is None:
                continue
            try:
                with path.open("rb") as file:
                    known = self._known.vector(IMAGE, picture_hash(file)) if self._known.rows else None
                if known is None:
                    wanted[row] = open_picture(path, self._encoder.picture_pixels)
                else:
                    self._features[IMAGE][row] = known
            except (OSError, PictureError) as error:
                self.unreadable[row] = str(error)[:_REASON_CHARACTERS]
        if not wanted:
            return
        try:
            self._place(IMAGE, list(wanted), self._encoder.prepare_pictures(list(wanted.values())))
        except ValueError:  # the image processor refuses one of them
            for row, picture in wanted.items():
                try:
                    self._place(IMAGE, [row], self._encoder.prepare_pictures([picture]))
                except ValueError as error:
                    self.unreadable[row] = f"the image processor refuses it: {error}"[:_REASON_CHARACTERS]

    @torch.inference_mode()
    def _place(self, modality: str, rows: list[int], inputs: dict[str, torch.Tensor]) -> None:
        made = self._encoder.encode(modality, on_device(inputs, self._device)).cpu()
        if not torch.isfinite(made).all():
            raise EmbeddingsError(f"the model gives values that are not finite for {modality}; use vlm.dtype float32")
        self._features[modality][rows] = made.numpy()
