import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.embedding.content_hashes import SCHEMA, ContentHashes
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError


def made(rows: int = 3) -> Embeddings:
    text = np.eye(rows, 4, dtype=np.float32)
    image = np.full((rows, 9), 1 / 3, dtype=np.float32)
    image[1] = 0
    return Embeddings([f"ü{row}" for row in range(rows)], {"text": text, "image": image}, {"kind": "no-vlm", "n": [1]})


def test_saved_values_load_unchanged(tmp_path: Path) -> None:
    made().save(tmp_path / "new" / "directory")
    loaded = Embeddings.load(tmp_path / "new" / "directory")
    assert loaded.item_ids == ["ü0", "ü1", "ü2"]
    assert loaded.dims() == {"text": 4, "image": 9}
    assert loaded.model == {"kind": "no-vlm", "n": [1]}
    for name, block in made().vectors.items():
        np.testing.assert_array_equal(loaded.vectors[name], block)
    assert not list((tmp_path / "new" / "directory").glob("*.part"))


def test_given_contents_take_the_place_of_those_in_the_file(tmp_path: Path) -> None:
    plain = made(2)
    hashes = [
        ContentHashes(pl.DataFrame([(one, "t", None, None, None, None) for one in ids], schema=SCHEMA, orient="row"))
        for ids in (["ü0", "ü1"], ["ü1", "ü0"])
    ]
    Embeddings(plain.item_ids, plain.vectors, {}, {"ü1": "broken"}, hashes[0]).save(tmp_path)
    loaded = Embeddings.load(tmp_path, contents=hashes[0])
    assert loaded.contents is hashes[0]
    assert (loaded.item_ids, loaded.unreadable) == (["ü0", "ü1"], {"ü1": "broken"})
    read = Embeddings.load(tmp_path).contents
    assert read is not None
    assert read.frame.equals(hashes[0].frame)
    with pytest.raises(EmbeddingsError, match="the contents are of other items than the vectors"):
        Embeddings.load(tmp_path, contents=hashes[1])


def test_saving_again_replaces_the_earlier_set(tmp_path: Path) -> None:
    made(5).save(tmp_path)
    made(2).save(tmp_path)
    assert len(Embeddings.load(tmp_path)) == 2


@pytest.mark.parametrize(
    ("ids", "vectors", "rule"),
    [
        (["a", "a"], {"text": np.eye(2, dtype=np.float32)}, "unique"),
        (["a", "b"], {}, "at least one slot"),
        (["a", "b"], {"text": np.eye(2)}, "float32 (2, D), got float64"),
        (["a", "b"], {"text": np.eye(3, dtype=np.float32)}, "float32 (2, D)"),
        (["a", "b"], {"text": np.ones(2, dtype=np.float32)}, "float32 (2, D)"),
        (["a", "b"], {"text": np.zeros((2, 0), dtype=np.float32)}, "float32 (2, D)"),
        (["a", "b"], {"text": np.array([[1, 0], [2, 0]], dtype=np.float32)}, "row 1 has length 2.0"),
        (["a", "b"], {"text": np.array([[1, 0], [np.nan, 0]], dtype=np.float32)}, "row 1 has length nan"),
        (["a"], {"../text": np.eye(1, dtype=np.float32)}, "lower-case words"),
    ],
)
def test_rules(ids: list[str], vectors: dict[str, np.ndarray], rule: str) -> None:
    with pytest.raises(EmbeddingsError, match=re.escape(rule)):
        Embeddings(ids, vectors)


def test_a_directory_without_embeddings_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingsError, match="vlm2rec embed"):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize("name", ["text-000001.npy", "image-000001.npy", "items-000001.parquet", "embeddings.json"])
@pytest.mark.parametrize("damage", ["truncated", "gone", "garbage"])
def test_a_damaged_file_is_named_and_never_a_traceback(tmp_path: Path, name: str, damage: str) -> None:
    made().save(tmp_path)
    file = tmp_path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:40] if damage == "truncated" else b"\x00garbage")
    with pytest.raises(EmbeddingsError, match=re.escape(str(tmp_path))):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"format": 9}, "format 9"),
        ({"items": 4}, "should hold 4 items"),
        ({"slots": {"text": 5, "image": 9}}, "the files hold"),
        ({"slots": {"../../text": 4}}, "lower-case words"),
        ({"slots": 3}, "embed the catalogue again"),
        ({"model": None}, "embed the catalogue again"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], rule: str) -> None:
    made().save(tmp_path)
    description = json.loads((tmp_path / "embeddings.json").read_text())
    (tmp_path / "embeddings.json").write_text(json.dumps(description | change))
    with pytest.raises(EmbeddingsError, match=re.escape(rule)):
        Embeddings.load(tmp_path)
