"""The nightly job in one process: embedded items, rows kept byte for byte, and the published bundle."""

import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus
from index.search.brute_force import exact_top_k
from training.config.encoder_config import EncoderConfig
from training.data.dataset import load_dataset
from training.data.sequences import popularity
from training.embedding.store import Embeddings
from training.encoder.imputation import BehaviourImputation
from training.encoder.job import split_dataset
from training.encoder.projection import load_projection, project
from training.nightly.item_updates import remap_queries

if TYPE_CHECKING:
    from conftest import Shop

Encoded = list[list[int]]
NO_TEXT, NO_PICTURE, BROKEN_PICTURE, NOTHING = 3, 4, 5, 6


def items(summary: dict[str, dict[str, int]]) -> tuple[int, ...]:
    return tuple(summary["items"][name] for name in ("new", "changed", "unchanged", "deleted"))


def fresh_vectors(shop: "Shop") -> np.ndarray:
    """The table that comes of projecting and stacking every item of the run's embeddings, behaviour by id."""
    fitted = ItemTable.load(shop.run / "encoder" / "table")
    embeddings = Embeddings.load(shop.run / "embeddings")
    slots = dict(project(embeddings, load_projection(shop.run / "encoder" / "projection.safetensors")))
    part = fitted.layout.slice("behaviour")
    rows = [fitted.ids.row(item_id) for item_id in embeddings.item_ids]
    slots["behaviour"] = np.stack(
        [np.zeros(part.stop - part.start) if row is None else fitted.vectors[row, part] for row in rows]
    )
    dataset = load_dataset(shop.data)
    counts = popularity(split_dataset(dataset, 0.0).parts.train, len(dataset))
    imputed = BehaviourImputation.load(shop.run / "encoder" / "imputation.safetensors")
    own = fitted.missing_record()[:, fitted.layout.names.index("behaviour")] == ModalityStatus.PRESENT
    slots["behaviour"][[row is None or not own[row] for row in rows]] = 0
    slots, lengths, _ = imputed.fill(slots, embeddings.vectors, counts)
    return fitted.layout.stack(slots, {"behaviour": lengths})


def test_the_first_job_publishes_the_fitted_table_as_it_is(own: "Shop", encoded: Encoded) -> None:
    summary = own.reindex()
    assert (summary["outcome"], summary["why"]) == ("published", ["nothing is published yet"])
    assert items(summary) == (0, 0, 30, 0)
    assert encoded == []
    bundle = own.bundle()
    assert bundle.id == summary["bundle"]
    table = ItemTable.load(own.run / "encoder" / "table")
    assert (bundle.path / "vectors.npy").read_bytes() == (own.run / "encoder" / "table" / "vectors.npy").read_bytes()
    np.testing.assert_array_equal(bundle.popularity, table.popularity)
    np.testing.assert_array_equal(bundle.missing, table.missing)
    assert bundle.manifest.model["encoder"] == table.model["encoder"]


def test_the_fitted_table_records_missing_modalities(own: "Shop") -> None:
    missing = ItemTable.load(own.run / "encoder" / "table").missing
    assert missing is not None
    text, image, behaviour = missing.T.tolist()
    assert [row for row in range(30) if text[row] == ModalityStatus.ABSENT] == [NO_TEXT, NOTHING]
    assert [row for row in range(30) if image[row] == ModalityStatus.ABSENT] == [NO_PICTURE, NOTHING]
    assert [row for row in range(30) if image[row] == ModalityStatus.UNREADABLE] == [BROKEN_PICTURE]
    train = split_dataset(load_dataset(own.data), 0.0).parts.train
    cold = np.flatnonzero(popularity(train, 30) < EncoderConfig().min_events).tolist()
    assert [row for row in range(30) if behaviour[row] == ModalityStatus.COLD] == cold


def test_a_second_job_has_nothing_to_do(nightly: "Shop", encoded: Encoded) -> None:
    before = nightly.registry.current()
    inode = nightly.registry.pointer.stat().st_ino
    summary = nightly.reindex()
    assert (summary["outcome"], summary["bundle"], summary["why"]) == ("nothing to do", before, [])
    assert encoded == []
    assert len(nightly.registry.list()) == 1
    assert nightly.registry.pointer.stat().st_ino == inode


