"""Fits the encoder that serves, on every event, by the recipe of the measured one."""

# No figure is ever taken of it: the events that could measure it are those that it was fitted on. So weights, direction
# of the lists, lengths of imputed vectors and the number of epochs are those that validation chose for the measured
# encoder; only what is counted or fitted on events is made again.

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index.items.thumbnails import Thumbnails
from index.lists.item_lists import ItemLists
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import Sequences, Targets, popularity
from training.embedding.store import Embeddings
from training.encoder.encoder_files import IMPUTATION_FILE, SERVED_DIRECTORY, write_encoder
from training.encoder.fit import FitLog, fit
from training.encoder.imputation import BehaviourImputation, ImputationFit
from training.encoder.slot_model import SlotModel
from training.lists.fit_lists import LISTS_DIRECTORY, Progress, recounted_lists


@dataclass(frozen=True)
class RefittedModel:
    """A model that was fitted on every event.

    Attributes:
        model: with its final weights.
        histories: that it was fitted on.
        counts: (n,) int64 events per item.
        log: of the fit.
    """

    model: SlotModel
    histories: Sequences
    counts: NDArray[np.int64]
    log: FitLog


def refit(
    measured: SlotModel,
    epochs: int,
    embeddings: Embeddings,
    histories: Sequences,
    config: EncoderConfig,
    directory: Path,
    *,
    fingerprint: str,
    refitted: Callable[[int, int], None] = lambda _done, _all: None,
    step_done: Callable[[float], None] = lambda _share: None,
) -> RefittedModel:
    """Fit a model on every event for the number of epochs that validation chose.

    Seed and configuration are those of the measured fit, and so is the learning rate in every epoch: it falls as if
    all configured epochs were to follow.

    Args:
        measured: the measured model, whose fixed features are shared.
        epochs: its best epoch, counted from 1.
        embeddings: of the catalogue.
        histories: every event.
        config: of the measured fit.
        directory: of the checkpoints; those of the same fingerprint are resumed.
        fingerprint: of the measured fit.
        refitted: called at the start and after every epoch with the number of epochs done and of all.
        step_done: called after every step with the completed share of the epoch.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    counts = popularity(histories, len(embeddings))
    torch.manual_seed(config.seed)
    model = SlotModel(embeddings, counts, config, like=measured)
    refitted(0, epochs)
    log = fit(
        model,
        histories,
        Targets([], np.zeros(0, dtype=np.int64), []),
        config,
        directory,
        fingerprint=f"{fingerprint} refit {epochs}",
        stop_after=epochs,
        report=lambda line: refitted(int(line["epoch"]) + 1, epochs),
        step_done=step_done,
    )
    return RefittedModel(model, histories, counts, log)


def write_refit(
    directory: Path,
    refitted: RefittedModel,
    dataset: Dataset,
    embeddings: Embeddings,
    config: EncoderConfig,
    thumbnails: Thumbnails | None,
    record: Mapping[str, Any],
    imputation: BehaviourImputation | None,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> dict[str, Any]:
    """Write what serves into ``RUN/encoder/served``: table, encoder, lists, projection and imputation.

    Args:
        directory: ``RUN/encoder``, with the lists of the measured encoder.
        refitted: the model.
        dataset: catalogue.
        embeddings: of the same catalogue.
        config: how both were fitted.
        thumbnails: of the same catalogue; None for none.
        record: what ``fit.json`` says of the measured encoder.
        imputation: of the measured encoder, whose lengths are kept; None for none.
        progress: called while the lists are counted.

    Returns:
        ``fit.json``'s section ``refit``.

    Raises:
        ExportError: ONNX Runtime and PyTorch differ.
    """
    served, model = directory / SERVED_DIRECTORY, refitted.model
    shutil.rmtree(served, ignore_errors=True)
    served.mkdir(parents=True)
    if record["lists"]:
        lists = ItemLists.load(directory / LISTS_DIRECTORY, len(embeddings))
        lists = recounted_lists(lists, record["lists"], refitted.histories, config, progress=progress)
        lists.save(served / LISTS_DIRECTORY)
    if imputation is not None:
        imputation = _imputation(imputation, refitted, embeddings, config)
        imputation.save(served / IMPUTATION_FILE)
    measured = str(record["model"]["encoder"]["hash"])
    written = write_encoder(
        served, dataset, embeddings, model, refitted.counts, config, thumbnails, imputation, measured=measured
    )
    return {
        "model": written["model"],
        "parity": written["parity"],
        "events": len(refitted.histories.rows),
        "items_with_events": int((refitted.counts > 0).sum()),
        "epochs": len(refitted.log.epochs),
        "log": refitted.log.epochs,
    }


def _imputation(
    measured: BehaviourImputation, refitted: RefittedModel, embeddings: Embeddings, config: EncoderConfig
) -> BehaviourImputation:
    """The map fitted on the refitted behaviour vectors, with the lengths that were calibrated on validation."""
    model = refitted.model
    vectors, behaviour = embeddings.vectors, model.behaviour_slots()
    fitted = ImputationFit(model.layout, vectors, behaviour, refitted.counts, config.min_events).fit()
    return dataclasses.replace(
        measured,
        bases=fitted.bases,
        landmarks=fitted.landmarks,
        coefficients=fitted.coefficients,
        offset=fitted.offset,
    )
