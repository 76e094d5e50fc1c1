"""Defines ``manifest.json``, the self-description of a bundle, and checks it before any other file is read."""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from index.bound_check import BoundCheck
from index.bundle.encoder_pair import EncoderPair, check_refit
from index.bundle.event_types import EventTypes
from index.bundle.gate import check_figures, is_bound
from index.bundle.unused_modalities import UnusedModality, unused_modalities
from index.errors import BundleInvalid, ItemTableError
from index.items.item_table import MISSING_FILE, VECTORS_FILE
from index.items.slots import Slot, SlotLayout
from index.lists.item_lists import LIST_SLOTS, LISTS_FILE, MOST_RECENT, ItemLists, array_files

BUNDLE_FORMAT: Final = 2
BUNDLE_FORMAT_WITH_LISTS: Final = 3
MANIFEST_FILE = "manifest.json"
ITEMS_FILE = "items.arrow"
FAISS_FILE = "index.faiss"
ENCODER_FILE = "encoder.onnx"
INDEXED_FILE = "indexed.npy"
EVALUATION_QUERIES_FILE = "probes.npz"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
LISTS_DIRECTORY = "lists"
REQUIRED_FILES = (
    *(ITEMS_FILE, VECTORS_FILE, MISSING_FILE, INDEXED_FILE, FAISS_FILE, ENCODER_FILE),
    *(EVALUATION_QUERIES_FILE, REPORT_FILE, PAGE_FILE),
)
LARGEST_MANIFEST = 64 << 20
# With this value: earlier versions do not know them.
_LEFT_OUT = {"event_types": None, "fresh_share": 0.0, "lists": None, "refit": None}
_LARGEST_EFFORT = 1 << 20  # far above any measured effort; FAISS allocates memory by it
_ID_PATTERN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _ManifestPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_ManifestPart):
    """Hash and size of one file of a bundle.

    Attributes:
        sha256: sha256 of its content, hexadecimal.
        size: its size in bytes.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class EffortRecord(_ManifestPart):
    """Stored form of :class:`index.search.query_plan.Effort`, which documents the fields."""

    typical: tuple[float, ...]
    bands: tuple[tuple[float, int], ...] = Field(min_length=1)
    per_k: int = Field(ge=1)
    growth: float = Field(ge=0, le=4)

    @field_validator("bands")
    @classmethod
    def _in_order(cls, bands: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        edges = [edge for edge, _ in bands]
        if edges != sorted(edges) or edges[-1] != 1:
            raise ValueError(f"skews must ascend to 1, got {edges}")
        if not all(0 <= effort <= _LARGEST_EFFORT for _, effort in bands):
            raise ValueError(f"an effort must lie in 0 … {_LARGEST_EFFORT}")
        return bands


class IndexRecord(_ManifestPart):
    """The index that was built, the reason for its kind, and its recall.

    Attributes:
        kind: flat, hnsw or ivf.
        reason: why this kind, in words.
        parameters: parameters of the build by name.
        effort: search effort by the skew of a query's slots.
        recall_k: k of ``recall``.
        recall: recall@k against exact search by kind of query (``plain``, ``image x3``, ``image alone`` …), 0 … 1.
    """

    kind: Literal["flat", "hnsw", "ivf"]
    reason: str
    parameters: dict[str, int | str]
    effort: EffortRecord
    recall_k: int = Field(ge=1)
    recall: dict[str, Finite]


class GateRecord(_ManifestPart):
    """The bounds that the bundle must keep before it may be published, and its figures.

    Attributes:
        bounds: limit by name, see :class:`index.bundle.gate.Bounds`.
        figures: measured figures by name, except recall, which is in the index record.
        shortfalls: names of the figures that missed their bound at the build. Informative: publishing checks the
            figures again.
    """

    bounds: dict[str, Finite]
    figures: dict[str, Finite]
    shortfalls: tuple[str, ...]

    @field_validator("bounds")
    @classmethod
    def _known(cls, bounds: dict[str, float]) -> dict[str, float]:
        if unknown := [name for name in bounds if not is_bound(name)]:
            raise ValueError(f"unknown bound {unknown[0]!r}")
        return bounds

    def checks(self, recall: Mapping[str, float]) -> tuple[BoundCheck, ...]:
        """Check every figure that has a bound.

        Args:
            recall: recall@k by kind of query, from the index record.
        """
        return check_figures(self.bounds, {f"recall.{kind}": value for kind, value in recall.items()} | self.figures)


class ListRecord(_ManifestPart):
    """One item-to-item list.

    Attributes:
        name: a key of :data:`index.lists.item_lists.LIST_SLOTS`.
        slot: the slot that its part of a score counts to.
        weight: its weight in the score.
        neighbours: number of entries of the item with the most.
    """

    name: str
    slot: str
    weight: float = Field(gt=0)
    neighbours: int = Field(ge=0)


class ListsRecord(_ManifestPart):
    """The item-to-item lists of the bundle, as ``lists/lists.json`` describes them.

    Attributes:
        recency: weight of each of the newest items of a history, newest first.
        lists: in the order of :data:`index.lists.item_lists.LIST_SLOTS`.
    """

    recency: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1, max_length=MOST_RECENT)
    lists: tuple[ListRecord, ...] = Field(min_length=1)

    @field_validator("lists")
    @classmethod
    def _known(cls, lists: tuple[ListRecord, ...]) -> tuple[ListRecord, ...]:
        names = [part.name for part in lists]
        if names != [name for name in LIST_SLOTS if name in names]:
            raise ValueError(f"lists must be some of {', '.join(LIST_SLOTS)} in this order, got {names}")
        for part in lists:
            if part.slot != LIST_SLOTS[part.name]:
                raise ValueError(f"list {part.name} counts to {LIST_SLOTS[part.name]}, got {part.slot!r}")
        return lists

    @classmethod
    def of(cls, lists: ItemLists) -> "ListsRecord":
        """Describe lists, all of a weight above 0."""
        recency, weights = lists.weights.recency, lists.weights.weights
        return cls(
            recency=tuple(float(weight) for weight in recency),
            lists=tuple(
                ListRecord(name=part.name, slot=part.slot, weight=weights[part.name], neighbours=part.longest)
                for part in lists.lists
            ),
        )

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all files of the lists in the bundle."""
        names = LISTS_FILE, *(file for part in self.lists for file in array_files(part.name))
        return tuple(f"{LISTS_DIRECTORY}/{name}" for name in names)


