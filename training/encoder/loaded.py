"""Loads a fitted encoder from ``RUN/encoder`` for re-indexing a growing catalogue."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from index.bundle.encoder_pair import EncoderPair
from index.errors import IndexingError, IndexSpecError
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.lists.item_lists import ItemLists
from training.backbones.identity import KIND, other_space
from training.backbones.trained_model import EMBEDDINGS_DIRECTORY
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import popularity
from training.embedding.content_hashes import ContentHashes
from training.embedding.store import Embeddings
from training.encoder.encoder_files import (
    CONTENTS_FILE,
    COUNTED_ON_EXPORT,
    ENCODER_DIRECTORY,
    ENCODER_FILE,
    FIT_FILE,
    IMPUTATION_FILE,
    PROBES_FILE,
    PROJECTION_FILE,
    TABLE_DIRECTORY,
    served_directory,
)
from training.encoder.imputation import BehaviourImputation
from training.encoder.job import split_dataset
from training.errors import EmbeddingsError, ReindexError
from training.lists.fit_lists import LISTS_DIRECTORY


@dataclass(frozen=True)
class FittedEncoder:
    """The encoder that serves, with the items that it was fitted on.

    Attributes:
        directory: ``RUN/encoder``.
        served: the directory of what serves: the same, or its part with the refitted encoder.
        config: how it was fitted.
        table: the items at the time of the fit.
        contents: hashes of what these items were made of; None if not recorded.
        probes: held-out histories as rows of the table.
        lists: item-to-item lists that are used; None if there are none.
        mark: 16 hex digits over the files; it changes with every fit.
        refit: the encoders that serve and that were measured; None if they are the same.
        counted_on_export: the table counts exported events too, which a data set alone does not have.
    """

    directory: Path
    served: Path
    config: EncoderConfig
    table: ItemTable
    contents: ContentHashes | None
    probes: EvaluationQueries
    lists: ItemLists | None
    mark: str
    refit: EncoderPair | None
    counted_on_export: bool = False

    @classmethod
    def load(cls, run: Path) -> "FittedEncoder":
        """Read ``RUN/encoder``.

        Raises:
            ReindexError: nothing was fitted there, it was fitted without a VLM, or a file is unreadable.
        """
        directory = run / ENCODER_DIRECTORY
        if not (directory / FIT_FILE).is_file():
            raise ReindexError(f"{directory}: no fitted encoder here; run `vlm2rec fit-encoder` first")
        try:
            record = json.loads((directory / FIT_FILE).read_bytes())
            config = EncoderConfig.model_validate(record["config"])
            served = served_directory(directory, record)
            table, probes = ItemTable.load(served / TABLE_DIRECTORY), EvaluationQueries.load(directory / PROBES_FILE)
            probes.check_rows(len(table))
            lists = used_lists(served, record, table)
            refit = None if served == directory else _checked_pair(directory, served, table)
            mark, exported = _mark(directory, served), bool(record.get(COUNTED_ON_EXPORT))
        except (IndexingError, ValidationError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ReindexError(
                f"{directory}: the fitted encoder cannot be read ({error}); run `vlm2rec fit-encoder` again"
            ) from error
        _refuse_without_vlm(run, table.model.get("embeddings"))
        contents = _contents(directory, table)
        return cls(directory, served, config, table, contents, probes, lists, mark, refit, exported)

    @property
    def encoder(self) -> Path:
        """``encoder.onnx``."""
        return self.served / ENCODER_FILE

    @property
    def projection(self) -> Path:
        """``projection.safetensors``."""
        return self.served / PROJECTION_FILE

    @property
    def imputation(self) -> BehaviourImputation | None:
        """``imputation.safetensors``; None for an encoder without.

        Raises:
            EmbeddingsError: the file cannot be read.
        """
        path = self.served / IMPUTATION_FILE
        return BehaviourImputation.load(path) if path.is_file() else None

    @property
    def hashes(self) -> dict[str, str | None]:
        """Hash of the encoder for the provenance of a table and, after a refit, of the measured one."""
        if self.refit is not None:
            return {"hash": self.refit.served, "measured": self.refit.measured}
        return {"hash": self.table.model.get("encoder", {}).get("hash")}

    def counts(self, dataset: Dataset) -> NDArray[np.int64]:
        """(n,) int64 events per item that popularity counts: all of them after a refit, else those of training.

        Where the table counts exported events too, its items keep their numbers until the next fit, or until the data
        set has more: an item without events gets its first ones from either.

        Args:
            dataset: a current one.
        """
        split = split_dataset(dataset, self.config.cold_items)
        found = popularity(split.parts.train if self.refit is None else split.sequences, len(dataset))
        if not self.counted_on_export:
            return found
        rows = (self.table.ids.row(item_id) for item_id in dataset.item_ids())
        places = np.fromiter((-1 if row is None else row for row in rows), np.int64, len(dataset))
        return np.where(places >= 0, np.maximum(self.table.popularity[np.maximum(places, 0)], found), found)

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Check that a model is the one whose vectors the projection was fitted on.

        Args:
            model: provenance, see :func:`training.backbones.identity.provenance`.

        Raises:
            ReindexError: its vectors lie in another space.
        """
        fitted_on = dict(self.table.model["embeddings"])
        changed = other_space(fitted_on, dict(model))
        if changed:
            parts = (f"{name} {fitted_on.get(name)!r}, now {model.get(name)!r}" for name in changed)
            raise ReindexError(
                f"{self.directory}: the encoder was fitted on vectors of another model ({', '.join(parts)}), so new "
                "vectors do not fit it; run `vlm2rec embed` and `vlm2rec fit-encoder`, then reindex"
            )


