"""Names the pretrained models that encode items, identifies them by their files, and loads them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.backbones.identity import KIND, files_hash
from training.backbones.items.packaged import is_packaged, packaged_directory
from training.config.vlm_config import VlmConfig
from training.data.pictures import PREPROCESSING_VERSION
from training.errors import BackboneError

if TYPE_CHECKING:
    from training.backbones.items.item_encoder import ItemEncoder
    from training.backbones.items.pooling import TextPooling

PREPARATION_VERSION = 1
"""Incremented when any encoder prepares texts or pictures differently, so that everything is embedded again."""


@dataclass(frozen=True)
class ItemSource:
    """The models that encode items, and how they are loaded.

    Attributes:
        family: of the encoder, see ``vlm.family``.
        models: part (``model``, or ``text`` and ``image`` of towers) → directory, hub id or ``package:NAME``.
        revisions: part → commit of a hub id; None for the others.
        text_pooling: of a text tower.
        max_text_tokens: most tokens of a text.
        vector_length: first coordinates to keep (Matryoshka); None keeps all.
        picture_pixels: fewest and most pixels of a picture; only Qwen3-VL-Embedding reads pictures of several sizes.
        dtype: of the weights.
        attention: implementation of attention in transformers.
    """

    family: str
    models: Mapping[str, str]
    revisions: Mapping[str, str | None]
    text_pooling: "TextPooling"
    max_text_tokens: int
    vector_length: int | None
    picture_pixels: tuple[int, int]
    dtype: str
    attention: str

    @classmethod
    def of(cls, vlm: VlmConfig) -> "ItemSource":
        """The models of a configuration whose family encodes items."""
        towers = vlm.towers
        if vlm.family == "towers":
            models = {"text": towers.text_model or "", "image": towers.image_model or ""}
            revisions = {"text": towers.text_revision, "image": towers.image_revision}
        else:
            models, revisions = {"model": vlm.model or ""}, {"model": vlm.revision}
        return cls(
            family=vlm.family,
            models=models,
            revisions=revisions,
            text_pooling=towers.text_pooling,
            max_text_tokens=vlm.max_text_tokens,
            vector_length=vlm.vector_length,
            picture_pixels=(vlm.min_picture_pixels, vlm.max_picture_pixels),
            dtype=vlm.dtype,
            attention=vlm.attention,
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ItemSource":
        """Read what :meth:`as_json` gave.

        Raises:
            BackboneError: a part is missing.
        """
        try:
            return cls(**{**stored, "picture_pixels": tuple(stored["picture_pixels"])})
        except (KeyError, TypeError) as error:
            raise BackboneError(f"the source of a trained model cannot be read ({error}); train it again") from error

    def as_json(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)

    def check_pinned(self) -> None:
        """Require a commit for every hub id.

        Raises:
            BackboneError: one is missing.
        """
        from training.backbones.pretrained import check_pinned

        for part, name in self.models.items():
            if not is_packaged(name):
                check_pinned(name, self.revisions[part])

    def directories(self) -> dict[str, str]:
        """Part → directory or hub id, packaged models unpacked.

        Raises:
            BackboneError: a package is missing or has other weights.
        """
        return {
            part: str(packaged_directory(name)) if is_packaged(name) else name for part, name in self.models.items()
        }

    def provenance(self) -> dict[str, Any]:
        """Everything that a vector depends on besides the item.

        Returns:
            JSON-able, as :func:`training.backbones.identity.provenance`, with ``family``. A hub model counts by its
            revision, a directory by the content of its files.

        Raises:
            BackboneError: a package is missing, or a file cannot be read.
        """
        local = [Path(place) for place in self.directories().values() if Path(place).is_dir()]
        try:
            weights = files_hash(local)
        except OSError as error:
            raise BackboneError(f"{local[0]}: the model cannot be read ({error}); check its files") from error
        settings = {
            "pooling": self.text_pooling,
            "tokens": self.max_text_tokens,
            "length": self.vector_length,
            "pixels": self.picture_pixels,
            "versions": [PREPARATION_VERSION, PREPROCESSING_VERSION],
        }
        names = [Path(name).name if Path(name).is_dir() else name for name in self.models.values()]
        return {
            "kind": KIND,
            "family": self.family,
            "id": " + ".join(names),
            "revision": " + ".join(found for found in self.revisions.values() if found) or None,
            "weights": weights,
            "preprocessing": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16],
            "dtype": self.dtype,
            "attention": self.attention,
        }

    def load(self) -> "ItemEncoder":
        """Load the models.

        Raises:
            BackboneError: one is missing, unreadable, incomplete, or of another family.
        """
        places = self.directories()
        shared: dict[str, Any] = {
            "dtype": self.dtype,
            "attention": self.attention,
            "max_text_tokens": self.max_text_tokens,
        }
        if self.family == "towers":
            from training.backbones.items.towers import Towers, TowerSource, load_image_tower, load_text_tower

            text, image = (TowerSource(places[part], self.revisions[part]) for part in ("text", "image"))
            return Towers(
                load_text_tower(text, pooling=self.text_pooling, **shared), load_image_tower(image, dtype=self.dtype)
            )
        place, revision = places["model"], self.revisions["model"]
        if self.family == "dual-encoder":
            from training.backbones.items.dual_encoder import DualEncoder

            return DualEncoder.load(place, revision=revision, **shared)
        if self.family == "embeddinggemma-2":
            from training.backbones.items.gemma_embedding import GemmaEmbedding

            return GemmaEmbedding.load(place, revision=revision, length=self.vector_length, **shared)
        from training.backbones.backbone import load_backbone
        from training.backbones.items.qwen_embedding import QwenEmbedding

        backbone = load_backbone(
            place,
            revision=revision,
            dtype=self.dtype,
            attention=self.attention,
            picture_pixels=self.picture_pixels,
        )
        return QwenEmbedding(backbone, max_text_tokens=self.max_text_tokens, length=self.vector_length)