class Manifest(_ManifestPart):
    """The self-description of a bundle, format 2 or 3.

    Attributes:
        format: 3 for a bundle with item-to-item lists, 2 for one without; this version refuses any other number.
        id: ``<UTC yyyymmddThhmmssZ>-<first 6 hex of content>``.
        content: sha256 of the manifest without ``id``, ``content`` and ``forced``; covers all files by their hashes.
        created: time of the build.
        slots: (name, dim) in order.
        dtype: dtype of the stored vectors.
        metric: always the inner product.
        items: number of rows of the catalogue.
        indexed: number of rows in the index, which have at least one slot.
        max_history: number of newest items of a history that the encoder reads.
        model: provenance of the vectors, as training wrote it.
        index: the index that was built.
        gate: the bounds and figures of the bundle.
        exclude_seen: default of requests: whether recommendations exclude the items of the user's history. Bundles of
            earlier versions lack the field, which means true.
        event_types: what the types of events meant in training; None: training read no types.
        fresh_share: default of requests: share of the places of an answer that are kept for new items, 0 … 1.
        lists: the item-to-item lists; None in a bundle without lists.
        refit: the encoder that serves and the one that was measured; None if they are the same.
        files: every other file of the bundle by its relative path.
        forced: whether it was published although a figure misses its bound.
    """

    format: Literal[2, 3]
    id: str = Field(pattern=rf"^{_ID_PATTERN.pattern}$")
    content: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime
    slots: tuple[tuple[str, int], ...]
    dtype: Literal["float16", "float32"]
    metric: Literal["inner_product"] = "inner_product"
    items: int = Field(ge=1)
    indexed: int = Field(ge=1)
    max_history: int = Field(ge=1)
    model: dict[str, Any]
    index: IndexRecord
    gate: GateRecord
    exclude_seen: bool = True
    event_types: EventTypes | None = None
    fresh_share: float = Field(default=0.0, ge=0, le=1)
    lists: ListsRecord | None = None
    refit: EncoderPair | None = None
    files: dict[str, FileEntry]
    forced: bool = False

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name or name == MANIFEST_FILE:
                raise ValueError(f"file name {name!r} must be a plain path inside the bundle")
        if missing := [name for name in REQUIRED_FILES if name not in files]:
            raise ValueError(f"the files {', '.join(missing)} are not listed")
        return files

    @model_validator(mode="after")
    def _agree(self) -> "Manifest":
        if self.indexed > self.items:
            raise ValueError(f"{self.indexed} of {self.items} items cannot be indexed")
        if len(self.index.effort.typical) != len(self.slots):
            raise ValueError(f"effort.typical needs a share for each of {len(self.slots)} slots")
        if self.format != _format_of(self.lists):
            raise ValueError(f"a bundle with lists has format {BUNDLE_FORMAT_WITH_LISTS}, one without {BUNDLE_FORMAT}")
        if self.lists is not None:
            self._check_lists(self.lists)
        check_refit(self.refit, self.model, self.files[ENCODER_FILE].sha256)
        return self

    def _check_lists(self, lists: ListsRecord) -> None:
        if missing := [name for name in lists.files if name not in self.files]:
            raise ValueError(f"the files {', '.join(missing)} are not listed")
        slots = dict(self.slots)
        for part in lists.lists:
            if part.slot not in slots:
                raise ValueError(f"list {part.name} counts to {part.slot}, the slots are {', '.join(slots)}")
            if part.neighbours >= self.items:
                raise ValueError(f"list {part.name} cannot have {part.neighbours} neighbours of {self.items} items")

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        raw: dict[str, Any] = serialize(self)
        return {name: value for name, value in raw.items() if name not in _LEFT_OUT or value != _LEFT_OUT[name]}

    @property
    def layout(self) -> SlotLayout:
        """The slots as a layout.

        Raises:
            ItemTableError: the slots break a rule.
        """
        return SlotLayout(tuple(Slot(name, dim) for name, dim in self.slots))

    @property
    def checks(self) -> tuple[BoundCheck, ...]:
        """The checks of all figures that have a bound, computed from figures and limits, not from stored shortfalls."""
        return self.gate.checks(self.index.recall)

    @property
    def shortfalls(self) -> tuple[BoundCheck, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def unused_modalities(self) -> tuple[UnusedModality, ...]:
        """Modalities that most items have but that hardly count; a bundle is published all the same."""
        return unused_modalities(self.gate.figures)

    @classmethod
    def seal(cls, created: datetime, **parts: Any) -> "Manifest":  # noqa: ANN401 - the fields above
        """A manifest with its content hash and id filled in.

        Args:
            created: time of the build, aware; in UTC to the second part of the id.
            **parts: every field but ``format``, ``id`` and ``content``.
        """
        form = _format_of(parts.get("lists"))
        draft = cls(format=form, id="00000000T000000Z-000000", content="0" * 64, created=created, **parts)
        content = draft.content_hash()
        return draft.model_copy(update={"id": f"{created:%Y%m%dT%H%M%SZ}-{content[:6]}", "content": content})

    def content_hash(self) -> str:
        """sha256 of this manifest without ``id``, ``content`` and ``forced``, as canonical JSON."""
        return _content_hash(json.loads(self.to_json()))

    def to_json(self) -> str:
        """The text of ``manifest.json``.

        ``exclude_seen`` is omitted if it is true, and a part of ``_LEFT_OUT`` if it has the value there. So a bundle of
        an earlier version keeps its hash when it is published again, and earlier versions read the manifest.
        """
        raw = self.model_dump(mode="json")
        if self.exclude_seen:
            del raw["exclude_seen"]
        return json.dumps(raw, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def read(cls, bundle: Path) -> "Manifest":
        """Read and validate ``manifest.json`` of a bundle's directory.

        Raises:
            BundleInvalid: the manifest is missing, unreadable, altered, of an unknown format version, or breaks a rule.
        """
        path = bundle / MANIFEST_FILE
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise BundleInvalid(f"{path}: must be a regular file; publish the bundle again")
            if status.st_size > LARGEST_MANIFEST:
                raise BundleInvalid(f"{path}: larger than {LARGEST_MANIFEST} bytes, not a manifest; build it again")
            content = path.read_bytes()
        except OSError as error:
            raise BundleInvalid(f"{path}: not a readable manifest ({error}); build the bundle again") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, source: str) -> "Manifest":
        """Validate the content of ``manifest.json``; the source of it is named in messages.

        Raises:
            BundleInvalid: it is unreadable, altered, of an unknown format version, or breaks a rule.
        """
        try:
            raw = json.loads(content)
            if not isinstance(raw, dict) or "format" not in raw:
                raise BundleInvalid(f"{source}: not a manifest, 'format' is missing; build the bundle again")
            if type(raw["format"]) is not int or raw["format"] not in (BUNDLE_FORMAT, BUNDLE_FORMAT_WITH_LISTS):
                raise BundleInvalid(
                    f"{source}: bundle format {raw['format']!r}, this version reads {BUNDLE_FORMAT} and "
                    f"{BUNDLE_FORMAT_WITH_LISTS}; build the bundle again with this version"
                )
            manifest = cls.model_validate_json(content)
            manifest.layout  # noqa: B018 - raises on slots that break a rule
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "as a whole"
            raise BundleInvalid(f"{source}: {where}: {first['msg']}; build the bundle again") from error
        except (ValueError, RecursionError, ItemTableError) as error:
            raise BundleInvalid(f"{source}: not a readable manifest ({error}); build the bundle again") from error
        if manifest.content != _content_hash(raw) or not manifest.id.endswith(manifest.content[:6]):
            raise BundleInvalid(f"{source}: its content does not fit its own hash, so it was altered; build it again")
        return manifest


def is_bundle_id(text: str) -> bool:
    """Whether a text has the form of a bundle id."""
    return _ID_PATTERN.fullmatch(text) is not None


def _format_of(lists: ListsRecord | None) -> Literal[2, 3]:
    return BUNDLE_FORMAT if lists is None else BUNDLE_FORMAT_WITH_LISTS


def _content_hash(raw: dict[str, Any]) -> str:
    """sha256 over the raw JSON, so that it does not depend on the defaults of later versions."""
    kept = {name: value for name, value in raw.items() if name not in {"id", "content", "forced"}}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