def used_lists(directory: Path, record: Mapping[str, Any], table: ItemTable) -> ItemLists | None:
    """The item-to-item lists of a run that add to a score; None if there are none.

    Args:
        directory: of what serves.
        record: the content of ``fit.json``; earlier versions recorded no lists.
        table: the items.

    Raises:
        ItemListError, BundleInvalid: the lists are missing or damaged.
    """
    if not record.get("lists"):
        return None
    lists = ItemLists.load(directory / LISTS_DIRECTORY, len(table), check=False).used().for_layout(table.layout)
    return lists if lists.lists else None


def _checked_pair(directory: Path, served: Path, table: ItemTable) -> EncoderPair:
    """The pair that a refitted table names.

    Raises:
        IndexSpecError: one of the two encoders is another one.
    """
    refit = EncoderPair.of_items(table.model)
    if refit is None:
        raise IndexSpecError(f"{served / TABLE_DIRECTORY}: it does not name the measured encoder")
    refit.check_served(served / ENCODER_FILE)
    refit.check_measured(directory / ENCODER_FILE)
    return refit


def _mark(directory: Path, served: Path) -> str:
    imputes = (IMPUTATION_FILE,) if (served / IMPUTATION_FILE).is_file() else ()
    files = [directory / FIT_FILE, served / ENCODER_FILE, served / PROJECTION_FILE, directory / PROBES_FILE]
    mark = hashlib.sha256()
    for path in (*files, *(served / name for name in imputes)):
        mark.update(hashlib.sha256(path.read_bytes()).digest())
    return mark.hexdigest()[:16]


def _contents(directory: Path, table: ItemTable) -> ContentHashes | None:
    try:
        found = ContentHashes.load(directory / CONTENTS_FILE)
    except EmbeddingsError:
        return None
    fits = len(found) == len(table) and all(table.ids.id(row) == name for row, name in enumerate(found.item_ids()))
    return found if fits else None


def _refuse_without_vlm(run: Path, fitted_on: object) -> None:
    """Refuse features of ``--no-vlm``: they depend on the whole catalogue, so one item cannot be embedded alone.

    Raises:
        ReindexError: the encoder was fitted on such features, or they lie in the run.
    """
    kinds = [fitted_on.get("kind") if isinstance(fitted_on, dict) else None]
    with contextlib.suppress(EmbeddingsError):  # unreadable embeddings are made again
        kinds.append(Embeddings.load(run / EMBEDDINGS_DIRECTORY, check=False).model.get("kind"))
    other = [kind for kind in kinds if kind != KIND]
    if other:
        raise ReindexError(
            f"{run}: made with features of kind {other[0]!r} instead of a vision-language model. Those are statistics "
            "of the whole catalogue, so a new item cannot be embedded alone; run `vlm2rec embed --no-vlm`, "
            "`fit-encoder` and `index build --publish` over all of it, or train a model with `vlm2rec train`"
        )
