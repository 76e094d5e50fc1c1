"""Reads from a run what `vlm2rec index build` takes into a bundle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.bundle.event_types import EventTypes
    from index.items.eval_queries import EvaluationQueries
    from index.items.item_table import ItemTable
    from index.lists.item_lists import ItemLists

_SERVED = "served"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class ServedRun:
    """What a run serves: of the refitted encoder, where there is one.

    Attributes:
        table: the items.
        encoder: path of ``encoder.onnx``.
        queries: held-out histories.
        lists: item-to-item lists; None if the run has none.
        exclude_seen: whether the run was fitted for answers without seen items.
        event_types: what the types of events meant in training; None: training read no types.
    """

    table: "ItemTable"
    encoder: Path
    queries: "EvaluationQueries"
    lists: "ItemLists | None"
    exclude_seen: bool
    event_types: "EventTypes | None"

    @classmethod
    def load(cls, run: Path) -> "ServedRun":
        """Read ``RUN/encoder``; the files of a refit must be those that ``fit.json`` names.

        Raises:
            IndexSpecError: there is no encoder, ``fit.json`` cannot be read or has another form, a fit was interrupted,
                or the encoders are not the pair that was fitted.
            ItemTableError, ItemListError, BundleInvalid: a file is missing or damaged.
        """
        from index.errors import IndexSpecError
        from index.items.eval_queries import EvaluationQueries
        from index.items.item_table import ItemTable
        from index.lists.item_lists import ItemLists

        directory = run / "encoder"
        if not directory.is_dir():
            raise IndexSpecError(f"{run}: holds no fitted encoder; run `vlm2rec fit` or `vlm2rec fit-encoder` first")
        record = _fit_record(directory)
        served = directory / _SERVED if record.get("refit") else directory
        table = ItemTable.load(served / "table")
        _check_pair(directory, record, table)
        lists = ItemLists.load(served / "lists", len(table), check=False) if record.get("lists") else None
        queries = EvaluationQueries.load(directory / "probes.npz")
        path = directory / "fit.json"
        excludes, types = _excludes_seen(path, record), _event_types(path, record)
        return cls(table, served / "encoder.onnx", queries, lists, excludes, types)


def _check_pair(directory: Path, record: Mapping[str, Any], table: "ItemTable") -> None:
    """Check that what serves belongs to the encoder that was measured.

    Raises:
        IndexSpecError: ``fit.json``, the table or the measured encoder are of another fit.
    """
    from index.bundle.encoder_pair import EncoderPair
    from index.errors import IndexSpecError

    pair = EncoderPair.of_items(table.model)
    model = record.get("model")
    encoder = model.get("encoder") if isinstance(model, Mapping) else None
    named = encoder.get("served") if isinstance(encoder, Mapping) else None
    if named != (None if pair is None else pair.served):
        raise IndexSpecError(
            f"{directory / 'fit.json'}: names {named!r} as the encoder that serves, the item table is of "
            f"{None if pair is None else pair.served!r}; run `vlm2rec fit-encoder` again"
        )
    if pair is not None:
        pair.check_measured(directory / "encoder.onnx")


def _fit_record(directory: Path) -> dict[str, Any]:
    """The content of ``fit.json``; empty if there is no such file.

    Raises:
        IndexSpecError: the file cannot be read, or a fit was interrupted before it wrote the file.
    """
    from index.errors import IndexSpecError

    path = directory / "fit.json"
    if not path.is_file():
        if (directory / _CHECKPOINTS).is_dir():
            raise IndexSpecError(
                f"{directory}: the fit is not finished; start the same `vlm2rec fit` or `fit-encoder` again"
            )
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IndexSpecError(f"{path}: cannot be read ({error}); run `vlm2rec fit-encoder` again") from error
    if not isinstance(record, dict):
        raise IndexSpecError(f"{path}: must be a JSON object, got {type(record).__name__}; fit the encoder again")
    return record


def _excludes_seen(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether the run was fitted for answers without seen items; true if that is not recorded.

    Raises:
        IndexSpecError: the record has another form.
    """
    from index.errors import IndexSpecError

    config = record.get("config", {})
    found = config.get("exclude_seen", True) if isinstance(config, dict) else None
    if not isinstance(found, bool):
        raise IndexSpecError(f"{path}: exclude_seen must be true or false, got {found!r}; fit the encoder again")
    return found


def _event_types(path: Path, record: Mapping[str, Any]) -> "EventTypes | None":
    """The table of types that training used; None if it used none.

    Raises:
        IndexSpecError: the record has another form.
    """
    from pydantic import ValidationError

    from index.bundle.event_types import EventTypes
    from index.errors import IndexSpecError

    if "event_types" not in record:
        return None
    try:
        return EventTypes.model_validate(record["event_types"])
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise IndexSpecError(f"{path}: event_types cannot be read ({reason}); fit the encoder again") from error
