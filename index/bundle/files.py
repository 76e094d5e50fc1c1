"""Reads the files of a bundle and checks each against the manifest; errors of libraries become BundleInvalid."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bundle.manifest import LISTS_DIRECTORY, ListsRecord, Manifest
from index.errors import BundleInvalid, EncoderError, ItemListError, ItemTableError, SearchError
from index.items.eval_queries import EvaluationQueries
from index.items.items_file import ItemsFile
from index.items.mapped_array import map_array
from index.items.modality_status import ModalityStatus, check_missing, check_missing_fits
from index.items.thumbnails import Thumbnails
from index.lists.item_lists import LISTS_FILE, ItemLists
from index.lists.list_scores import ListScores
from index.search.encoder import OnnxSequenceEncoder
from index.search.query_plan import Effort
from index.search.searcher import Searcher
from index.search.vector_index import CpuIndex, GpuIndex

_BLOCK_ROWS = 65_536
_LARGEST_DESCRIPTION = 1 << 20


def read_items(path: Path, manifest: Manifest) -> ItemsFile:
    """Ids, popularity and metadata from ``items.arrow``, mapped.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        items = ItemsFile.load(path)
    except ItemTableError as error:
        raise BundleInvalid(f"{path}: {error}; build the bundle again") from error
    if len(items.ids) != manifest.items:
        raise BundleInvalid(f"{path}: holds {len(items.ids)} items, the manifest says {manifest.items}; build it again")
    return items


def map_vectors(path: Path, manifest: Manifest, *, ahead: bool = True) -> NDArray[np.floating]:
    """The stored vectors, (n, Σd) float16 or float32, mapped read-only; ``ahead`` as of `map_array`.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    return map_array(path, manifest.dtype, (manifest.items, manifest.layout.dim), ahead=ahead)


def check_vectors(path: Path, manifest: Manifest, vectors: NDArray[np.floating], missing: NDArray[np.uint8]) -> None:
    """Check every stored vector: finite, and zero exactly where its slot is recorded as missing.

    Raises:
        BundleInvalid: a vector breaks the rule.
    """
    for start in range(0, vectors.shape[0], _BLOCK_ROWS):
        finite = np.isfinite(vectors[start : start + _BLOCK_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise BundleInvalid(f"{path}: the vector in row {row} is not finite; build the bundle again")
    try:
        check_missing_fits(missing, manifest.layout, vectors)
    except ItemTableError as error:
        raise BundleInvalid(f"{path}: {error}; build the bundle again") from error


def read_indexed(path: Path, manifest: Manifest) -> NDArray[np.bool_]:
    """(n,) bool: the rows in the index.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    # Read as bytes: numpy does not define a bool that is neither 0 nor 1.
    marks = map_array(path, "bool", (manifest.items,)).view(np.uint8)
    marked = int(np.count_nonzero(marks))
    if int(marks.max()) > 1 or marked != manifest.indexed:
        raise BundleInvalid(
            f"{path}: must mark {manifest.indexed} of {manifest.items} rows as the manifest says, got {marked}; build "
            "the bundle again"
        )
    return marks.view(np.bool_)


