"""Reads the fitted encoder of a run, for evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from index.errors import IndexingError
from index.items.item_table import ItemTable
from index.lists.item_lists import ItemLists, ListWeights
from index.search.encoder import OnnxSequenceEncoder
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import Sequences
from training.encoder.encoder_files import ENCODER_FILE, FIT_FILE, TABLE_DIRECTORY, served_directory
from training.encoder.job import Split, split_dataset
from training.errors import EvaluationError
from training.lists.fit_lists import LISTS_DIRECTORY, recorded_weights


@dataclass(frozen=True)
class FittedRun:
    """A run directory's encoder, loaded for evaluation.

    Attributes:
        table: stored vectors.
        encoder: under ONNX Runtime.
        record: the content of ``fit.json``.
        lists: item-to-item lists with the weights that are served; None where the run has none.
        list_weights_alone: weights chosen for the lists without the slots.
        refitted: whether it was fitted on every event, held-out ones among them.
    """

    table: ItemTable
    encoder: OnnxSequenceEncoder
    record: dict[str, Any]
    lists: ItemLists | None = None
    list_weights_alone: ListWeights | None = None
    refitted: bool = False

    @classmethod
    def load(cls, directory: Path, *, threads: int = 1, served: bool = False) -> "FittedRun":
        """Read ``RUN/encoder``.

        Args:
            directory: ``RUN/encoder``.
            threads: of the encoder.
            served: load the encoder that serves, refitted on every event, instead of the one for figures of held-out
                events.

        Raises:
            EvaluationError: nothing was fitted there, or a file is unreadable.
        """
        if not (directory / FIT_FILE).is_file():
            raise EvaluationError(f"{directory}: no fitted encoder here; run `vlm2rec fit-encoder` first")
        try:
            record = dict(json.loads((directory / FIT_FILE).read_text(encoding="utf-8")))
            source = served_directory(directory, record) if served else directory
            refitted = source != directory
            table = ItemTable.load(source / TABLE_DIRECTORY)
            encoder = OnnxSequenceEncoder(source / ENCODER_FILE, threads=threads)
            if not record.get("lists"):
                return cls(table, encoder, record, refitted=refitted)
            lists = ItemLists.load(source / LISTS_DIRECTORY, len(table))
            return cls(table, encoder, record, lists, recorded_weights(record["lists"]["alone"]), refitted)
        except (IndexingError, OSError, ValueError, TypeError, KeyError) as error:
            raise EvaluationError(
                f"{directory}: the fitted encoder cannot be read ({error}); run `vlm2rec fit-encoder` again"
            ) from error

    @property
    def recipe(self) -> EncoderConfig:
        """How the run was fitted.

        Raises:
            EvaluationError: ``fit.json`` is of another version.
        """
        try:
            return EncoderConfig.model_validate(self.record["config"])
        except (KeyError, ValidationError) as error:
            raise EvaluationError(
                f"{FIT_FILE}: its configuration is of another version ({error}); run `vlm2rec fit-encoder` again"
            ) from error

    @property
    def exclude_seen(self) -> bool:
        """Whether the service excludes a user's earlier items, unless a request says otherwise."""
        return bool(self.record.get("config", {}).get("exclude_seen", True))

    @property
    def list_weights(self) -> dict[str, float]:
        """Weight of every list that is served, by name."""
        return {} if self.lists is None else dict(self.lists.used().weights.weights)

    def learned_from(self, split: Split) -> Sequences:
        """The histories that the encoder was fitted on.

        Args:
            split: as :meth:`split` gives it.
        """
        return split.sequences if self.refitted else split.parts.train

    def split(self, dataset: Dataset) -> Split:
        """Split the data set as it was for fitting.

        Raises:
            EvaluationError: the run was fitted on other items or interactions.
        """
        try:
            share = float(self.record["config"]["cold_items"])
            fingerprint = str(self.record["data"]["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{FIT_FILE} lacks {error}; run `vlm2rec fit-encoder` again") from error
        split = split_dataset(dataset, share)
        if split.fingerprint != fingerprint:
            raise EvaluationError(
                "the encoder was fitted on other items or interactions than these; give `evaluate` the same data set "
                "and --interactions as `fit-encoder`"
            )
        return split
