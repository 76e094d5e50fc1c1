"""Fits the encoder of a run and writes ``RUN/encoder``, the input of the index."""

# ``table/`` (stored vectors, popularity, metadata, thumbnails), ``contents.parquet`` (hashes of what the items were
# made of), ``lists/`` (item-to-item lists with their weights), ``encoder.onnx``, ``probes.npz``,
# ``encoder.safetensors``, ``projection.safetensors`` (slots for new items), ``imputation.safetensors`` (their behaviour
# vectors) and ``fit.json`` (configuration, data, log). ``checkpoints/`` exists only while fitting.

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus, derive_missing
from index.items.slots import BEHAVIOUR, IMAGE, SlotLayout
from index.items.thumbnails import THUMBNAILS_FILE
from index.lists.item_lists import ItemLists
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut, Sequences, leave_one_out, popularity
from training.data.thumbnails import MARK, VERSION, MadeThumbnails, make_thumbnails
from training.embedding.content_hashes import pictures_not_found
from training.embedding.store import Embeddings
from training.encoder.fit import FitLog, Report, fit
from training.encoder.imputation import BehaviourImputation, ImputationFit
from training.encoder.imputed_lengths import LengthCalibration
from training.encoder.model import SlotProjection
from training.encoder.onnx_export import ExportParity, export_encoder
from training.encoder.projection import project, save_projection
from training.encoder.slot_model import SlotModel, stored_vectors, torch_encoder
from training.errors import ConfigError, DatasetError, EmbeddingsError
from training.lists.fit_lists import LISTS_DIRECTORY, Progress, fit_lists
from training.ranking.cold_items import cold_mask, without_items
from training.ranking.slot_ranker import SlotRanker

ENCODER_DIRECTORY = "encoder"
TABLE_DIRECTORY = "table"
ENCODER_FILE = "encoder.onnx"
PROBES_FILE = "probes.npz"
WEIGHTS_FILE = "encoder.safetensors"
PROJECTION_FILE = "projection.safetensors"
IMPUTATION_FILE = "imputation.safetensors"
FIT_FILE = "fit.json"
CONTENTS_FILE = "contents.parquet"
CHECKPOINTS = "checkpoints"
MOST_PROBES = 2_000
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """Histories of a data set, split for training, with cold items taken out.

    Attributes:
        sequences: all histories, cold items included.
        cold: (n,) bool, items held out of training.
        parts: training, validation and test without the cold items.
        fingerprint: 16 hex digits over ids, histories and cold items.
    """

    sequences: Sequences
    cold: NDArray[np.bool_]
    parts: LeaveOneOut
    fingerprint: str


def split_dataset(dataset: Dataset, cold_share: float) -> Split:
    """Split a data set as fitting and evaluation both do.

    Args:
        dataset: catalogue and interactions.
        cold_share: share of the items held out of training.
    """
    ids = dataset.item_ids()
    sequences = Sequences.from_interactions(dataset.interactions, ids)
    cold = cold_mask(ids, cold_share)
    digest = hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass"))
    for array in (sequences.offsets, sequences.rows, cold):
        digest.update(np.ascontiguousarray(array).tobytes())
    return Split(sequences, cold, leave_one_out(without_items(sequences, cold)), digest.hexdigest()[:16])


