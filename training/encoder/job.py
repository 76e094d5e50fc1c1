"""Fits the encoder of a run and writes ``RUN/encoder``, the input of the index."""

# ``table/`` (stored vectors, popularity, metadata, thumbnails), ``contents.parquet`` (hashes of what the items were
# made of), ``lists/`` (item-to-item lists with their weights), ``encoder.onnx``, ``probes.npz``,
# ``encoder.safetensors``, ``projection.safetensors`` (slots for new items), ``imputation.safetensors`` (their behaviour
# vectors) and ``fit.json`` (configuration, data, log). All of it is of the encoder fitted without the held-out events,
# which every figure is of. ``served/`` is what the index takes: table, lists, encoder, projection and imputation fitted
# or counted again on every event. ``checkpoints/`` and ``checkpoints-refit/`` exist only while fitting.

import dataclasses
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

from index.items.eval_queries import EvaluationQueries
from index.items.slots import BEHAVIOUR
from index.items.thumbnails import THUMBNAILS_FILE
from index.lists.item_lists import ItemLists
from index.machine.text_files import replace_text
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset, in_order
from training.data.impressions import read_impressions, shown_before
from training.data.sequences import LeaveOneOut, Sequences, leave_one_out, popularity
from training.data.thumbnails import make_thumbnails
from training.embedding.store import Embeddings
from training.encoder.encoder_files import (
    CONTENTS_FILE,
    COUNTED_ON_EXPORT,
    FIT_FILE,
    IMPUTATION_FILE,
    PROBES_FILE,
    SERVED_DIRECTORY,
    slot_vectors,
    write_encoder,
)
from training.encoder.fit import FitLog, Report, fit
from training.encoder.imputation import BehaviourImputation, ImputationFit
from training.encoder.imputed_lengths import LengthCalibration
from training.encoder.refit import RefittedModel, refit, write_refit
from training.encoder.slot_model import SlotModel, slot_layout, stored_vectors, torch_encoder
from training.encoder.windows import automatic_batch_size
from training.errors import ConfigError, DatasetError, EmbeddingsError
from training.lists.fit_lists import (
    LISTS_DIRECTORY,
    CandidateLists,
    Progress,
    ServedValidation,
    fit_lists,
    make_lists,
)
from training.ranking.cold_items import cold_mask, without_items
from training.ranking.slot_ranker import SlotRanker

CHECKPOINTS = "checkpoints"
REFIT_CHECKPOINTS = "checkpoints-refit"
MOST_PROBES = 2_000
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """Histories of a data set, split for training, with cold items taken out.

    Attributes:
        sequences: all histories, cold items included.
        cold: (n,) bool, items held out of training.
        parts: training, validation and test without the cold items.
        fingerprint: 16 hex digits over ids, histories with their weights, and cold items.
    """

    sequences: Sequences
    cold: NDArray[np.bool_]
    parts: LeaveOneOut
    fingerprint: str


