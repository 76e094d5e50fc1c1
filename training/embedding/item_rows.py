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
from training.data.tables.row_lookup import RowLookup
from training.embedding.content_hashes import PICTURE_HASH, TEXT_HASH, picture_hash, text_hash
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError, PictureError

if TYPE_CHECKING:
    from PIL import Image

    from training.data.stored.stored_pictures import PictureFile

_BATCH = 64
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class _Known:
    """Stored vectors of an encoder by content.

    Attributes:
        rows: modality → finds the row of a content by its hash.
        vectors: modality → (n, F) float32, mapped from files.
    """

    rows: Mapping[str, RowLookup]
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
            name: RowLookup(column, (column.is_last_distinct() & column.is_not_null()).to_numpy())
            for name, column in hashes.items()
            if name not in embedding.trained
        }
        return cls(rows, found.vectors)

    def find(self, modality: str, digests: Sequence[str]) -> NDArray[np.int64]:
        """(k,) int64 rows of the vectors of these contents; −1 where a content is not known or has no vector."""
        rows = self.rows[modality].find(digests)
        known = np.flatnonzero(rows >= 0)
        rows[known[~self.vectors[modality][rows[known]].any(axis=1)]] = -1
        return rows


@dataclass(frozen=True)
class _Features:
    """What is encoded of some items.

    Attributes:
        rows: (u,) int64 item rows, ascending.
        encoder: modality → (u, F) float32 of the encoder, zeros where an item lacks the modality.
        heads: the same as heads read them: texts joined with TF-IDF if there are such blocks.
        done: (u,) bool, items that were encoded.
    """

    rows: NDArray[np.int64]
    encoder: Mapping[str, NDArray[np.float32]]
    heads: Mapping[str, NDArray[np.float32]]
    done: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: NDArray[np.int64], embedding: ItemEmbedding) -> "_Features":
        """Zeros for all; their pages cost no memory until they are written."""
        blocks = embedding.text_blocks
        encoder = {name: np.zeros((len(rows), size), dtype=np.float32) for name, size in embedding.encoder.dims.items()}
        joined = {} if blocks is None else {TEXT: np.zeros((len(rows), blocks.dim), dtype=np.float32)}
        return cls(rows, encoder, {**encoder, **joined}, np.zeros(len(rows), dtype=np.bool_))

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of item rows in the arrays; they ascend where the rows do."""
        return np.searchsorted(self.rows, rows)


class ItemRowEncoder:
    """Encodes items and histories of one catalogue; implements ``RowEncoder``.

    Args:
        embedding: an encoder, with heads or alone; it is moved to the GPU if there is one.
        dataset: the catalogue.
        keep_vectors: keep the encoder's vectors of each encoded item for later calls, as histories share items. Without
            it the memory is that of one call.

    Attributes:
        unreadable: row → reason, for pictures that could not be used.
    """

    def __init__(self, embedding: ItemEmbedding, dataset: Dataset, *, keep_vectors: bool = False) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._embedding, self._encoder, self._heads = embedding, embedding.encoder, embedding.heads
        self._encoder.model.to(self._device).eval()
        if self._heads is not None:
            self._heads.to(self._device).eval()
        self._dataset, self._texts = dataset, dataset.texts()
        self._known = _Known.of(embedding) if self._heads is not None else _Known({}, {})
        self._kept = _Features.of(np.arange(len(dataset)), embedding) if keep_vectors else None
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
        features = self._encoded(rows)
        places = features.places(rows)
        if self._heads is None:
            return {name: block[places] for name, block in features.encoder.items()}
        return self._read(features, places, None)

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        """Vectors of histories.

        Args:
            histories: item rows, oldest first, at least one each; the newest are read.

        Raises:
            EmbeddingsError: the model gives a value that is not finite, or it has no heads, which read histories.
        """
        features = self._encoded(np.unique(np.concatenate(histories)))
        return self._read(features, None, [features.places(history) for history in histories])

    @torch.inference_mode()
    def _read(
        self, features: _Features, items: NDArray[np.int64] | None, histories: Sequence[NDArray[np.int64]] | None
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors of the heads, of places of items or of histories."""
        if self._heads is None:
            raise EmbeddingsError("an encoder without heads reads no histories; train heads with `vlm2rec train`")
        collator = FeatureCollator(features.heads, max_history=self._heads.max_history)
        batch, places = collator.items(items) if items is not None else collator.sequences(histories or ())
        outputs = self._heads(batch.to(self._device)).cpu()
        if not torch.isfinite(outputs).all():
            raise EmbeddingsError("the model gives values that are not finite; train it again with a lower rate")
        return {name: spread(outputs, found).numpy() for name, found in places.items()}

    def _encoded(self, rows: NDArray[np.int64]) -> _Features:
        """The encoder's vectors of these rows; where they are kept, also of earlier ones."""
        features = self._kept if self._kept is not None else _Features.of(np.unique(rows), self._embedding)
        new = rows[~features.done[features.places(rows)]]
        blocks = self._embedding.text_blocks
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            self._encode_texts(part.tolist(), features)
            self._encode_pictures(part.tolist(), features)
            if blocks is not None:
                places, texts = features.places(part), [self._texts[row] for row in part.tolist()]
                features.heads[TEXT][places] = blocks.join(features.encoder[TEXT][places], texts)
        features.done[features.places(new)] = True
        return features

    def _encode_texts(self, rows: Sequence[int], features: _Features) -> None:
        found = {row: self._texts[row] for row in rows}
        texts = {row: text for row, text in found.items() if text is not None and text.strip()}
        if TEXT in self._known.rows:
            new = self._without_known(TEXT, {row: text_hash(text) for row, text in texts.items()}, features)
            texts = {row: texts[row] for row in new}
        if texts:
            prepared = self._encoder.prepare_texts([plain_text(text) for text in texts.values()])
            self._place(TEXT, list(texts), prepared, features)

    def _encode_pictures(self, rows: Sequence[int], features: _Features) -> None:
        found = {row: self._dataset.image_path(row) for row in rows}
        paths = {row: path for row, path in found.items() if path is not None}
        if IMAGE in self._known.rows:
            new = self._without_known(IMAGE, self._picture_hashes(paths), features)
            paths = {row: paths[row] for row in new}
        wanted: dict[int, Image.Image] = {}
        for row, path in paths.items():
            try:
                wanted[row] = open_picture(path, self._encoder.picture_pixels)
            except (OSError, PictureError) as error:
                self.unreadable[row] = str(error)[:_REASON_CHARACTERS]
        if not wanted:
            return
        try:
            self._place(IMAGE, list(wanted), self._encoder.prepare_pictures(list(wanted.values())), features)
        except ValueError:  # the image processor refuses one of them
            for row, picture in wanted.items():
                try:
                    self._place(IMAGE, [row], self._encoder.prepare_pictures([picture]), features)
                except ValueError as error:
                    self.unreadable[row] = f"the image processor refuses it: {error}"[:_REASON_CHARACTERS]

    def _picture_hashes(self, paths: "Mapping[int, PictureFile]") -> dict[int, str]:
        """Row → hash of its picture, without those that cannot be read."""
        hashes = {}
        for row, path in paths.items():
            try:
                with path.open("rb") as file:
                    hashes[row] = picture_hash(file)
            except OSError as error:
                self.unreadable[row] = str(error)[:_REASON_CHARACTERS]
        return hashes

    def _without_known(self, modality: str, hashes: Mapping[int, str], features: _Features) -> list[int]:
        """Take the stored vectors of known contents; returns the other rows."""
        rows, stored = np.array(list(hashes), dtype=np.int64), self._known.find(modality, list(hashes.values()))
        known = stored >= 0
        features.encoder[modality][features.places(rows[known])] = self._known.vectors[modality][stored[known]]
        return [int(row) for row in rows[~known]]

    @torch.inference_mode()
    def _place(self, modality: str, rows: Sequence[int], inputs: dict[str, torch.Tensor], features: _Features) -> None:
        made = self._encoder.encode(modality, on_device(inputs, self._device)).cpu()
        if not torch.isfinite(made).all():
            raise EmbeddingsError(f"the model gives values that are not finite for {modality}; use vlm.dtype float32")
        features.encoder[modality][features.places(np.array(rows))] = made.numpy()