def test_new_changed_and_deleted_items(nightly: "Shop", encoded: Encoded) -> None:
    before, fitted = nightly.rows(), ItemTable.load(nightly.run / "encoder" / "table")
    Image.new("RGB", (16, 16), "white").save(nightly.data / "images" / "9.png")
    nightly.set(12, text="quite another text")
    nightly.edit(lambda rows: [*rows[1:], {"item_id": "new", "title": "", "text": "crimson", "image": ""}])
    summary = nightly.reindex()
    assert items(summary) == (1, 2, 27, 1)
    assert encoded == [[8, 11, 29]]  # i09, i12 and the new one
    assert summary["embedding"] == {"needed": 3, "encoded": 3, "resumed": 0, "saved": 0.9, "reused": 0}
    assert summary["why"] == ["items changed", "metadata changed", "popularity changed"]
    after, bundle = nightly.rows(), nightly.bundle()
    assert list(after) == load_dataset(nightly.data).item_ids()
    assert {item_id for item_id in after if after[item_id] != before.get(item_id)} == {"i09", "i12", "new"}
    np.testing.assert_allclose(np.load(bundle.path / "vectors.npy"), fresh_vectors(nightly), atol=2e-3)
    new = bundle.missing[29].tolist()
    assert new == [ModalityStatus.PRESENT, ModalityStatus.ABSENT, ModalityStatus.COLD]
    kept = bundle.layout.slice("behaviour")
    changed = np.load(bundle.path / "vectors.npy")[11, kept].astype(np.float64)
    known = fitted.vectors[12, kept].astype(np.float64)
    np.testing.assert_allclose(changed / np.linalg.norm(changed), known / np.linalg.norm(known), atol=2e-3)


def test_the_bundle_answers_with_its_new_item(nightly: "Shop") -> None:
    warm = int(np.flatnonzero((nightly.bundle().missing == ModalityStatus.PRESENT).all(axis=1))[0])
    nightly.edit(lambda rows: [*rows, {**rows[warm], "item_id": "twin"}])
    nightly.reindex()
    bundle = nightly.bundle()
    assert bundle.ids.row("twin") == 30
    query = bundle.vectors(np.array([30]))
    found = bundle.search(query, 5)
    np.testing.assert_array_equal(found.rows, exact_top_k(query, bundle.vectors(np.arange(31)), 5)[0])
    assert set(found.rows[0].tolist()[:2]) == {30, warm}
    # Its text and picture are those of the other, and its behaviour vector is imputed, so both have three slots.
    both = bundle.contributions(query, np.array([[30, warm]]))[0]
    np.testing.assert_allclose(both[:, :2], 1 / 3, atol=2e-3)
    length = BehaviourImputation.load(nightly.run / "encoder" / "imputation.safetensors").new_length
    assert both[0, 2] == pytest.approx(length**2 / 3, abs=2e-3)
    assert bundle.missing[30, 2] == ModalityStatus.COLD


def test_an_item_that_returns_has_its_behaviour_again(nightly: "Shop") -> None:
    before = nightly.rows()
    with_it = (nightly.data / "items.csv").read_bytes()
    nightly.edit(lambda rows: rows[:-1])
    nightly.reindex()
    assert "i29" not in nightly.rows()
    (nightly.data / "items.csv").write_bytes(with_it)
    summary = nightly.reindex()
    assert items(summary) == (1, 0, 29, 0)
    behaviour = nightly.bundle().layout.slice("behaviour")
    then, now = (np.frombuffer(rows["i29"], np.float16)[behaviour] for rows in (before, nightly.rows()))
    assert then.any()
    np.testing.assert_allclose(now.astype(np.float32), then.astype(np.float32), atol=1e-3)


def test_rows_stay_the_same_night_after_night(nightly: "Shop") -> None:
    """Also those of items that came after the fit, although their neighbours in a batch change."""
    nightly.edit(lambda rows: [*rows, {"item_id": "a", "title": "", "text": "teal thing", "image": "images/1.png"}])
    nightly.reindex()
    first = nightly.rows()
    nightly.edit(lambda rows: [{"item_id": "b", "title": "", "text": "amber", "image": ""}, *rows[:4], *rows[5:]])
    assert items(nightly.reindex()) == (1, 0, 30, 1)
    second = nightly.rows()
    assert {item_id: second[item_id] for item_id in second if item_id != "b"} == {
        item_id: first[item_id] for item_id in first if item_id != "i04"
    }


