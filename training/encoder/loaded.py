"""Loads a fitted encoder from ``RUN/encoder`` for re-indexing a growing catalogue."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from index.errors import IndexingError
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.lists.item_lists import ItemLists
from training.backbones.identity import KIND, other_space
from training.backbones.trained_model import EMBEDDINGS_DIRECTORY
from training.config.encoder_config import EncoderConfig
from training.embedding.content_hashes import ContentHashes
from training.embedding.store import Embeddings
from training.encoder.imputation import BehaviourImputation
from training.encoder.job import (
    CONTENTS_FILE,
    ENCODER_DIRECTORY,
    ENCODER_FILE,
    FIT_FILE,
    IMPUTATION_FILE,
    PROBES_FILE,
    PROJECTION_FILE,
    TABLE_DIRECTORY,
)
from training.errors import EmbeddingsError, ReindexError
from training.lists.fit_lists import LISTS_DIRECTORY

_MARKED = (FIT_FILE, ENCODER_FILE, PROJECTION_FILE, PROBES_FILE)


@dataclass(frozen=True)
class FittedEncoder:
    """An encoder with the items that it was fitted on.

    Attributes:
        directory: ``RUN/encoder``.
        config: how it was fitted.
        table: the items at the time of the fit.
        contents: hashes of what these items were made of; None if not recorded.
        probes: held-out histories as rows of the table.
        lists: item-to-item lists that are used; None if there are none.
        mark: 16 hex digits over the files; it changes with every fit.
    """

    directory: Path
    config: EncoderConfig
    table: ItemTable
    contents: ContentHashes | None
    probes: EvaluationQueries
    lists: ItemLists | None
    mark: str

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
            table, probes = ItemTable.load(directory / TABLE_DIRECTORY), EvaluationQueries.load(directory / PROBES_FILE)
            probes.check_rows(len(table))
            lists = used_lists(directory, record, table)
            mark = hashlib.sha256()
            imputes = (IMPUTATION_FILE,) if (directory / IMPUTATION_FILE).is_file() else ()
            for name in (*_MARKED, *imputes):
                mark.update(hashlib.sha256((directory / name).read_bytes()).digest())
        except (IndexingError, ValidationError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ReindexError(
                f"{directory}: the fitted encoder cannot be read ({error}); run `vlm2rec fit-encoder` again"
            ) from error
        _refuse_without_vlm(run, table.model.get("embeddings"))
        return cls(directory, config, table, _contents(directory, table), probes, lists, mark.hexdigest()[:16])

    @property
    def encoder(self) -> Path:
        """``encoder.onnx``."""
        return self.directory / ENCODER_FILE

    @property
    def projection(self) -> Path:
        """``projection.safetensors``."""
        return self.directory / PROJECTION_FILE

    @property
    def imputation(self) -> BehaviourImputation | None:
        """``imputation.safetensors``; None for an encoder without.

        Raises:
            EmbeddingsError: the file cannot be read.
        """
        path = self.directory / IMPUTATION_FILE
        return BehaviourImputation.load(path) if path.is_file() else None

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
        directory: ``RUN/encoder``.
        record: the content of ``fit.json``; earlier versions recorded no lists.
        table: the items.

    Raises:
        ItemListError, BundleInvalid: the lists are missing or damaged.
    """
    if not record.get("lists"):
        return None
    lists = ItemLists.load(directory / LISTS_DIRECTORY, len(table), check=False).used().for_layout(table.layout)
    return lists if lists.lists else None


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
