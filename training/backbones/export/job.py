"""Exports a trained run as one ONNX file a modality, checked against PyTorch before the directory gets its name."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch.export import Dim

from index.items.slots import TEXT
from index.machine.disk import translate_disk_errors
from training.backbones.export.onnx_program import trace, write
from training.backbones.export.parity import TowerParity, check_tower, examples_of, prepared
from training.backbones.export.preparation import write_picture_preparation, write_text_preparation
from training.backbones.export.tower_graph import TERMS, TowerGraph, tower_encoder, trained_heads
from training.backbones.identity import LICENCES, MODEL_DIRECTORY
from training.backbones.items.item_encoder import Inputs
from training.backbones.items.trained_heads import ItemEmbedding, load_heads
from training.backbones.trained_model import FEATURES_DIRECTORY, TRAINING_DIRECTORY, TrainedModel
from training.config.types import MODALITIES
from training.errors import ExportError

MANIFEST_FILE: Final = "manifest.json"
TOWERS_FORMAT: Final = 1
FAMILIES: Final = ("dual-encoder", "towers")
"""Values of ``vlm.family`` whose runs can be exported."""
OUTPUT: Final = "vectors"
_AGAIN: Final = "start the same command again"
_FAILURES: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    NotImplementedError,
    onnx.checker.ValidationError,
    torch.onnx.OnnxExporterError,
)

Progress = Callable[[str, int, int], None]
"""Called with a step, how much of it is done, and of how much."""


@dataclass(frozen=True)
class ExportedTower:
    """One exported modality.

    Attributes:
        file: name of the ONNX file.
        size: bytes of the file, and of the weights beside it.
        parity: agreement with PyTorch.
    """

    file: str
    size: int
    parity: TowerParity


def export_towers(
    model: TrainedModel, out: Path, *, progress: Progress = lambda _step, _done, _all: None
) -> Mapping[str, ExportedTower]:
    """Write a directory with an ONNX file a modality, what prepares their inputs, and a manifest.

    The directory has another name until everything in it has been checked.

    Args:
        model: of a run.
        out: the new directory.
        progress: called before and after each step.

    Returns:
        Modality → what was written.

    Raises:
        ExportError: the family has no towers, the directory exists, the exporter fails, or a file differs from PyTorch.
        BackboneError: the model cannot be loaded.
        DiskError: a file cannot be written.
    """
    if model.config.vlm.family not in FAMILIES:
        raise ExportError(
            f'{model.run}: vlm.family = "{model.config.vlm.family}" reads texts and pictures with one model, which has '
            f"no towers to export; it is for {' and '.join(FAMILIES)}"
        )
    if out.exists():
        raise ExportError(f"{out}: exists already; choose another --out, or remove it")
    training = model.run / TRAINING_DIRECTORY
    steps = len(MODALITIES) + 1
    progress("loading the model", 0, steps)
    embedding = load_heads(training / MODEL_DIRECTORY, training / FEATURES_DIRECTORY, attention="sdpa")
    embedding.encoder.model.float().eval()
    trained_heads(embedding).float().eval()
    aside = out.with_name(f".{out.name}.part")
    with translate_disk_errors(out, again=_AGAIN):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            exported: dict[str, ExportedTower] = {}
            described: dict[str, Any] = {}
            for number, modality in enumerate(MODALITIES):
                progress(f"exporting the {modality} tower", number + 1, steps)
                exported[modality], described[modality] = _export(embedding, modality, aside)
            _write_manifest(model, described, aside)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    progress("done", steps, steps)
    return exported


def _export(embedding: ItemEmbedding, modality: str, directory: Path) -> tuple[ExportedTower, dict[str, Any]]:
    """Write and check one tower; returns its entry of the manifest as well."""
    encoder, path = tower_encoder(embedding), directory / f"{modality}.onnx"
    if modality == TEXT:
        preparation = write_text_preparation(encoder, embedding.text_blocks, directory)
    else:
        preparation = write_picture_preparation(encoder, directory)
    example = prepared(embedding, modality, examples_of(modality)[:2])
    if "spatial_shapes" in example:
        raise ExportError(
            "the image tower reads pictures of several resolutions (siglip2), which has no ONNX form here; use a model "
            "of fixed resolution, such as siglip2-base-patch16-224"
        )
    shapes = _shapes(embedding, modality, example)
    try:
        program = trace(
            TowerGraph(embedding, modality), (example,), inputs=list(example), output=OUTPUT,
            dynamic_shapes={"inputs": shapes},
        )  # fmt: skip
        write(program, path, {"format": str(TOWERS_FORMAT), "modality": modality})
    except _FAILURES as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the {modality} tower cannot be exported ({reason}); use another model") from error
    parity = check_tower(path, embedding, modality)
    size = sum(file.stat().st_size for file in directory.glob(f"{path.name}*"))
    length = trained_heads(embedding).dim
    return ExportedTower(path.name, size, parity), {
        "file": path.name,
        "inputs": {name: _described(value, shapes[name]) for name, value in example.items()},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", length], "row_length": 1},
        "preparation": preparation,
        "parity": {
            "cases": parity.cases,
            "largest_difference": parity.difference,
            "smallest_cosine": parity.cosine,
        },
    }


def _shapes(embedding: ItemEmbedding, modality: str, example: Inputs) -> dict[str, dict[int, Any]]:
    """Free dimensions of each input: the batch, and the tokens where texts are not all padded to one length."""
    batch = Dim("batch", min=1, max=65_536)
    shapes: dict[str, dict[int, Any]] = {name: {0: batch} for name in example}
    if modality != TEXT:
        return shapes
    longest = prepared(embedding, modality, examples_of(modality))
    tokens = Dim("tokens", min=1, max=int(longest["input_ids"].shape[1]))
    for name, value in example.items():
        if name != TERMS and value.shape[1] != longest[name].shape[1]:
            shapes[name][1] = tokens
    return shapes


def _described(value: torch.Tensor, free: Mapping[int, Any]) -> dict[str, Any]:
    """Dtype and shape of an input, free dimensions by their names."""
    shape = [free[axis].__name__ if axis in free else int(size) for axis, size in enumerate(value.shape)]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def _write_manifest(model: TrainedModel, modalities: Mapping[str, Any], directory: Path) -> None:
    """Write ``manifest.json`` with the hash of every other file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    made = {
        "format": TOWERS_FORMAT,
        "model": {name: value for name, value in model.provenance.items() if name != LICENCES},
        LICENCES: model.provenance[LICENCES],
        "modalities": dict(modalities),
        "files": {path.relative_to(directory).as_posix(): _sha256(path) for path in files},
    }
    text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
