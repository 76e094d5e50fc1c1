"""Names and writes the files of a fitted encoder: the item table, the model, and what new items need."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from index.bundle.encoder_pair import encoder_hash
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus, derive_missing
from index.items.slots import BEHAVIOUR, IMAGE, SlotLayout
from index.items.thumbnails import Thumbnails
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.thumbnails import MARK, VERSION
from training.embedding.content_hashes import pictures_not_found
from training.embedding.store import Embeddings
from training.encoder.imputation import BehaviourImputation
from training.encoder.model import SlotProjection
from training.encoder.onnx_export import ExportParity, export_encoder
from training.encoder.projection import project, save_projection
from training.encoder.slot_model import SlotModel

ENCODER_DIRECTORY = "encoder"
SERVED_DIRECTORY = "served"
"""Below ``RUN/encoder``: the refitted encoder with its own table, lists, projection and imputation."""
TABLE_DIRECTORY = "table"
ENCODER_FILE = "encoder.onnx"
PROBES_FILE = "probes.npz"
WEIGHTS_FILE = "encoder.safetensors"
PROJECTION_FILE = "projection.safetensors"
IMPUTATION_FILE = "imputation.safetensors"
FIT_FILE = "fit.json"
CONTENTS_FILE = "contents.parquet"
COUNTED_ON_EXPORT = "counted_on_export"
"""Key of ``fit.json``: true where exported events were counted too, which the data set alone does not have."""


def served_directory(directory: Path, record: Mapping[str, Any]) -> Path:
    """The directory of the encoder that serves: the refitted one, if there is one.

    Args:
        directory: ``RUN/encoder``.
        record: the content of its ``fit.json``; earlier versions recorded no refit.
    """
    return directory / SERVED_DIRECTORY if record.get("refit") else directory


def write_encoder(
    directory: Path,
    dataset: Dataset,
    embeddings: Embeddings,
    model: SlotModel,
    counts: NDArray[np.int64],
    config: EncoderConfig,
    thumbnails: Thumbnails | None,
    imputation: BehaviourImputation | None,
    *,
    measured: str | None = None,
) -> dict[str, Any]:
    """Write the item table, ``encoder.onnx``, the weights and the projection.

    Args:
        directory: ``RUN/encoder`` or its part that serves.
        dataset: catalogue.
        embeddings: of the same catalogue.
        model: with its final weights.
        counts: (n,) int64 events that the model was fitted on, per item.
        config: how it was fitted.
        thumbnails: of the same catalogue; None for none.
        imputation: of behaviour vectors; None for none.
        measured: hash of the measured encoder, for a refitted one.

    Returns:
        ``slots``, ``model`` (provenance) and ``parity`` for ``fit.json``.

    Raises:
        ExportError: ONNX Runtime and PyTorch differ.
    """
    projection = model.final_projection()
    slots, lengths = slot_vectors(embeddings, model, projection), None
    imputed = np.zeros(len(embeddings), dtype=np.bool_)
    if imputation is not None:
        slots, behaviour_lengths, imputed = imputation.fill(slots, embeddings.vectors, counts)
        lengths = {BEHAVIOUR: behaviour_lengths}
    vectors = model.layout.stack(slots, lengths).astype(config.precision)
    parity: ExportParity = export_encoder(model.encoder, model.layout, directory / ENCODER_FILE, seed=config.seed)
    hashes = {"hash": encoder_hash(directory / ENCODER_FILE)} | ({} if measured is None else {"measured": measured})
    provenance = {"embeddings": embeddings.model, "encoder": hashes, MARK: VERSION}
    not_found = pictures_not_found(dataset, embeddings.contents)
    ItemTable(
        layout=model.layout,
        ids=ItemIds(embeddings.item_ids),
        vectors=vectors,
        popularity=counts,
        metadata=dataset.metadata(),
        model=provenance,
        missing=missing_record(model.layout, vectors, embeddings, not_found, imputed),
        thumbnails=thumbnails,
    ).save(directory / TABLE_DIRECTORY)
    save_projection(projection, directory / PROJECTION_FILE)
    _save_weights(model, directory / WEIGHTS_FILE)
    return {
        "slots": [[slot.name, slot.dim] for slot in model.layout.slots],
        "model": provenance,
        "parity": {"cases": parity.cases, "difference": parity.difference},
    }


def _save_weights(model: SlotModel, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    save_file({name: value.contiguous() for name, value in model.encoder.state_dict().items()}, partial)
    partial.replace(path)


def slot_vectors(
    embeddings: Embeddings, model: SlotModel, projection: SlotProjection
) -> dict[str, NDArray[np.floating]]:
    """Slot vectors of the catalogue, behaviour vectors of warm items among them.

    Args:
        embeddings: of the catalogue.
        model: gives the behaviour vectors.
        projection: its final projection.

    Returns:
        Slot name → (n, d).
    """
    slots: dict[str, NDArray[np.floating]] = dict(project(embeddings, projection))
    if BEHAVIOUR in model.layout.names:
        slots[BEHAVIOUR] = model.behaviour_slots()
    return slots


def missing_record(
    layout: SlotLayout,
    vectors: NDArray[np.floating],
    embeddings: Embeddings,
    not_found: NDArray[np.bool_],
    imputed: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """The reason why each item lacks a slot.

    Args:
        layout: the slots.
        vectors: (n, Σd) stored vectors.
        embeddings: of the same items in the same order, with the list of unreadable pictures.
        not_found: (n,) bool, items whose picture file does not exist.
        imputed: (n,) bool, items whose behaviour vector is imputed.

    Returns:
        (n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`, columns in the order of the
        layout.
    """
    missing = derive_missing(layout, vectors)
    if BEHAVIOUR in layout.names:
        missing[imputed, layout.names.index(BEHAVIOUR)] = ModalityStatus.COLD
    if IMAGE in layout.names:
        picture = missing[:, layout.names.index(IMAGE)]
        unreadable = np.array([item_id in embeddings.unreadable for item_id in embeddings.item_ids], dtype=np.bool_)
        lacking = picture != ModalityStatus.PRESENT
        picture[not_found & lacking] = ModalityStatus.NOT_FOUND
        picture[unreadable & lacking] = ModalityStatus.UNREADABLE
    return missing
