"""Thumbnails in one mapped file: round trips, and damaged files that are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.integrity import sha256_of
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.errors import BundleInvalid, ItemTableError
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.items.thumbnails import THUMBNAILS_FILE, Thumbnails, write_thumbnails

PICTURES = [b"first", None, b"the third, longer", b"", b"last"]


def written(path: Path, pictures: list[bytes | None]) -> Thumbnails:
    with write_thumbnails(path, len(pictures)) as writer:
        for picture in pictures:
            writer.add(picture)
    return Thumbnails.load(path, len(pictures))


def test_thumbnails_round_trip(tmp_path: Path) -> None:
    thumbnails = written(tmp_path / "t.npy", PICTURES)
    assert [thumbnails.get(row) for row in range(5)] == [b"first", None, b"the third, longer", None, b"last"]
    assert (len(thumbnails), thumbnails.count) == (5, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["t.npy"]
    for row in (-1, 5):
        with pytest.raises(ItemTableError, match=r"0 … 4"):
            thumbnails.get(row)


def test_numpy_reads_the_file_as_bytes_after_their_offsets(tmp_path: Path) -> None:
    written(tmp_path / "t.npy", PICTURES)
    content = np.load(tmp_path / "t.npy", allow_pickle=False)
    assert content[:48].view("<i8").tolist() == [0, 5, 5, 22, 22, 26]
    assert content[48:].tobytes() == b"firstthe third, longerlast"


def test_no_picture_at_all(tmp_path: Path) -> None:
    thumbnails = written(tmp_path / "t.npy", [None, None])
    assert (thumbnails.count, thumbnails.get(0), thumbnails.get(1)) == (0, None, None)


def test_too_few_rows_leave_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ItemTableError, match="3 thumbnails must be written, got 1"),
        write_thumbnails(tmp_path / "t.npy", 3) as writer,
    ):
        writer.add(b"one")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_file_that_is_mapped_outlives_its_replacement(tmp_path: Path) -> None:
    first = written(tmp_path / "t.npy", [b"old"])
    second = written(tmp_path / "t.npy", [b"new"])
    assert (first.get(0), second.get(0)) == (b"old", b"new")
    second.copy_to(tmp_path / "t.npy")
    second.copy_to(tmp_path / "copy.npy")
    assert (tmp_path / "copy.npy").read_bytes() == (tmp_path / "t.npy").read_bytes()


def offsets_become(path: Path, offsets: list[int]) -> None:
    content = bytearray(path.read_bytes())
    content[128 : 128 + 8 * len(offsets)] = np.array(offsets, dtype="<i8").tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "offsets",
    [
        [1, 5, 5, 22, 22, 26],
        [0, 5, 4, 22, 22, 26],
        [0, 5, 5, 22, 22, 25],
        [0, 5, 5, 22, 27, 26],
        [0, -5, 5, 22, 22, 26],
        [0, 5, 5, 22, 22, 2**62],
    ],
)
def test_refuses_invalid_offsets(tmp_path: Path, offsets: list[int]) -> None:
    written(tmp_path / "t.npy", PICTURES)
    offsets_become(tmp_path / "t.npy", offsets)
    with pytest.raises(ItemTableError, match="ascend from 0 to 26"):
        Thumbnails.load(tmp_path / "t.npy", 5)


def test_refuses_files_of_another_form(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    written(path, PICTURES)
    whole = path.read_bytes()
    with pytest.raises(ItemTableError, match="thumbnails of 50 rows"):
        Thumbnails.load(path, 50)
    with pytest.raises(ItemTableError, match="ascend"):
        Thumbnails.load(path, 4)
    np.save(path, np.zeros(60, dtype=np.int64))
    with pytest.raises(ItemTableError, match="at least 48 bytes"):
        Thumbnails.load(path, 5)
    for damaged in (b"", b"nonsense", whole[:-1], whole + b"x", whole[:130]):
        path.write_bytes(damaged)
        with pytest.raises(ItemTableError):
            Thumbnails.load(path, 5)
    path.unlink()
    with pytest.raises(ItemTableError, match="cannot be read"):
        Thumbnails.load(path, 5)


def test_seeded_corruption_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    written(path, PICTURES)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        content = bytearray(whole)
        for position in rng.integers(len(content), size=3).tolist():
            content[position] = int(rng.integers(256))
        path.write_bytes(content)
        try:
            thumbnails = Thumbnails.load(path, 5)
        except ItemTableError:
            refused += 1
            continue
        sizes = [len(thumbnails.get(row) or b"") for row in range(5)]
        assert sum(sizes) == 26
    assert 100 < refused < 500


@pytest.fixture
def pictured_table(small_table: ItemTable, tmp_path: Path) -> ItemTable:
    pictures = [None if row % 7 == 0 else f"picture of {row}".encode() for row in range(60)]
    return dataclasses.replace(small_table, thumbnails=written(tmp_path / "made.npy", pictures))


def test_a_table_keeps_them(pictured_table: ItemTable, small_table: ItemTable, tmp_path: Path) -> None:
    pictured_table.save(tmp_path / "table")
    (tmp_path / "made.npy").unlink()
    loaded = ItemTable.load(tmp_path / "table")
    assert loaded.thumbnails is not None
    assert (loaded.thumbnails.get(0), loaded.thumbnails.get(8)) == (None, b"picture of 8")
    loaded.save(tmp_path / "table")  # over itself
    assert ItemTable.load(tmp_path / "table").thumbnails is not None
    small_table.save(tmp_path / "table")
    assert ItemTable.load(tmp_path / "table").thumbnails is None
    assert not (tmp_path / "table" / THUMBNAILS_FILE).exists()


def test_a_table_needs_a_row_for_each_item(small_table: ItemTable, tmp_path: Path) -> None:
    with pytest.raises(ItemTableError, match="thumbnails must have 60 rows, got 2"):
        dataclasses.replace(small_table, thumbnails=written(tmp_path / "two.npy", [b"1", b"2"]))


def test_a_bundle_carries_them_hashed_and_mapped(
    pictured_table: ItemTable, small_encoder: Path, small_bundle: Path, tmp_path: Path
) -> None:
    evaluation_queries = EvaluationQueries(np.array([[1, 2]]), np.array([5]))
    built = build_bundle(pictured_table, small_encoder, evaluation_queries, tmp_path / "built")
    entry = Manifest.read(built).files[THUMBNAILS_FILE]
    assert entry.sha256 == sha256_of(built / THUMBNAILS_FILE)
    Registry(tmp_path / "registry").publish(built, force=True)
    bundle = Bundle.load(Registry(tmp_path / "registry").path(built.name), verify="full")
    assert bundle.thumbnails is not None
    assert (bundle.thumbnails.get(7), bundle.thumbnails.get(59)) == (None, b"picture of 59")
    assert Bundle.load(small_bundle).thumbnails is None
    (built / THUMBNAILS_FILE).chmod(0o644)
    content = bytearray((built / THUMBNAILS_FILE).read_bytes())
    content[-1] ^= 1
    (built / THUMBNAILS_FILE).write_bytes(content)
    with pytest.raises(BundleInvalid, match=r"thumbnails\.npy: its content was altered"):
        Bundle.load(built)
    (built / THUMBNAILS_FILE).unlink()
    with pytest.raises(BundleInvalid, match=r"thumbnails\.npy: the file is missing"):
        Bundle.load(built)


def test_thumbnails_of_another_catalogue_are_refused_though_their_hash_fits(
    pictured_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    built = build_bundle(
        pictured_table, small_encoder, EvaluationQueries(np.array([[1]]), np.array([5])), tmp_path / "built"
    )
    written(tmp_path / "two.npy", [b"1", b"2"])
    with pytest.raises(ItemTableError):
        Thumbnails.load(tmp_path / "two.npy", 60)
    manifest = Manifest.read(built)
    from index.bundle.files import map_thumbnails

    (tmp_path / THUMBNAILS_FILE).write_bytes((tmp_path / "two.npy").read_bytes())
    with pytest.raises(BundleInvalid, match="build the bundle again"):
        map_thumbnails(tmp_path / THUMBNAILS_FILE, manifest)