def fit_run(
    dataset: Dataset,
    embeddings: Embeddings,
    config: EncoderConfig,
    directory: Path,
    *,
    report: Report = lambda _line: None,
    step_done: Callable[[float], None] = lambda _share: None,
    pictured: Callable[[int, int], None] = lambda _done, _all: None,
    listed: Progress = lambda _step, _done, _all: None,
) -> dict[str, Any]:
    """Fit slots and sequence encoder and write everything that the index needs.

    Args:
        dataset: catalogue and interactions.
        embeddings: modality vectors of the same catalogue.
        config: how to fit.
        directory: ``RUN/encoder``; a killed run resumes after its last complete epoch.
        report: called after every epoch with its line of the log.
        step_done: called after every step with the completed share of the epoch.
        pictured: called with the number of thumbnails made at the end, and of how many.
        listed: called while the item-to-item lists are made and weighed, and while imputed vectors are calibrated.

    Returns:
        The content of ``fit.json``.

    Raises:
        EmbeddingsError: the embeddings are of another catalogue.
        DatasetError: no user has two training events, so there is nothing to learn from.
        ConfigError: none of the wanted slots can be filled.
        TrainingDiverged: the loss is not finite.
        ExportError: ONNX Runtime and PyTorch differ.
    """
    started = time.monotonic()
    check_same_catalogue(dataset, embeddings)
    split = split_dataset(dataset, config.cold_items)
    train = split.parts.train
    _check_learnable(train, embeddings, config)
    counts = popularity(train, len(embeddings))
    torch.manual_seed(config.seed)
    model = SlotModel(embeddings, counts >= config.min_events, config)
    log = fit(
        model,
        train,
        split.parts.validation,
        config,
        directory / CHECKPOINTS,
        fingerprint=f"{split.fingerprint} {_digest(_fitted_by(config))} {_digest(embeddings.model)}",
        report=report,
        step_done=step_done,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FIT_FILE).unlink(missing_ok=True)  # written last, to mark a complete directory
    made = make_thumbnails(dataset, directory / THUMBNAILS_FILE, progress=pictured)
    lists = _lists(directory, dataset, embeddings, model, split, config, listed)
    imputation, imputed = _imputation(directory, embeddings, model, split, config, listed, weighed=bool(lists))
    record = _write(directory, dataset, embeddings, model, split, config, made, imputation)
    (directory / THUMBNAILS_FILE).unlink()  # the table has a copy
    record |= {"lists": lists, "imputation": imputed}
    record |= _account(log, split, counts) | {"seconds": round(time.monotonic() - started, 1)}
    _replace_text(directory / FIT_FILE, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return record


def _check_learnable(train: Sequences, embeddings: Embeddings, config: EncoderConfig) -> None:
    """Check that there are events to learn from and slots to fill.

    Raises:
        DatasetError: no user has two training events.
        ConfigError: none of the wanted slots can be filled.
    """
    if not (train.lengths >= 2).any():
        raise DatasetError(
            "fitting needs a user with at least two training events (the last two of a user with 3 or more are held "
            f"out), the longest of {len(train)} users has {int(train.lengths.max(initial=0))}; bring more interactions"
        )
    if BEHAVIOUR not in config.slots and not set(config.slots) & set(embeddings.vectors):
        raise ConfigError(f"encoder.slots: the embeddings have {sorted(embeddings.vectors)}, got {list(config.slots)}")


def check_same_catalogue(dataset: Dataset, embeddings: Embeddings) -> None:
    """Check that embeddings are of the catalogue: the same ids in the same order.

    Raises:
        EmbeddingsError: they differ.
    """
    ids = dataset.item_ids()
    if ids == embeddings.item_ids:
        return
    missing = sorted(set(ids) - set(embeddings.item_ids))[:1]
    what = f"item {missing[0]!r} has none" if missing else "ids or their order differ"
    raise EmbeddingsError(
        f"the embeddings ({len(embeddings)} items) are not of this catalogue ({len(ids)} items): {what}; "
        "embed the catalogue again"
    )


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


def held_out_probes(parts: LeaveOneOut, max_history: int, most: int = MOST_PROBES) -> EvaluationQueries:
    """Held-out histories for the bundle: test targets, then validation targets, evenly spaced where there are more.

    Args:
        parts: the split.
        max_history: newest items kept of a history.
        most: bound on the number of probes.
    """
    histories = [*parts.test.histories, *parts.validation.histories]
    targets = np.concatenate([parts.test.targets, parts.validation.targets])
    pool = len(parts.test) if len(parts.test) >= most else len(histories)
    chosen = np.linspace(0, pool - 1, min(pool, most)).astype(np.int64)
    padded = np.full((len(chosen), max_history), -1, dtype=np.int64)
    for row, number in zip(padded, chosen.tolist(), strict=True):
        newest = histories[number][-max_history:]
        row[: len(newest)] = newest
    return EvaluationQueries(padded, targets[chosen])


def _write(
    directory: Path,
    dataset: Dataset,
    embeddings: Embeddings,
    model: SlotModel,
    split: Split,
    config: EncoderConfig,
    made: MadeThumbnails,
    imputation: BehaviourImputation | None,
) -> dict[str, Any]:
    """Write the table and the files of the model."""
    projection, counts = model.final_projection(), popularity(split.parts.train, len(embeddings))
    slots, lengths, imputed = _slots(embeddings, model, projection), None, np.zeros(len(embeddings), dtype=np.bool_)
    if imputation is not None:
        slots, behaviour_lengths, imputed = imputation.fill(slots, embeddings.vectors, counts)
        lengths = {BEHAVIOUR: behaviour_lengths}
    vectors = model.layout.stack(slots, lengths).astype(config.precision)
    parity: ExportParity = export_encoder(model.encoder, model.layout, directory / ENCODER_FILE, seed=config.seed)
    provenance = {
        "embeddings": embeddings.model,
        "encoder": {"hash": _digest_file(directory / ENCODER_FILE)},
        MARK: VERSION,
    }
    ItemTable(
        layout=model.layout,
        ids=ItemIds(embeddings.item_ids),
        vectors=vectors,
        popularity=counts,
        metadata=dataset.metadata(),
        model=provenance,
        missing=missing_record(
            model.layout, vectors, embeddings, pictures_not_found(dataset, embeddings.contents), imputed
        ),
        thumbnails=made.thumbnails,
    ).save(directory / TABLE_DIRECTORY)
    (directory / CONTENTS_FILE).unlink(missing_ok=True)
    if embeddings.contents is not None:
        embeddings.contents.save(directory / CONTENTS_FILE)
    held_out_probes(split.parts, config.max_history).save(directory / PROBES_FILE)
    save_projection(projection, directory / PROJECTION_FILE)
    partial = directory / f"{WEIGHTS_FILE}.part"
    save_file({name: value.contiguous() for name, value in model.encoder.state_dict().items()}, partial)
    partial.replace(directory / WEIGHTS_FILE)
    return {
        "format": _FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "slots": [[slot.name, slot.dim] for slot in model.layout.slots],
        "model": provenance,
        "parity": {"cases": parity.cases, "difference": parity.difference},
        "thumbnails": {"made": made.made, "unreadable": made.unreadable},
    }


def _slots(embeddings: Embeddings, model: SlotModel, projection: SlotProjection) -> dict[str, NDArray[np.floating]]:
    """Slot vectors of the catalogue, behaviour vectors of warm items among them."""
    slots: dict[str, NDArray[np.floating]] = dict(project(embeddings, projection))
    if BEHAVIOUR in model.layout.names:
        slots[BEHAVIOUR] = model.behaviour_slots()
    return slots


def _imputation(
    directory: Path,
    embeddings: Embeddings,
    model: SlotModel,
    split: Split,
    config: EncoderConfig,
    progress: Progress,
    *,
    weighed: bool,
) -> tuple[BehaviourImputation | None, dict[str, Any]]:
    """Fit, calibrate and write the imputation of behaviour vectors; None where it is switched off or not possible."""
    (directory / IMPUTATION_FILE).unlink(missing_ok=True)
    if not config.impute_behaviour or BEHAVIOUR not in model.layout.names:
        return None, {}
    slots, counts = _slots(embeddings, model, model.final_projection()), popularity(split.parts.train, len(embeddings))
    maps = ImputationFit(model.layout, embeddings.vectors, slots[BEHAVIOUR], counts, config.min_events)
    if not maps.possible:
        return None, {}
    calibration = LengthCalibration(
        maps,
        model.layout,
        slots,
        counts,
        torch_encoder(model),
        config.max_history,
        ItemLists.load(directory / LISTS_DIRECTORY, len(embeddings)).used() if weighed else None,
        split.parts.validation,
        config.precision,
        config.exclude_seen,
        embeddings.item_ids,
    )
    imputation, record = calibration.run(lambda done, every: progress("lengths of imputed vectors", done, every))
    imputation.save(directory / IMPUTATION_FILE)
    return imputation, record


def _lists(
    directory: Path,
    dataset: Dataset,
    embeddings: Embeddings,
    model: SlotModel,
    split: Split,
    config: EncoderConfig,
    listed: Progress,
) -> dict[str, Any]:
    """Item-to-item lists, weighed beside the slots as they are stored."""
    ranker = SlotRanker(stored_vectors(model, config.precision), torch_encoder(model), config.max_history)
    return fit_lists(
        directory, ranker, model.layout, dataset.texts(), embeddings.vectors, split.parts, config, progress=listed
    )


def _fitted_by(config: EncoderConfig) -> dict[str, Any]:
    """What the weights of the encoder depend on: a checkpoint fits any choice of lists and imputation."""
    return config.model_dump(mode="json", exclude={"list_neighbours", "list_history", "impute_behaviour"})


def _account(log: FitLog, split: Split, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Figures of the data and of the fit."""
    return {
        "data": {
            "fingerprint": split.fingerprint,
            "items": len(counts),
            "items_with_events": int((counts > 0).sum()),
            "cold_items": int(split.cold.sum()),
            "users": len(split.sequences),
            "training_events": len(split.parts.train.rows),
            "validation_users": len(split.parts.validation),
        },
        "best_epoch": log.best_epoch,
        "log": log.epochs,
    }


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _digest_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
