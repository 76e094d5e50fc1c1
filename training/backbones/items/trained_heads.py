"""Stores trained heads beside the name of the encoder below them, and loads both."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from index.items.slots import TEXT
from training.backbones.adapters import ADAPTER_DIRECTORY, ADAPTER_WEIGHTS, load_adapters, save_adapters
from training.backbones.identity import DESCRIPTION_FILE, MODEL_FORMAT, read_json
from training.backbones.items.heads import ModalityHeads
from training.backbones.items.last_layers import LAYERS_FILE, restore_text_layers
from training.backbones.items.source import ItemSource
from training.backbones.items.text_blocks import TEXT_BLOCKS_FILE, TextBlocks, text_blocks_hash
from training.config.types import MODALITIES
from training.errors import BackboneError

if TYPE_CHECKING:
    from training.backbones.items.item_encoder import ItemEncoder

WEIGHTS_FILE = "heads.safetensors"


@dataclass(frozen=True)
class ItemEmbedding:
    """An encoder of items, with trained heads or alone.

    Attributes:
        source: names the encoder.
        encoder: frozen.
        heads: on its vectors; None for the vectors themselves.
        features: directory of the encoder's stored vectors, which may be missing or of fewer items.
        model: JSON-able provenance.
        text_blocks: joins the encoder's text vectors with TF-IDF for the heads; None for the vectors alone.
        trained: modalities of which layers or adapters of the encoder were trained, so that stored vectors are not its.
    """

    source: ItemSource
    encoder: "ItemEncoder"
    heads: ModalityHeads | None
    features: Path
    model: dict[str, Any]
    text_blocks: TextBlocks | None = None
    trained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HeadsDescription:
    """The content of ``vlm2rec.json`` of trained heads.

    Attributes:
        source: names the encoder below the heads.
        dims: modality → length of the vectors that the heads read.
        length: of the heads' vectors.
        max_history: items of a history that they were trained on.
        text_layers: last layers of the text encoder that were trained with them.
        adapted: whether adapters in the encoder were trained with them.
    """

    source: ItemSource
    dims: dict[str, int]
    length: int
    max_history: int
    text_layers: int = 0
    adapted: bool = False

    @property
    def trained(self) -> frozenset[str]:
        """Modalities of which layers or adapters of the encoder were trained, so that stored vectors are not its."""
        return frozenset(MODALITIES if self.adapted else (TEXT,) if self.text_layers else ())

    @classmethod
    def read(cls, directory: Path) -> "HeadsDescription":
        """Read ``vlm2rec.json``.

        Raises:
            BackboneError: the file is missing, unreadable, or of another format.
        """
        path = directory / DESCRIPTION_FILE
        if not path.is_file():
            raise BackboneError(f"{directory}: no trained model here; run `vlm2rec train` first")
        found = read_json(path)
        if found.get("format") != MODEL_FORMAT:
            raise BackboneError(
                f"{directory}: trained with format {found.get('format')!r}, this version has {MODEL_FORMAT}; "
                "train again"
            )
        try:
            dims = {name: int(size) for name, size in found["dims"].items()}
            numbers = (int(found["length"]), int(found["max_history"]), int(found.get("text_layers", 0)))
            return cls(ItemSource.from_json(found["source"]), dims, *numbers, bool(found.get("adapters")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackboneError(f"{path}: cannot be read ({error}); train the model again") from error

    def write(self, directory: Path) -> None:
        """Write ``vlm2rec.json``."""
        described = {
            "format": MODEL_FORMAT,
            "source": self.source.as_json(),
            "dims": self.dims,
            "length": self.length,
            "max_history": self.max_history,
        }
        described |= {"text_layers": self.text_layers} if self.text_layers else {}
        described |= {"adapters": True} if self.adapted else {}
        (directory / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def save_heads(
    directory: Path, heads: ModalityHeads, source: ItemSource, text_blocks: TextBlocks | None = None
) -> None:
    """Write heads; :func:`load_heads` reads them back.

    Args:
        directory: created if needed; the description is written last.
        heads: trained or not.
        source: names the encoder below them.
        text_blocks: joins the encoder's text vectors with TF-IDF; None for the vectors alone.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TEXT_BLOCKS_FILE).unlink(missing_ok=True)
    if text_blocks is not None:
        text_blocks.save(directory / TEXT_BLOCKS_FILE)
    own = {
        name: value for name, value in heads.state_dict().items() if not name.startswith(("text_layers.", "adapters."))
    }
    save_file({name: value.contiguous().cpu() for name, value in own.items()}, directory / WEIGHTS_FILE)
    (directory / LAYERS_FILE).unlink(missing_ok=True)
    if heads.text_layers is not None:
        heads.text_layers.save(directory)
    if heads.adapters is not None:
        save_adapters(heads.adapters.model, directory)
    layers = 0 if heads.text_layers is None else len(heads.text_layers.layers)
    adapted = heads.adapters is not None
    HeadsDescription(source, heads.dims, heads.dim, heads.max_history, layers, adapted).write(directory)


def heads_provenance(directory: Path) -> dict[str, Any]:
    """Everything that a vector of trained heads depends on besides the item; see ``ItemSource.provenance``.

    Args:
        directory: of :func:`save_heads`.

    Raises:
        BackboneError: there is no such model, or a file cannot be read.
    """
    made = HeadsDescription.read(directory).source.provenance()
    try:
        own = hashlib.sha256((directory / WEIGHTS_FILE).read_bytes()).hexdigest()
        own = f"{own} {text_blocks_hash(directory / TEXT_BLOCKS_FILE)}".strip()
        for path in (directory / LAYERS_FILE, directory / ADAPTER_DIRECTORY / ADAPTER_WEIGHTS):
            own = f"{own} {hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else own
    except OSError as error:
        raise BackboneError(f"{directory}: the heads cannot be read ({error}); train the model again") from error
    made["weights"] = hashlib.sha256(f"{made['weights']} {own}".encode()).hexdigest()[:16]
    return made


def read_heads(directory: Path) -> ModalityHeads:
    """Read heads without their encoder.

    Args:
        directory: of :func:`save_heads`.

    Raises:
        BackboneError: a part is missing or unreadable.
    """
    described = HeadsDescription.read(directory)
    heads = ModalityHeads(described.dims, described.length, described.max_history)
    try:
        heads.load_state_dict(load_file(directory / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BackboneError(f"{directory}: the heads cannot be read ({error}); train the model again") from error
    return heads.eval()


def load_heads(directory: Path, features: Path, *, attention: str | None = None) -> ItemEmbedding:
    """Read heads and load the encoder below them.

    Args:
        directory: of :func:`save_heads`.
        features: directory of the encoder's stored vectors.
        attention: implementation of attention, in place of the one that it was trained with.

    Raises:
        BackboneError: a part is missing or unreadable.
    """
    described, heads = HeadsDescription.read(directory), read_heads(directory)
    source, blocks = described.source, TextBlocks.load(directory / TEXT_BLOCKS_FILE)
    source = source if attention is None else replace(source, attention=attention)
    encoder = source.load()
    if described.text_layers:
        restore_text_layers(encoder, described.text_layers, directory)
    if described.adapted:
        load_adapters(encoder.model, directory).eval()
    given = dict(encoder.dims) | ({} if blocks is None else {TEXT: blocks.dim})
    if any(given.get(name) != size for name, size in heads.dims.items()):
        raise BackboneError(
            f"{directory}: the heads read vectors of {heads.dims}, the encoder gives {given}; train the model again"
        )
    return ItemEmbedding(source, encoder, heads, features, heads_provenance(directory), blocks, described.trained)