def test_metadata_alone_loads_no_model(nightly: "Shop", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.backbones.trained_model.TrainedModel.load", lambda _self: pytest.fail("the model was loaded")
    )
    before = nightly.rows()
    nightly.edit(lambda rows: [{**row, "colour": "red"} for row in rows])
    summary = nightly.reindex()
    assert (summary["outcome"], summary["why"]) == ("published", ["metadata changed"])
    assert items(summary) == (0, 0, 30, 0)
    assert nightly.rows() == before
    assert nightly.bundle().fields(3, ["colour"]) == {"colour": "red"}


def test_more_interactions_change_popularity_alone(nightly: "Shop") -> None:
    with (nightly.data / "interactions.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"late,i{row:02d},{2_000_000 + row}\n" for row in (1, 1, 2, 3))
    summary = nightly.reindex()
    assert summary["why"] == ["popularity changed"]
    train = split_dataset(load_dataset(nightly.data), 0.0).parts.train
    np.testing.assert_array_equal(nightly.bundle().popularity, popularity(train, 30))


def test_an_unreadable_picture_becomes_readable(nightly: "Shop") -> None:
    assert nightly.reindex()["unreadable"].keys() == {"i05"}
    Image.new("RGB", (16, 16), "teal").save(nightly.data / "images" / "5.png")
    (nightly.data / "images" / "8.png").write_bytes(b"broken")
    summary = nightly.reindex()
    assert items(summary) == (0, 2, 28, 0)
    assert list(summary["unreadable"]) == ["i08"]
    assert nightly.bundle().missing[[5, 8], 1].tolist() == [ModalityStatus.PRESENT, ModalityStatus.UNREADABLE]


def test_no_decoder_error_ends_the_job(nightly: "Shop") -> None:
    """A damaged AVIF raises RuntimeError; odd EXIF raised struct.error although every viewer shows the picture."""
    unit = struct.pack("<HHHIIHHIIIII", 2, 274, 3, 1, 6, 296, 5, 1, 38, 0, 1, 2)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + unit
    Image.new("RGB", (20, 16), "teal").save(nightly.data / "images" / "7.png", exif=exif)
    (nightly.data / "images" / "8.png").write_bytes(b"\0\0\0\x18ftypavif\0\0\0\0avifmif1")
    summary = nightly.reindex()
    assert items(summary) == (0, 2, 28, 0)
    assert list(summary["unreadable"]) == ["i05", "i08"]
    assert nightly.bundle().missing[[7, 8], 1].tolist() == [ModalityStatus.PRESENT, ModalityStatus.UNREADABLE]


def test_the_bundle_remembers_that_seen_items_are_answered(nightly: "Shop", encoded: Encoded) -> None:
    path = nightly.run / "encoder" / "fit.json"
    record = json.loads(path.read_text())
    record["config"]["exclude_seen"] = False
    path.write_text(json.dumps(record))
    assert nightly.bundle().manifest.exclude_seen is True
    nightly.reindex()
    assert nightly.bundle().manifest.exclude_seen is False
    assert encoded == []


def test_a_picture_that_is_not_found_is_a_case_of_its_own(nightly: "Shop") -> None:
    (nightly.data / "images" / "8.png").unlink()
    nightly.set(9, image="../outside.png")
    summary = nightly.reindex("--bound", "missing_files=none")
    assert summary["items"]["not_found"] == 2
    assert summary["items"]["unreadable"] == 1
    assert nightly.bundle().missing[[5, 8, 9, 4], 1].tolist() == [
        ModalityStatus.UNREADABLE, ModalityStatus.NOT_FOUND, ModalityStatus.NOT_FOUND, ModalityStatus.ABSENT
    ]  # fmt: skip
    report = json.loads((nightly.bundle().path / "report.json").read_text())
    assert report["missing"]["image"]["not_found"] == 2
    assert "file not found" in (nightly.bundle().path / "report.html").read_text()


def test_another_index_is_a_reason_and_embeds_nothing(nightly: "Shop", encoded: Encoded) -> None:
    before = nightly.rows()
    summary = nightly.reindex("--kind", "hnsw")
    assert (summary["outcome"], summary["why"]) == ("published", ["index changed"])
    assert encoded == []
    assert nightly.rows() == before
    assert nightly.bundle().manifest.index.kind == "hnsw"


def test_an_evaluation_goes_into_the_report(nightly: "Shop") -> None:
    figures = nightly.run / "evaluation.json"
    words = ["evaluate", str(nightly.data), "--run", str(nightly.run), "--json", str(figures)]
    assert CliRunner().invoke(app, words).exit_code == 0
    why = nightly.reindex("--bound", "served_quality=none")["why"]
    assert why == ["index changed", "evaluation changed"]  # the bound is part of what the index must be
    report = json.loads((nightly.bundle().path / "report.json").read_text())
    assert report["evaluation"] == json.loads(figures.read_text())
    assert report["quality"]["systems"]


def test_the_dtype_of_the_model_embeds_everything_and_says_why(nightly: "Shop", encoded: Encoded) -> None:
    before = np.load(nightly.bundle().path / "vectors.npy")
    config = nightly.run / "config.toml"
    config.write_text(config.read_text().replace('dtype = "float32"', 'dtype = "bfloat16"'))
    result = nightly.invoke()
    assert result.exit_code == 0, result.output
    assert "embedding every item" in result.output
    assert "dtype 'float32' → 'bfloat16'" in result.output
    assert "0 new, 30 changed, 0 unchanged, 0 deleted" in result.output
    assert sum(map(len, encoded)) == 30
    bundle = nightly.bundle()
    assert bundle.manifest.model["embeddings"]["dtype"] == "bfloat16"
    made = np.load(bundle.path / "vectors.npy")
    np.testing.assert_allclose(made, fresh_vectors(nightly), atol=2e-3)
    assert np.abs(made - before).max() > 2e-3  # half as many digits show


def test_a_damaged_current_bundle_is_built_again(nightly: "Shop") -> None:
    before = nightly.rows()
    damaged = nightly.registry.path(str(nightly.registry.current())) / "vectors.npy"
    damaged.chmod(0o644)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    summary = nightly.reindex()
    assert summary["outcome"] == "published"
    assert "damaged" in summary["why"][0]
    assert nightly.rows() == before


def test_a_pointer_that_was_moved_back_is_left_there(nightly: "Shop") -> None:
    first = nightly.registry.current()
    nightly.set(0, title="another title")
    second = nightly.reindex()["bundle"]
    assert nightly.registry.rollback() == first
    summary = nightly.reindex()
    assert (summary["outcome"], summary["bundle"]) == ("nothing to do", second)
    assert f"moved from {second}" in summary["why"][0]
    assert nightly.registry.current() == first
    nightly.set(0, title="yet another")
    assert nightly.reindex()["outcome"] == "published"


def test_another_registry_gets_its_own_bundle(nightly: "Shop", tmp_path: Path) -> None:
    summary = nightly.reindex("--registry", tmp_path / "other")
    assert summary["outcome"] == "published"
    assert Registry(tmp_path / "other").current() == summary["bundle"]


def test_a_bundle_that_was_made_by_hand_is_replaced(nightly: "Shop", tmp_path: Path, small_bundle: Path) -> None:
    Registry(tmp_path / "other").publish(small_bundle)
    assert "items of the current bundle" in nightly.reindex("--registry", tmp_path / "other", code=1)["error"]
    summary = nightly.reindex("--registry", tmp_path / "other", "--force")
    assert "not made by reindex" in summary["why"][0]


def test_old_bundles_are_deleted_on_request(nightly: "Shop") -> None:
    bundles = [nightly.registry.current()]
    for title in ("a", "b", "c"):
        nightly.set(0, title=title)
        summary = nightly.reindex("--keep", 3)
        bundles.append(summary["bundle"])
    assert summary["pruned"] == bundles[:1]
    assert [info.id for info in nightly.registry.list()] == bundles[1:]
    assert nightly.reindex("--keep", 1)["pruned"] == bundles[1:2]  # also where there is nothing else to do
    assert nightly.registry.current() == bundles[3]
    assert nightly.registry.rollback() == bundles[2]  # the one before is never deleted


def test_nothing_is_left_over(nightly: "Shop") -> None:
    nightly.set(0, text="another text")
    for path in (nightly.run / "reindex" / "built" / "20200101T000000Z-abcdef", nightly.run / "embeddings" / "work-0"):
        path.mkdir(parents=True)
    for name in (".table-000007.part", ".lists.part", "lists-0123456789abcdef"):
        (nightly.run / "reindex" / name).mkdir()
    nightly.reindex()
    lists, *others = sorted(path.name for path in (nightly.run / "reindex").iterdir())
    assert (lists[:6], others) == ("lists-", ["state.json", "table-000002"])
    assert lists != "lists-0123456789abcdef"
    names = sorted(path.name for path in (nightly.run / "embeddings").iterdir())
    assert names == [
        "embeddings.json", "image-000002.npy", "items-000002.parquet", "text-000002.npy", "unreadable.json",
        "unused-000002.parquet", "unused_text-000002.npy",
    ]  # fmt: skip


def test_a_damaged_table_falls_back_to_the_fitted_one(nightly: "Shop") -> None:
    before = nightly.rows()
    (nightly.run / "reindex" / "table-000001" / "vectors.npy").write_bytes(b"\x93NUMPY")
    nightly.set(0, text="another text")
    assert items(nightly.reindex()) == (0, 1, 29, 0)
    after = nightly.rows()
    assert [item_id for item_id in after if after[item_id] != before[item_id]] == ["i00"]


def test_after_another_fit_the_rows_are_those_of_its_table(nightly: "Shop") -> None:
    """A fit writes new slots and a new ``fit.json``; here every vector is turned round, which no other table has."""
    directory = nightly.run / "encoder"
    turned = -np.load(directory / "table" / "vectors.npy")
    np.save(directory / "table" / "vectors.npy", turned)
    (directory / "fit.json").write_text((directory / "fit.json").read_text() + " ")
    summary = nightly.reindex()
    assert summary["why"] == ["encoder changed"]
    assert items(summary) == (0, 0, 30, 0)
    np.testing.assert_array_equal(np.load(nightly.bundle().path / "vectors.npy"), turned)


def test_without_a_record_of_contents_every_row_is_made_anew(nightly: "Shop") -> None:
    before = nightly.rows()
    (nightly.run / "encoder" / "contents.parquet").unlink()
    shutil.rmtree(nightly.run / "reindex")
    nightly.edit(lambda rows: [{**rows[0], "item_id": "new"}, *rows[:-1]])
    assert items(nightly.reindex()) == (1, 29, 0, 1)
    for item_id, row in list(nightly.rows().items())[1:]:
        then, now = np.frombuffer(before[item_id], np.float16), np.frombuffer(row, np.float16)
        np.testing.assert_allclose(now.astype(np.float32), then.astype(np.float32), atol=2e-3)


def test_the_manifest_names_every_input(nightly: "Shop") -> None:
    model = Manifest.read(nightly.bundle().path).model
    assert set(model["reindex"]) == {
        "items", "metadata", "popularity", "encoder", "model", "index", "evaluation", "format", "thumbnails"
    }  # fmt: skip
    assert model["embeddings"]["kind"] == "vlm"


def test_evaluation_queries_follow_their_items() -> None:
    before, now = ItemIds("abcde"), ItemIds("edxa")  # b and c are gone, x is new
    queries = EvaluationQueries(
        np.array([[0, 1, 3], [1, 2, -1], [4, 3, 0], [2, 0, -1], [3, -1, -1]]), np.array([4, 0, 1, 3, 0])
    )
    moved = remap_queries(queries, before, now)
    # a b d → e: b is left out. b c → a: no history is left. e d a → b: no target. c a → d: c is left out. d → a.
    assert moved.histories.tolist() == [[3, 1, -1], [3, -1, -1], [1, -1, -1]]
    assert moved.targets.tolist() == [0, 1, 3]
    none = EvaluationQueries(np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=np.int64))
    assert len(remap_queries(none, before, now)) == 0
    assert len(remap_queries(queries, before, ItemIds("xyz"))) == 0