def split_dataset(dataset: Dataset, cold_share: float, *, impressions: int = 0) -> Split:
    """Split a data set as fitting and evaluation both do.

    Args:
        dataset: catalogue and interactions.
        cold_share: share of the items held out of training.
        impressions: most impressions of an event in `Sequences.shown`; 0: none. Held-out events do not decide which of
            them training has.

    Raises:
        DatasetError: there are to be impressions, and the types of the events have no meaning.
    """
    ids = dataset.item_ids()
    sequences = Sequences.from_interactions(dataset.interactions, ids)
    cold = cold_mask(ids, cold_share)
    digest = hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass"))
    weights = () if sequences.weights is None else (sequences.weights,)
    for array in (sequences.offsets, sequences.rows, cold, *weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    split = Split(sequences, cold, leave_one_out(without_items(sequences, cold)), digest.hexdigest()[:16])
    return _with_impressions(split, dataset, impressions) if impressions else split


def _with_impressions(split: Split, dataset: Dataset, most: int) -> Split:
    """The split with `Sequences.shown`: of training histories by training events alone, of all histories by all."""
    seen, ids, events = read_impressions(dataset), dataset.item_ids(), in_order(dataset.interactions)
    numbered = dataclasses.replace(split.sequences, shown=np.arange(events.height)[:, None])
    numbers = leave_one_out(without_items(numbered, split.cold)).train.shown
    learned = events if numbers is None else events[numbers[:, 0]]
    train = dataclasses.replace(split.parts.train, shown=shown_before(learned, seen, ids, most))
    return dataclasses.replace(
        split,
        sequences=dataclasses.replace(split.sequences, shown=shown_before(events, seen, ids, most)),
        parts=dataclasses.replace(split.parts, train=train),
    )


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
    refitted: Callable[[int, int], None] = lambda _done, _all: None,
    exported: bool = False,
) -> dict[str, Any]:
    """Fit slots and sequence encoder, fit them again on every event, and write everything that the index needs.

    Both fits come first, so that a killed run repeats neither. Without held-out events, with cold items or with
    ``refit = false`` there is no second fit, and what is measured serves.

    Args:
        dataset: catalogue and interactions.
        embeddings: modality vectors of the same catalogue.
        config: how to fit.
        directory: ``RUN/encoder``; a killed run resumes after its last complete epoch.
        report: called after every epoch with its line of the log.
        step_done: called after every step of either fit with the completed share of the epoch.
        pictured: called with the number of thumbnails made at the end, and of how many.
        listed: called while the item-to-item lists are made and weighed, and while imputed vectors are calibrated.
        refitted: called with the number of epochs of the refit done and of all.
        exported: the interactions are more than the data set's own, see `COUNTED_ON_EXPORT`.

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
    config = config.for_catalogue(len(dataset))
    split = split_dataset(dataset, config.cold_items, impressions=config.impression_negatives)
    _check_learnable(split.parts.train, embeddings, config)
    lists = _made_lists(dataset, embeddings, split, config, listed)
    model, log, again = _fit_both(directory, embeddings, split, lists, config, report, step_done, refitted)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FIT_FILE).unlink(missing_ok=True)  # written last, to mark a complete directory
    record = _write(directory, dataset, embeddings, model, again, split, lists, config, pictured, listed)
    record |= {COUNTED_ON_EXPORT: exported} | _account(log, split) | {"seconds": round(time.monotonic() - started, 1)}
    replace_text(directory / FIT_FILE, json.dumps(record, indent=2) + "\n")
    for name in (CHECKPOINTS, REFIT_CHECKPOINTS):
        shutil.rmtree(directory / name, ignore_errors=True)
    return record


def _fit_both(
    directory: Path,
    embeddings: Embeddings,
    split: Split,
    lists: CandidateLists | None,
    config: EncoderConfig,
    report: Report,
    step_done: Callable[[float], None],
    refitted: Callable[[int, int], None],
) -> tuple[SlotModel, FitLog, RefittedModel | None]:
    """The measured model with its log, and the refitted one; None where there is no refit."""
    train, validation = split.parts.train, split.parts.validation
    torch.manual_seed(config.seed)
    model = SlotModel(embeddings, popularity(train, len(embeddings)), config)
    size = config.batch_size or automatic_batch_size(train, config.max_history)
    # The size itself, as another version may choose another one for 0.
    fitted_by = _fitted_by(config) | {"batch_size": size}
    mark = f"{split.fingerprint} {_digest(fitted_by)} {_digest(embeddings.model)}"
    for histories in (train, split.sequences):
        if histories.shown is not None:
            mark += f" {hashlib.sha256(histories.shown.tobytes()).hexdigest()[:16]}"
    checkpoints = directory / CHECKPOINTS
    log = fit(
        model,
        train,
        validation,
        config,
        checkpoints,
        fingerprint=mark,
        served=None if lists is None else ServedValidation(lists, config),
        report=report,
        step_done=step_done,
    )
    if not config.refit or config.cold_items or not len(validation):
        return model, log, None
    again = refit(
        model,
        log.best_epoch + 1,
        embeddings,
        split.sequences,
        config.model_copy(update={"batch_size": size}),
        directory / REFIT_CHECKPOINTS,
        fingerprint=mark,
        refitted=refitted,
        step_done=step_done,
    )
    return model, log, again


def _write(
    directory: Path,
    dataset: Dataset,
    embeddings: Embeddings,
    model: SlotModel,
    again: RefittedModel | None,
    split: Split,
    candidates: CandidateLists | None,
    config: EncoderConfig,
    pictured: Callable[[int, int], None],
    listed: Progress,
) -> dict[str, Any]:
    """Write everything of the measured model, then what serves; returns what ``fit.json`` says of it."""
    made = make_thumbnails(dataset, directory / THUMBNAILS_FILE, progress=pictured)
    ranker = SlotRanker(stored_vectors(model, config.precision), torch_encoder(model), config.max_history)
    lists = fit_lists(directory, ranker, candidates, config, progress=listed)
    imputation, imputed = _imputation(directory, embeddings, model, split, config, listed, weighed=bool(lists))
    counts = popularity(split.parts.train, len(embeddings))
    thumbnails = made.thumbnails if again is None else None  # only what serves needs them
    record: dict[str, Any] = {"format": _FORMAT_VERSION, "config": config.model_dump(mode="json")}
    if dataset.rules is not None:
        record |= {"weight_by": dataset.rules.weight_by, "left_out": dict(dataset.left_out)}
        record["unknown_types"] = dataset.most_frequent_unknown_types()
    if dataset.event_types is not None:
        record["event_types"] = dataset.event_types.model_dump(mode="json")
    record |= write_encoder(directory, dataset, embeddings, model, counts, config, thumbnails, imputation)
    record |= {"thumbnails": {"made": made.made, "unreadable": made.unreadable}, "lists": lists, "imputation": imputed}
    (directory / CONTENTS_FILE).unlink(missing_ok=True)
    if embeddings.contents is not None:
        embeddings.contents.save(directory / CONTENTS_FILE)
    held_out_probes(split.parts, config.max_history).save(directory / PROBES_FILE)
    shutil.rmtree(directory / SERVED_DIRECTORY, ignore_errors=True)
    if again is not None:
        record["refit"] = write_refit(
            directory, again, dataset, embeddings, config, made.thumbnails, record, imputation, progress=listed
        )
        record["model"]["encoder"]["served"] = record["refit"]["model"]["encoder"]["hash"]
    (directory / THUMBNAILS_FILE).unlink()  # the table has a copy
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
    slots = slot_vectors(embeddings, model, model.final_projection())
    counts = popularity(split.parts.train, len(embeddings))
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


def _made_lists(
    dataset: Dataset, embeddings: Embeddings, split: Split, config: EncoderConfig, listed: Progress
) -> CandidateLists | None:
    """Item-to-item lists; an item can be found if it has a slot, as :class:`SlotModel` gives them."""
    layout, counts = slot_layout(config, embeddings), popularity(split.parts.train, len(embeddings))
    findable = (counts >= config.min_events) & (BEHAVIOUR in layout.names)
    for name in layout.names:
        if name != BEHAVIOUR:
            findable |= np.asarray(embeddings.vectors[name].any(axis=1))
    return make_lists(layout, dataset.texts(), embeddings.vectors, findable, split.parts, config, progress=listed)


def _fitted_by(config: EncoderConfig) -> dict[str, Any]:
    """What the weights of the encoder and the best epoch depend on: a checkpoint fits any imputation and refit."""
    return config.model_dump(mode="json", exclude={"impute_behaviour", "refit"})


def _account(log: FitLog, split: Split) -> dict[str, Any]:
    """Figures of the data and of the fit."""
    counts = popularity(split.parts.train, len(split.cold))
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
