"""Content hashes depend only on the input of the model."""

import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from training.data.dataset import Dataset, load_dataset
from training.embedding.content_hashes import NOT_READ, SCHEMA, ContentHashes, metadata_digest, read_contents, text_hash
from training.errors import EmbeddingsError


def contents(**rows: tuple[str | None, str | None]) -> ContentHashes:
    columns = {
        "item_id": list(rows),
        "text": [text for text, _ in rows.values()],
        "picture": [picture for _, picture in rows.values()],
        **{name: [None] * len(rows) for name in ("image", "size", "mtime_ns")},
    }
    return ContentHashes(pl.DataFrame(columns, schema=SCHEMA))


def catalogue(directory: Path, *rows: str) -> Dataset:
    (directory / "items.csv").write_text("\n".join(["item_id,title,text,image", *rows]) + "\n")
    first = rows[0].split(",")[0]
    (directory / "interactions.csv").write_text(f"user_id,item_id,timestamp\nu,{first},1\n")
    return load_dataset(directory)


def test_hashes_by_hand(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"any bytes")
    (tmp_path / "outside").mkdir()
    data = catalogue(
        tmp_path, "a,title,the <|text|>,p.png", "b,title,,./p.png", "c,,,", "d,t, ,gone.png", "e,t,,/etc/passwd"
    )
    frame = read_contents(data).frame
    picture = hashlib.sha256(b"any bytes").hexdigest()[:32]
    assert frame["picture"].to_list() == [picture, picture, None, None, None]
    expected = ["the < text >", "title", None, "t", "t"]
    assert frame["text"].to_list() == [
        None if text is None else hashlib.sha256(text.encode()).hexdigest()[:32] for text in expected
    ]
    assert frame["size"].to_list() == [9, 9, None, None, None]
    assert frame["mtime_ns"][0] == (tmp_path / "p.png").stat().st_mtime_ns


def test_only_pictures_that_were_decoded_otherwise_before_count_as_changed(tmp_path: Path) -> None:
    """The hash of their bytes alone is what an earlier version recorded."""
    grey = Image.new("L", (8, 8), 7)
    for name, mode in {"rgb.png": "RGB", "rgba.png": "RGBA", "l.png": "L", "la.png": "LA", "rgb.jpg": "RGB"}.items():
        grey.convert(mode).save(tmp_path / f"kept-{name}")
    for name, mode in {"p.png": "P", "p.gif": "P", "1.png": "1", "c.jpg": "CMYK", "16.png": "I;16"}.items():
        grey.convert(mode).save(tmp_path / f"other-{name}")
    grey.save(tmp_path / "other-key.png", transparency=7)
    grey.save(tmp_path / "other.tif")
    names = sorted(path.name for path in tmp_path.iterdir())
    found = read_contents(catalogue(tmp_path, *(f"{name},t,,{name}" for name in names))).frame["picture"].to_list()
    plain = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:32] for name in names]
    assert [name for name, a, b in zip(names, found, plain, strict=True) if a == b] == [
        name for name in names if name.startswith("kept-")
    ]
    assert len(set(found)) == len(names)


def test_a_picture_that_the_system_refuses_is_a_state_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.png").write_bytes(b"x")
    data = catalogue(tmp_path, "a,t,,p.png", "b,t,,p.png")

    def refuse(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("training.embedding.content_hashes.hashlib.file_digest", refuse)
        broken = read_contents(data)
        assert broken.frame["picture"].to_list() == [NOT_READ, NOT_READ]
        assert read_contents(data).against(broken).unchanged == 2
    assert read_contents(data, trusted=broken).against(broken).changed == 2


def test_a_shared_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.png").write_bytes(b"x")
    read: list[object] = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        "training.embedding.content_hashes.hashlib.file_digest",
        lambda file, name: read.append(file) or real(file, name),
    )
    seen: list[tuple[int, int]] = []
    data = catalogue(tmp_path, *(f"i{row},t,,p.png" for row in range(50)))
    made = read_contents(data, progress=lambda done, every: seen.append((done, every)))
    assert made.frame["picture"].n_unique() == 1
    assert len(read) == 1
    assert seen == [(1, 1)]


def test_only_pictures_of_another_size_or_time_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(1, 1))
    data = catalogue(tmp_path, "c,t,,c.png", "x,t,,none.png", "a,t,,a.png", "b,t,,b.png", "e,t,,", "a2,t,,a.png")
    before = read_contents(data)
    assert before.frame["image"].to_list() == ["c.png", "none.png", "a.png", "b.png", None, "a.png"]
    (tmp_path / "b.png").write_bytes(b"other")
    os.utime(tmp_path / "c.png", ns=(2, 2))
    read: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        "training.embedding.content_hashes.hashlib.file_digest",
        lambda file, name: read.append(Path(file.name).name) or real(file, name),
    )
    after = read_contents(data, trusted=before)
    assert sorted(read) == ["b.png", "c.png"]
    assert after.frame.drop("mtime_ns").equals(read_contents(data).frame.drop("mtime_ns"))
    assert after.against(before).same.tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("known", [False, True])
