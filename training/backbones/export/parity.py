"""Compares an exported tower under ONNX Runtime with the vectors that PyTorch gives the same inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from index.errors import EncoderError
from index.items.slots import TEXT
from index.search.encoder import OnnxModel
from training.backbones.export.tower_graph import TERMS, tower_encoder, trained_heads
from training.backbones.items.feature_batches import FeatureCollator
from training.backbones.items.item_encoder import Inputs
from training.backbones.items.trained_heads import ItemEmbedding
from training.backbones.prompts import plain_text
from training.errors import ExportError

TOLERANCE = 1e-3
"""Largest difference of any component of two vectors of length 1.

A head subtracts the centre of the catalogue, so rounding grows where the encoder's vectors are nearly alike.
"""
TEXTS = (
    "Red shoe",
    "a",
    "Größe 42, naïve café – 東京の青い帽子 🙂",
    "a title with <|endoftext|> and [SEP] in it",
    "the green hat of a blue shoe, " * 200,
)
"""Texts of the check: short, of several scripts, with special tokens, and longer than any model reads."""
_SIZES = ((40, 24), (224, 224), (300, 90), (97, 400))


@dataclass(frozen=True)
class TowerParity:
    """The agreement of ONNX Runtime and PyTorch.

    Attributes:
        cases: number of batches compared.
        difference: largest difference of any component.
        cosine: smallest cosine of two vectors of the same item.
    """

    cases: int
    difference: float
    cosine: float


def check_tower(path: Path, embedding: ItemEmbedding, modality: str) -> TowerParity:
    """Compare a file with the vectors that ``vlm2rec embed`` stores: each example alone, pairs, and all together.

    Args:
        path: of the ONNX file.
        embedding: the trained run.
        modality: ``text`` or ``image``.

    Raises:
        ExportError: a component differs by more than :data:`TOLERANCE`, or the model cannot be run.
    """
    worst, cosine, cases = 0.0, 1.0, 0
    try:
        served = OnnxModel(path)
        for examples in _batches(examples_of(modality)):
            inputs = prepared(embedding, modality, examples)
            (got,) = served.run({name: value.numpy() for name, value in inputs.items()})
            expected = by_torch(embedding, modality, inputs, examples)
            if got.shape != expected.shape:
                raise ExportError(f"{path}: the vectors must be {expected.shape}, got {got.shape}; export again")
            worst = float(np.maximum(worst, np.abs(got - expected).max()))  # keeps NaN
            cosine = float(np.minimum(cosine, (got * expected).sum(axis=1).min()))
            cases += 1
    except EncoderError as error:
        raise ExportError(f"{path}: ONNX Runtime does not run the exported model ({error})") from error
    if not worst <= TOLERANCE:
        raise ExportError(
            f"{path}: ONNX Runtime and PyTorch differ by {worst:.2g} (smallest cosine {cosine:.6f}), at most "
            f"{TOLERANCE:g} is allowed; try another version of torch or onnxruntime"
        )
    return TowerParity(cases, worst, cosine)


def examples_of(modality: str) -> Sequence[str | Image.Image]:
    """Texts or pictures of the check, of different lengths and shapes."""
    if modality == TEXT:
        return TEXTS
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in _SIZES]
    return [*noise, Image.new("RGB", (64, 64), "white"), Image.linear_gradient("L").convert("RGB")]


def prepared(embedding: ItemEmbedding, modality: str, examples: Sequence[str | Image.Image]) -> Inputs:
    """Inputs of the graph for texts or pictures, in the order of their names.

    Args:
        embedding: the trained run.
        modality: ``text`` or ``image``.
        examples: texts as they stand in a catalogue, or pictures in RGB.
    """
    encoder = tower_encoder(embedding)
    if modality != TEXT:
        return encoder.prepare_pictures([picture for picture in examples if isinstance(picture, Image.Image)])
    texts = [text for text in examples if isinstance(text, str)]
    made = encoder.prepare_texts([plain_text(text) for text in texts])
    if embedding.text_blocks is not None:
        made[TERMS] = torch.from_numpy(embedding.text_blocks.terms(texts))
    return dict(sorted(made.items()))


@torch.inference_mode()
def by_torch(
    embedding: ItemEmbedding, modality: str, inputs: Inputs, examples: Sequence[str | Image.Image]
) -> NDArray[np.float32]:
    """(n, D) float32 vectors as ``vlm2rec embed`` makes them, not through the exported graph."""
    own = {name: value for name, value in inputs.items() if name != TERMS}
    features = np.asarray(embedding.encoder.encode(modality, own).numpy(), dtype=np.float32)
    if modality == TEXT and embedding.text_blocks is not None:
        features = embedding.text_blocks.join(features, [str(text) for text in examples])
    heads = trained_heads(embedding)
    collator = FeatureCollator({modality: features}, max_history=heads.max_history, modalities=(modality,))
    batch, places = collator.items(np.arange(len(features)))
    return np.asarray(heads(batch)[places[modality]].numpy(), dtype=np.float32)


def _batches(examples: Sequence[str | Image.Image]) -> Iterator[Sequence[str | Image.Image]]:
    yield from ([example] for example in examples)
    yield examples[:2]
    yield examples
