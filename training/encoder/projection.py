"""Stores the projection and applies it: slots for items that came after training, without training again."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.embedding.store import Embeddings
from training.encoder.model import SlotProjection
from training.errors import EmbeddingsError

_BLOCK_ROWS = 16_384
_DIMS = "dims"


def project(embeddings: Embeddings, projection: SlotProjection) -> dict[str, NDArray[np.float32]]:
    """Slot vectors of items.

    Args:
        embeddings: modality vectors of the model that the projection was trained on.
        projection: as :func:`load_projection` reads it.

    Returns:
        Slot name → (n, d) float32, rows of length 1, or zero where the modality is absent; ready for
        :meth:`index.items.slots.SlotLayout.stack`.

    Raises:
        EmbeddingsError: a slot is missing or its vectors have another length.
    """
    wanted = {name: int(linear.weight.shape[1]) for name, linear in projection.linears().items()}
    given = embeddings.dims()
    if any(given.get(name) != dim for name, dim in wanted.items()):
        raise EmbeddingsError(
            f"the projection takes vectors {wanted}, the embeddings have {given}; embed with the model it was "
            "trained on"
        )
    slots: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted}
    with torch.inference_mode():
        for start in range(0, max(len(embeddings), 1), _BLOCK_ROWS):
            block = {
                name: torch.from_numpy(np.array(embeddings.vectors[name][start : start + _BLOCK_ROWS]))
                for name in wanted
            }
            for name, made in projection(block).items():
                slots[name].append(made.numpy())
    return {name: np.concatenate(blocks) for name, blocks in slots.items()}


def save_projection(projection: SlotProjection, path: Path) -> None:
    """Write ``projection.safetensors`` to a temporary file and rename it."""
    linears = projection.linears()
    dims = {name: [int(size) for size in linear.weight.shape] for name, linear in linears.items()}
    tensors = {
        f"{name}.{part}": value.contiguous()
        for name, linear in linears.items()
        for part, value in (("weight", linear.weight.detach()), ("bias", linear.bias.detach()))
    }
    partial = path.with_name(f"{path.name}.part")
    save_file(tensors, partial, metadata={_DIMS: json.dumps(dims)})
    partial.replace(path)


def load_projection(path: Path) -> SlotProjection:
    """Read ``projection.safetensors``.

    Raises:
        EmbeddingsError: the file is missing, unreadable, or not a projection.
    """
    try:
        with safe_open(path, framework="pt") as file:
            dims: dict[str, tuple[int, int]] = json.loads(file.metadata()[_DIMS])
            projection = SlotProjection({n: d[1] for n, d in dims.items()}, {n: d[0] for n, d in dims.items()})
            with torch.no_grad():
                for name, linear in projection.linears().items():
                    linear.weight.copy_(file.get_tensor(f"{name}.weight"))
                    linear.bias.copy_(file.get_tensor(f"{name}.bias"))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise EmbeddingsError(f"{path}: no readable projection ({error}); fit the encoder again") from error
    return projection.eval()