def test_memory_grows_by_columns_and_not_by_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Python's strings, tuples and dictionaries took 380 bytes an item, columns of polars are not counted here."""
    items = 10_000
    for name, rows in (("_BLOCK_ROWS", 2_048), ("_AHEAD", 128)):  # a quarter, as if there were 40,000 items
        monkeypatch.setattr(f"training.embedding.content_hashes.{name}", rows)
    (tmp_path / "p.png").write_bytes(b"x")
    read_contents(catalogue(tmp_path, "i,t,,p.png"))  # loads the decoders, which the bound leaves no room for
    data = catalogue(tmp_path, *(f"i{row},t,,pictures/{row:060d}.png" for row in range(items)))
    monkeypatch.setattr(Dataset, "picture", lambda _self, _name: tmp_path / "p.png")
    trusted = read_contents(data, threads=1) if known else None
    tracemalloc.start()
    try:
        found = read_contents(data, trusted=trusted, threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.frame["picture"].n_unique() == 1
    assert peak < 150 * items  # of a block at a time


@pytest.mark.parametrize("block", [1, 2, 8_192])
def test_a_delta_by_hand(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("training.embedding.content_hashes._BLOCK_ROWS", block)
    then = contents(a=("1", "2"), b=("1", None), c=(None, None), d=("1", "2"), e=(None, "2"))
    now = contents(e=(None, "3"), c=(None, None), x=("1", "2"), b=("1", "2"), a=("1", "2"))
    delta = now.against(then)
    assert delta.was.tolist() == [4, 2, -1, 1, 0]
    assert delta.same.tolist() == [False, True, False, False, True]
    assert (delta.new, delta.changed, delta.unchanged, delta.deleted) == (1, 2, 2, 1)
    assert now.against(contents()).was.tolist() == [-1] * 5
    assert contents().against(then).deleted == 5
    first = now.against(None)
    assert (first.new, first.changed, first.unchanged, first.deleted) == (5, 0, 0, 0)


def test_digests() -> None:
    one = contents(a=("1", "2"), b=(None, "2"))
    turned = contents(b=(None, "2"), a=("1", "2"))
    assert one.digest() == turned.digest()
    assert one.ordered_digest() != turned.ordered_digest()
    for other in (contents(a=("1", "2"), b=("2", None)), contents(a=("1", "2"), c=(None, "2")), contents(a=("1", "2"))):
        assert one.digest() != other.digest()
    moved = ContentHashes(one.frame.with_columns(pl.lit("elsewhere.png").alias("image")))
    assert moved.digest() == one.digest()


@pytest.mark.parametrize("block", [1, 2, 3])
def test_digests_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    made = contents(c=("1", "2"), a=(None, "2"), b=("3", None))
    rows = [("a", "", "2"), ("b", "3", ""), ("c", "1", "2")]
    lines = {row[0]: "\0".join(row).encode() + b"\n" for row in rows}
    monkeypatch.setattr("training.embedding.content_hashes._BLOCK_ROWS", block)
    assert made.digest() == hashlib.sha256(b"".join(lines[name] for name in "abc")).hexdigest()[:16]
    assert made.ordered_digest() == hashlib.sha256(b"".join(lines[name] for name in "cab")).hexdigest()[:16]


@pytest.mark.parametrize("block", [1, 2, 9])
def test_contents_know_their_ids_and_order(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("training.embedding.content_hashes._BLOCK_ROWS", block)
    made = contents(c=("1", "2"), a=(None, "2"), b=("3", None))
    assert made.are_of(["c", "a", "b"])
    assert made.are_of(pl.Series(["c", "a", "b"]))
    for other in (["a", "b", "c"], ["c", "a"], ["c", "a", "b", "d"], ["c", "a", "x"], []):
        assert not made.are_of(other)


def test_saved_values_load_unchanged(tmp_path: Path) -> None:
    made = contents(ü=("1", None), b=(None, "2"))
    made.save(tmp_path / "contents.parquet")
    assert ContentHashes.load(tmp_path / "contents.parquet").frame.equals(made.frame)
    assert [path.name for path in tmp_path.iterdir()] == ["contents.parquet"]


def test_rules(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingsError, match="columns"):
        ContentHashes(pl.DataFrame({"item_id": ["a"]}))
    double = contents(a=("1", "2")).frame
    with pytest.raises(EmbeddingsError, match="once"):
        ContentHashes(pl.concat([double, double]))
    for content in (b"", b"PAR1", None):
        if content is not None:
            (tmp_path / "contents.parquet").write_bytes(content)
        with pytest.raises(EmbeddingsError, match=r"contents\.parquet"):
            ContentHashes.load(tmp_path / ("contents.parquet" if content is not None else "none/contents.parquet"))


def test_metadata_counts_by_its_values_not_by_how_it_is_stored() -> None:
    table = pa.table({"colour": ["red", None, "ü"], "price": [1.5, None, 2.0], "tags": [["a"], [], None]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert chunked.column("colour").num_chunks == 2
    assert metadata_digest(table) == metadata_digest(chunked)
    others = [
        table.rename_columns(["color", "price", "tags"]),
        table.set_column(1, "price", pa.array([1.5, None, 2.5])),
        table.set_column(1, "price", pa.array([1.5, None, 2.0], pa.float32())),
        table.set_column(2, "tags", pa.array([["a"], None, []], pa.list_(pa.string()))),
        table.slice(0, 2),
    ]
    digests = {metadata_digest(other) for other in (table, *others)}
    assert len(digests) == len(others) + 1


def test_the_hash_of_a_text_is_stable() -> None:
    """Stored hashes of an earlier version must be found again."""
    assert text_hash("crimson thing") == hashlib.sha256(b"crimson thing").hexdigest()[:32]
    assert len(text_hash("\ud800 lone surrogate")) == 32
    assert np.unique([text_hash(text) for text in ("a", "b", "a ")]).size == 3
