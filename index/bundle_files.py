"""Reading the files of a bundle, each held to the manifest; foreign errors become BundleInvalid."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.encoder import OnnxSequenceEncoder
from index.errors import BundleInvalid, EncoderError, ItemTableError, SearchError
from index.item_ids import ItemIds
from index.item_table import ITEM_ID, POPULARITY
from index.manifest import Manifest
from index.plan import Effort
from index.probes import Probes
from index.search import CpuIndex, GpuIndex, Searcher


@dataclass(frozen=True)
class ItemRows:
    """What ``items.parquet`` holds, row by row: ids, (n,) int64 training events, metadata in single chunks."""

    ids: ItemIds
    popularity: NDArray[np.int64]
    metadata: pa.Table


def read_items(path: Path, manifest: Manifest) -> ItemRows:
    """Ids, popularity and metadata from ``items.parquet``.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        table = pq.read_table(path)
        popularity = table.column(POPULARITY).to_numpy().astype(np.int64, copy=False)
        items = ItemRows(
            ids=ItemIds(table.column(ITEM_ID).to_pylist()),
            popularity=popularity,
            metadata=_single_chunks(table.drop_columns([ITEM_ID, POPULARITY])),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException, ItemTableError) as error:
        raise BundleInvalid(f"{path}: the items cannot be read ({error}); build the bundle again") from error
    if len(items.ids) != manifest.items:
        raise BundleInvalid(f"{path}: holds {len(items.ids)} items, the manifest says {manifest.items}; build it again")
    if int(popularity.min(initial=0)) < 0:
        raise BundleInvalid(f"{path}: popularity counts events and cannot be negative; build the bundle again")
    return items


def _single_chunks(table: pa.Table) -> pa.Table:
    """The same table with one chunk per column, so that a value is reached in one step."""
    columns = {}
    for name in table.column_names:
        whole = table.column(name).combine_chunks()
        columns[name] = whole if isinstance(whole, pa.ChunkedArray) else pa.chunked_array([whole])
    return pa.table(columns) if columns else table


def map_vectors(path: Path, manifest: Manifest) -> NDArray[np.floating]:
    """The stored vectors, (n, Σd) float16 or float32, mapped read-only.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        vectors: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise BundleInvalid(f"{path}: not a readable array ({error}); build the bundle again") from error
    wanted = (manifest.items, manifest.layout.dim)
    if vectors.shape != wanted or vectors.dtype != np.dtype(manifest.dtype) or not vectors.flags.c_contiguous:
        raise BundleInvalid(
            f"{path}: holds {vectors.dtype} {vectors.shape}, the manifest says {manifest.dtype} {wanted}; build the "
            "bundle again"
        )
    return vectors.view(np.ndarray)  # drops the memmap class, whose every view costs microseconds


def read_indexed(path: Path, manifest: Manifest) -> NDArray[np.bool_]:
    """(n,) bool: the rows in the index.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        indexed: NDArray[np.bool_] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise BundleInvalid(f"{path}: not a readable array ({error}); build the bundle again") from error
    if indexed.dtype != np.bool_ or indexed.shape != (manifest.items,) or int(indexed.sum()) != manifest.indexed:
        raise BundleInvalid(
            f"{path}: must mark {manifest.indexed} of {manifest.items} rows as the manifest says, got "
            f"{indexed.dtype} {indexed.shape}; build the bundle again"
        )
    return indexed


def read_probes(path: Path, manifest: Manifest) -> Probes:
    """The probes, their rows checked against the catalogue.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        probes = Probes.load(path)
        probes.check_rows(manifest.items)
    except ItemTableError as error:
        raise BundleInvalid(f"{path}: {error}") from error
    return probes


def open_encoder(path: Path, manifest: Manifest, device: str, threads: int) -> OnnxSequenceEncoder:
    """The encoder, held to the slots and the history length of the manifest.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    try:
        encoder = OnnxSequenceEncoder(path, device=device, threads=threads)
    except EncoderError as error:
        if device != "cpu":
            raise  # it may be the device's fault, and the message says so
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
    device: str,
    threads: int,
) -> Searcher:
    """The searcher over ``index.faiss``, on the device.

    Raises:
        BundleInvalid: the file cannot be read or does not fit the manifest.
    """
    record = manifest.index
    effort = Effort(record.effort.typical, record.effort.bands, record.effort.per_k, record.effort.growth)
    try:
        on_cpu = CpuIndex(path, vectors, indexed, threads=threads)
        searcher = Searcher(on_cpu, vectors, indexed, manifest.layout, effort)
    except SearchError as error:
        raise BundleInvalid(f"{path}: {error}") from error
    if on_cpu.engine.kind != record.kind:
        raise BundleInvalid(
            f"{path}: holds a {on_cpu.engine.kind} index, the manifest says {record.kind}; build the bundle again"
        )
    if device == "cpu":
        return searcher
    return Searcher(GpuIndex(on_cpu), vectors, indexed, manifest.layout, effort)
