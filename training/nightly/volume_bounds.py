"""Bounds the losses of a data set since the current bundle, so that the nightly job refuses a damaged export.

A truncated export, a missing mount and a renamed column each give a valid data set, and publishing it would remove
items from the shop.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from index.bound_check import BoundCheck
from index.bundle.manifest import ITEMS_FILE, Manifest
from index.bundle.registries import AnyRegistry
from index.errors import GateRefused, IndexingError
from index.items.item_ids import ItemIds
from index.items.item_table import ITEM_ID, MISSING_FILE, ItemTable
from index.items.items_file import ItemsFile
from index.items.modality_status import ModalityStatus
from index.items.slots import IMAGE, TEXT, SlotLayout
from training.data.dataset import IMAGE as IMAGE_NAME
from training.data.dataset import Dataset
from training.embedding.content_hashes import NOT_READ, PICTURE_HASH, TEXT_HASH, ContentHashes
from training.errors import ConfigError

VOLUME = "volume"
"""Key of the size of the data set in an item table's provenance."""
EVENTS = "events"
_NONE = "none"


@dataclass(frozen=True)
class VolumeBounds:
    """Largest shares, 0 … 1, that may be lost since the current bundle; None sets no bound.

    Attributes:
        deleted: items that are no longer in the catalogue.
        lost_events: interactions.
        lost_texts: remaining items with a text that have none now.
        lost_pictures: remaining items with a picture that name none now.
        missing_files: remaining items with a picture whose file is missing now.
        unreadable_files: remaining items with a picture whose file cannot be used now.

    Raises:
        ConfigError: a number is out of range.
    """

    deleted: float | None = 0.2
    lost_events: float | None = 0.2
    lost_texts: float | None = 0.2
    lost_pictures: float | None = 0.2
    missing_files: float | None = 0.02
    unreadable_files: float | None = 0.5

    def __post_init__(self) -> None:
        for part in fields(self):
            limit = getattr(self, part.name)
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
                raise ConfigError(f"bound {part.name} must be a number, 0 … 1, or {_NONE!r}, got {limit!r}")

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all bounds."""
        return frozenset(part.name for part in fields(cls))

    @classmethod
    def read(cls, file: Path | None, options: Sequence[str]) -> "VolumeBounds":
        """Bounds from a TOML file and from options, which take precedence; other names are ignored.

        Args:
            file: TOML; None for the defaults.
            options: ``name=value`` each.

        Raises:
            ConfigError: the file cannot be read, or a value is wrong.
        """
        raw: dict[str, Any] = {}
        if file is not None:
            try:
                raw = tomllib.loads(file.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError, RecursionError) as error:
                raise ConfigError(f"{file}: not usable as bounds ({error}); see docs/bundles.md") from error
        values = {name: value for name, value in raw.items() if name in cls.names()}
        for option in options:
            name, _, text = (part.strip() for part in option.partition("="))
            if name in cls.names():
                values[name] = _value(name, text)
        return cls(**{name: None if value == _NONE else value for name, value in values.items()})


@dataclass(frozen=True)
class Predecessor:
    """The earlier state that a data set is compared with.

    Attributes:
        name: the bundle, for messages.
        ids: its items.
        texts: (n,) bool, items with a text vector.
        pictures: (n,) bool, items with a picture vector.
        events: number of its interactions; None if not recorded.
        counted: training events of its items, always recorded.
    """

    name: str
    ids: ItemIds
    texts: NDArray[np.bool_]
    pictures: NDArray[np.bool_]
    events: int | None
    counted: int

    @classmethod
    def find(cls, registry: AnyRegistry, table: ItemTable, number: int) -> "Predecessor | None":
        """The current bundle, or the newest item table of the run if the bundle is damaged.

        Args:
            registry: with the bundle.
            table: the newest item table of the run.
            number: of that table; 0 if no job has published it.

        Returns:
            None if nothing is published yet.

        Raises:
            RegistryError: the registry cannot be read.
        """
        current = registry.current()
        if current is None:
            return None
        try:
            path = registry.path(current)
            manifest = Manifest.read(path)
            rows = ItemsFile.load(path / ITEMS_FILE)
            missing = np.load(path / MISSING_FILE, allow_pickle=False)
            name = f"the current bundle {current}"
            return cls._of(name, manifest.layout, rows.ids, missing, rows.popularity, manifest.model)
        except (IndexingError, OSError, ValueError, EOFError):
            pass  # the job reports the damage elsewhere
        name = "the run's last item table" if number else "the fitted item table"
        return cls._of(name, table.layout, table.ids, table.missing_record(), table.popularity, table.model)

    @classmethod
    def _of(
        cls,
        name: str,
        layout: SlotLayout,
        ids: ItemIds,
        missing: NDArray[np.uint8],
        popularity: NDArray[np.int64],
        model: Mapping[str, Any],
    ) -> "Predecessor":
        def present(slot: str) -> NDArray[np.bool_]:
            if slot not in layout.names:
                return np.zeros(len(ids), dtype=np.bool_)
            return np.asarray(missing[:, layout.names.index(slot)] == ModalityStatus.PRESENT)

        volume = model.get(VOLUME)
        events = volume.get(EVENTS) if isinstance(volume, dict) else None
        recorded = events if isinstance(events, int) else None
        return cls(name, ids, present(TEXT), present(IMAGE), recorded, int(popularity.sum()))


@dataclass(frozen=True)
class Loss:
    """One kind of loss.

    Attributes:
        check: the lost share with its bound.
        text: description for messages.
    """

    check: BoundCheck
    text: str

    def __str__(self) -> str:
        share = 0.0 if self.check.value is None else self.check.value
        return f"{self.text} ({share:.1%}, bound {self.check.bound}: at most {self.check.limit:.4g})"


def losses_before(
    before: Predecessor, contents: ContentHashes, events: int, counted: int, bounds: VolumeBounds
) -> tuple[Loss, ...]:
    """Losses of a data set since the current bundle that are known before embedding.

    Args:
        before: the current bundle.
        contents: hashes of the items of the data set.
        events: number of its interactions.
        counted: number of its training events.
        bounds: largest permitted losses.
    """
    rows = _rows(before, contents)
    here = rows >= 0
    gone = len(before.ids) - int(here.sum())
    found = [_loss(bounds, "deleted", gone, len(before.ids), f"items of {before.name} are not in the catalogue")]
    then, now = (before.counted, counted) if before.events is None else (before.events, events)
    said = f"interactions that {before.name} was built from are gone"
    found.append(_loss(bounds, "lost_events", max(0, then - now), then, said))
    kept = contents.frame[rows[here]] if here.any() else contents.frame.clear()
    texts, pictures = before.texts[here], before.pictures[here]
    lost = kept[TEXT_HASH].is_null().to_numpy() & texts
    said = f"items that had a text in {before.name} have none"
    found.append(_loss(bounds, "lost_texts", int(lost.sum()), int(texts.sum()), said))
    missing = _missing_files(ContentHashes(kept)) & pictures
    lost = kept[PICTURE_HASH].is_null().to_numpy() & pictures & ~missing
    said = f"items that had a picture in {before.name} name none"
    found.append(_loss(bounds, "lost_pictures", int(lost.sum()), int(pictures.sum()), said))
    names = kept[IMAGE_NAME].filter(pl.Series(missing, dtype=pl.Boolean)).to_list()
    example = f", such as {names[0]!r}" if names else ""
    said = f"items that had a picture in {before.name} name a file that is not found or cannot be opened{example}"
    found.append(_loss(bounds, "missing_files", int(missing.sum()), int(pictures.sum()), said))
    return tuple(loss for loss in found if loss is not None)


def losses_after(
    before: Predecessor, contents: ContentHashes, unreadable: Mapping[str, str], bounds: VolumeBounds
) -> tuple[Loss, ...]:
    """Losses by files that cannot be decoded, which are known only after embedding.

    Args:
        before: the current bundle.
        contents: hashes of the items of the data set.
        unreadable: item id → reason.
        bounds: largest permitted losses.
    """
    rows = _rows(before, contents)
    pictures = before.pictures & (rows >= 0)
    ids = contents.item_ids()
    broken = [ids[row] for row in rows[pictures].tolist() if ids[row] in unreadable]
    example = f", such as {broken[0]!r}" if broken else ""
    said = f"items that had a picture in {before.name} have one that cannot be used{example}"
    found = _loss(bounds, "unreadable_files", len(broken), int(pictures.sum()), said)
    return () if found is None else (found,)


def events_of(dataset: Dataset) -> int:
    """Number of interactions of a data set, including those with unknown items."""
    return dataset.interactions.height + dataset.orphans


def refuse_losses(dataset: str, losses: Sequence[Loss], state: str) -> None:
    """Refuse a data set with too large a loss.

    Args:
        dataset: its path or URL.
        losses: losses with their bounds.
        state: the state of the job, for the message.

    Raises:
        GateRefused: a loss exceeds its bound.
    """
    short = [loss for loss in losses if not loss.check.passed]
    if not short:
        return
    lift = " ".join(f"--bound {loss.check.bound}=none" for loss in short)
    raise GateRefused(
        f"{dataset}: {'; '.join(map(str, short))}. {state}. Look at the export and at the mounts; if this is meant, "
        f"run again with {lift}, or with --force",
        shortfalls=tuple(loss.check for loss in short),
    )


def _rows(before: Predecessor, contents: ContentHashes) -> NDArray[np.int64]:
    """(n,) int64, the row of each item of the bundle in the data set, −1 if it is deleted."""
    then = pl.DataFrame({ITEM_ID: pl.Series(pa.chunked_array([before.ids.array]))})
    now = contents.frame.select(ITEM_ID).with_row_index("row")
    rows = then.join(now, on=ITEM_ID, how="left", maintain_order="left")["row"]
    return rows.cast(pl.Int64).fill_null(-1).to_numpy()


def _missing_files(contents: ContentHashes) -> NDArray[np.bool_]:
    """(n,) bool: the item names a picture that is missing or cannot be opened."""
    refused = (contents.frame[PICTURE_HASH] == NOT_READ).fill_null(value=False).to_numpy()
    return np.asarray(contents.not_found() | refused, dtype=np.bool_)


def _loss(bounds: VolumeBounds, name: str, gone: int, every: int, said: str) -> Loss | None:
    """A loss; None if nothing can be lost or no bound is set."""
    limit = getattr(bounds, name)
    if not every or limit is None:
        return None
    check = BoundCheck(name, name, gone / every, limit, at_least=False)
    return Loss(check, f"{gone:,} of {every:,} {said}")


def _value(name: str, text: str) -> float | str:
    if text == _NONE:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"bound {name} must be a number, 0 … 1, or {_NONE!r}, got {text!r}") from error
