"""Exports the sequence encoder to ONNX and checks that ONNX Runtime and PyTorch agree."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from index.errors import EncoderError
from index.items.slots import SlotLayout
from index.machine.disk import translate_disk_errors
from index.search.encoder import ENCODER_FORMAT, OnnxSequenceEncoder
from training.backbones.export.onnx_program import remove_debug_metadata, trace
from training.encoder.model import SequenceEncoder
from training.errors import ExportError

TOLERANCE = 1e-4
"""Largest difference of any component, relative to the longest query of the check or to 1, whichever is larger."""
_BATCHES = (1, 2, 7, 64)


@dataclass(frozen=True)
class ExportParity:
    """The agreement of ONNX Runtime and PyTorch.

    Attributes:
        cases: number of (batch, length) shapes compared.
        difference: largest difference of any component, relative as for :data:`TOLERANCE`.
    """

    cases: int
    difference: float


def export_encoder(encoder: SequenceEncoder, layout: SlotLayout, path: Path, *, seed: int = 0) -> ExportParity:
    """Write ``encoder.onnx``; it replaces an older file only after :func:`check_parity` has passed.

    Inputs ``histories`` (B, L, Σd) float32 and ``lengths`` (B,) int64, output ``queries`` (B, Σd) float32, B and L
    free; metadata ``layout``, ``max_history`` and ``format``.

    Args:
        encoder: in evaluation mode.
        layout: slots of the stored vectors.
        path: of the model file.
        seed: of the vectors in the check.

    Raises:
        DiskError: the file cannot be written.
        ExportError: the layout does not fit, the exporter fails, or the two engines differ.
    """
    if layout.dim != encoder.dim:
        raise ExportError(f"the layout has {layout.dim} components, the encoder takes {encoder.dim}; fit it again")
    partial = path.with_name(f".{path.name}.part")
    try:
        model = _traced(encoder)
        metadata = {
            "layout": json.dumps([[slot.name, slot.dim] for slot in layout.slots]),
            "max_history": str(encoder.max_history),
            "format": ENCODER_FORMAT,
        }
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        with translate_disk_errors(path):
            onnx.save(model, partial)
        parity = check_parity(encoder, layout, partial, seed=seed)
        partial.replace(path)
    except (OSError, RuntimeError, ValueError, onnx.checker.ValidationError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"{path}: the encoder cannot be exported ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return parity


def check_parity(encoder: SequenceEncoder, layout: SlotLayout, path: Path, *, seed: int = 0) -> ExportParity:
    """Compare ONNX Runtime with PyTorch.

    Lengths 1 … max_history alone and mixed, batches of 1 to 64, histories longer than the encoder reads, and the same
    histories over different padding.

    Args:
        encoder: in evaluation mode.
        layout: slots of the stored vectors.
        path: the exported model.
        seed: of the generated stored vectors.

    Raises:
        ExportError: a component differs by more than :data:`TOLERANCE`, or the model cannot be run.
    """
    rng = np.random.default_rng(seed)
    try:
        served = OnnxSequenceEncoder(path)
        if served.layout != layout or served.max_history != encoder.max_history:
            raise ExportError(f"{path}: the model's metadata differ from what was exported; export again")
        worst, cases = 0.0, 0
        for histories in _histories(encoder.max_history, layout, rng):
            expected = _by_torch(encoder, histories, rng)
            worst = float(np.maximum(worst, _difference(served.encode(histories), expected)))  # keeps NaN
            cases += 1
    except EncoderError as error:
        raise ExportError(f"{path}: ONNX Runtime does not run the exported model ({error})") from error
    if not worst <= TOLERANCE:
        raise ExportError(
            f"{path}: ONNX Runtime and PyTorch differ by {worst:.2g}, at most {TOLERANCE:g} is allowed; "
            "try another version of torch or onnxruntime"
        )
    return ExportParity(cases, worst)


def _histories(longest: int, layout: SlotLayout, rng: np.random.Generator) -> Iterator[list[NDArray[np.float32]]]:
    """Generated histories: every batch size with lengths of 1, the longest, a longer one, and mixed ones."""
    for batch in _BATCHES:
        for lengths in ([1] * batch, [longest] * batch, [longest + 3] * batch, rng.integers(1, longest + 1, batch)):
            yield [_random_items(int(length), layout, rng) for length in lengths]
    for length in range(1, longest + 1):
        yield [_random_items(length, layout, rng)]


def _random_items(length: int, layout: SlotLayout, rng: np.random.Generator) -> NDArray[np.float32]:
    """(length, Σd) stored vectors of items, some without a slot."""
    return layout.stack(
        {slot.name: rng.standard_normal((length, slot.dim)) * (rng.random((length, 1)) < 0.8) for slot in layout.slots}
    )


def _by_torch(
    encoder: SequenceEncoder, histories: list[NDArray[np.float32]], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Queries under PyTorch, with random values as padding."""
    newest = [history[-encoder.max_history :] for history in histories]
    lengths = [len(history) for history in newest]
    padded = 100 * rng.standard_normal((len(newest), max(lengths), encoder.dim)).astype(np.float32)
    for row, history in zip(padded, newest, strict=True):
        row[: len(history)] = history
    with torch.inference_mode():
        queries = encoder(torch.from_numpy(padded), torch.tensor(lengths))
    return np.asarray(queries.numpy(), dtype=np.float32)


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    scale = max(1.0, float(np.linalg.norm(expected, axis=1).max()))
    return float(np.abs(got - expected).max()) / scale


def _traced(encoder: SequenceEncoder) -> onnx.ModelProto:
    """The ONNX graph, batch and length free."""
    batch = torch.export.Dim("batch", min=1, max=65_536)
    length = (
        torch.export.Dim("length", min=1, max=encoder.max_history)
        if encoder.max_history > 1
        else torch.export.Dim.STATIC
    )
    example = (torch.zeros(2, min(2, encoder.max_history), encoder.dim), torch.ones(2, dtype=torch.int64))
    shapes = {"histories": {0: batch, 1: length}, "lengths": {0: batch}}
    program = trace(encoder, example, inputs=list(shapes), output="queries", dynamic_shapes=shapes)
    model: onnx.ModelProto = program.model_proto
    remove_debug_metadata(model)
    return model