def read_missing(path: Path, manifest: Manifest, indexed: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`.

    A row must be indexed exactly if one of its slots is present.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    missing: NDArray[np.uint8] = map_array(path, "uint8", (manifest.items, len(manifest.slots)))
    try:
        check_missing(missing, manifest.layout, manifest.items)
    except ItemTableError as error:
        raise BundleInvalid(f"{path}: {error}; build the bundle again") from error
    wrong = (missing == ModalityStatus.PRESENT).any(axis=1) != indexed
    if wrong.any():
        raise BundleInvalid(
            f"{path}: row {int(np.argmax(wrong))} must have a present slot exactly if it is indexed; build the bundle "
            "again"
        )
    return missing


def read_evaluation_queries(path: Path, manifest: Manifest) -> EvaluationQueries:
    """The evaluation queries, with their rows checked against the catalogue.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        evaluation_queries = EvaluationQueries.load(path)
        evaluation_queries.check_rows(manifest.items)
    except ItemTableError as error:
        raise BundleInvalid(f"{path}: {error}") from error
    return evaluation_queries


def map_thumbnails(path: Path, manifest: Manifest) -> Thumbnails | None:
    """The items' small pictures, mapped read-only; None in a bundle without pictures.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    if path.name not in manifest.files:
        return None
    try:
        return Thumbnails.load(path, manifest.items)
    except ItemTableError as error:
        raise BundleInvalid(f"{path}: {error}; build the bundle again") from error


def map_lists(bundle: Path, manifest: Manifest) -> ListScores | None:
    """Scores by the item-to-item lists, mapped read-only, with their offsets checked; None in a bundle without lists.

    Raises:
        BundleInvalid: a file cannot be read or does not fit the manifest.
    """
    if manifest.lists is None:
        return None
    directory = bundle / LISTS_DIRECTORY
    size = manifest.files[f"{LISTS_DIRECTORY}/{LISTS_FILE}"].size
    if size > _LARGEST_DESCRIPTION:
        raise BundleInvalid(f"{directory / LISTS_FILE}: has {size} bytes, not a description of lists; build it again")
    try:
        lists = ItemLists.load(directory, manifest.items, check=False)
        described = ListsRecord.of(lists)
    except (ItemListError, ValueError) as error:
        raise BundleInvalid(f"{directory}: {error}; build the bundle again") from error
    if described != manifest.lists:
        raise BundleInvalid(
            f"{directory}: holds lists that differ from the manifest's ({described}, the manifest says "
            f"{manifest.lists}); build the bundle again"
        )
    return ListScores(lists, manifest.layout)


def check_lists(bundle: Path, lists: ItemLists) -> None:
    """Check every entry of every list.

    Raises:
        BundleInvalid: an entry breaks a rule.
    """
    try:
        lists.check()
    except ItemListError as error:
        raise BundleInvalid(f"{bundle / LISTS_DIRECTORY}: {error}; build the bundle again") from error


def open_encoder(path: Path, manifest: Manifest, device: str, threads: int) -> OnnxSequenceEncoder:
    """Load the encoder and check its slots and history length against the manifest.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
        EncoderError: the encoder cannot run on a device other than the CPU.
    """
    try:
        encoder = OnnxSequenceEncoder(path, device=device, threads=threads)
    except EncoderError as error:
        if device != "cpu":
            raise  # the device may be the cause, and the message names it
        raise BundleInvalid(f"{path}: {error}") from error
    if encoder.layout != manifest.layout or encoder.max_history != manifest.max_history:
        raise BundleInvalid(
            f"{path}: the encoder is for the slots {encoder.layout.slots} and {encoder.max_history} items of history, "
            f"the manifest says {manifest.layout.slots} and {manifest.max_history}; build the bundle again"
        )
    return encoder


def open_index(
    path: Path,
    manifest: Manifest,
    vectors: NDArray[np.floating],
    indexed: NDArray[np.bool_],
    lists: ListScores | None,
    device: str,
    threads: int,
) -> Searcher:
    """Load ``index.faiss`` onto the device and return a searcher over it and the lists.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
        SearchError: the GPU cannot be used.
    """
    record = manifest.index
    effort = Effort(record.effort.typical, record.effort.bands, record.effort.per_k, record.effort.growth)
    try:
        on_cpu = CpuIndex(path, vectors, indexed, threads=threads)
        searcher = Searcher(on_cpu, vectors, indexed, manifest.layout, effort, lists)
    except SearchError as error:
        raise BundleInvalid(f"{path}: {error}") from error
    if on_cpu.capabilities.kind != record.kind:
        raise BundleInvalid(
            f"{path}: holds a {on_cpu.capabilities.kind} index, the manifest says {record.kind}; build the bundle again"
        )
    if device == "cpu":
        return searcher
    return Searcher(GpuIndex(on_cpu), vectors, indexed, manifest.layout, effort, lists)
