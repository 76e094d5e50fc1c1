"""The nightly job of a refitted run: it keeps to what serves, and its bundle names both encoders."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from index.bundle.encoder_pair import EncoderPair
from index.items.item_table import ItemTable
from index.lists.item_lists import ItemLists
from training.config.encoder_config import EncoderConfig
from training.data.dataset import load_dataset
from training.data.sequences import popularity
from training.embedding.store import Embeddings
from training.encoder.job import fit_run, split_dataset
from training.encoder.onnx_export import ExportParity

if TYPE_CHECKING:
    from conftest import Shop

Run = tuple[Path, dict[str, Any]]


@pytest.fixture
def refitted(
    own: "Shop", ring_run: Run, small_config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple["Shop", EncoderPair]:
    """The shop before its first job, its encoder fitted with a refit; the two exports are of different bytes."""
    exports: list[Path] = []

    def use_the_ring_s(_encoder: object, _layout: object, path: Path, *, seed: int) -> ExportParity:
        shutil.copyfile(ring_run[0] / "encoder" / "encoder.onnx", path)
        if exports:  # protobuf skips an unknown field
            path.write_bytes(path.read_bytes() + b"\xf8\x3f\x01")
        exports.append(path)
        return ExportParity(seed, 0.0)

    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", use_the_ring_s)
    embeddings = Embeddings.load(own.run / "embeddings")
    config = small_config.model_copy(update={"epochs": 2, "refit": True, "min_events": 2})
    record = fit_run(load_dataset(own.data), embeddings, config, own.run / "encoder")
    assert len(exports) == 2
    hashes = record["model"]["encoder"]
    return own, EncoderPair(served=hashes["served"], measured=hashes["hash"])


def test_the_bundle_is_of_what_serves_and_names_both(refitted: tuple["Shop", EncoderPair]) -> None:
    shop, pair = refitted
    assert shop.reindex()["outcome"] == "published"
    bundle, served = shop.bundle(), shop.run / "encoder" / "served"
    assert bundle.manifest.refit == pair
    table = ItemTable.load(served / "table")
    np.testing.assert_array_equal(np.load(bundle.path / "vectors.npy"), table.vectors)
    every = split_dataset(load_dataset(shop.data), 0.0).sequences
    np.testing.assert_array_equal(table.popularity, popularity(every, len(table)))
    if bundle.list_scores is not None:
        lists = ItemLists.load(served / "lists", len(table)).used()
        for one, other in zip(bundle.list_scores.lists.lists, lists.lists, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
    assert bundle.manifest.model["encoder"] == {"hash": pair.served, "measured": pair.measured}
    shop.edit(lambda rows: [*rows, {**rows[1], "item_id": "new"}])
    assert shop.reindex()["outcome"] == "published"
    assert shop.bundle().manifest.refit == pair
    assert shop.reindex()["outcome"] == "nothing to do"


def test_an_evaluation_of_another_pair_is_refused(refitted: tuple["Shop", EncoderPair], tmp_path: Path) -> None:
    shop, pair = refitted
    rows = [{"name": name, "ndcg@10": 0.1, "ratio_to_popularity": {}} for name in ("popularity", "served encoder")]
    evaluation = {"tables": [{"name": "test", "users": 3, "items": 30, "rows": rows}], "lists": {}}
    shutil.rmtree(shop.run / "encoder/served/lists")
    shutil.rmtree(shop.run / "encoder/lists")
    path = shop.run / "encoder" / "fit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lists": {}}))
    for served, code in (("0" * 16, 2), (pair.served, 0)):
        named = {"hash": pair.measured, "served": served}
        (tmp_path / "figures.json").write_text(json.dumps(evaluation | {"model": {"encoder": named}}))
        words = ("--evaluation", tmp_path / "figures.json", "--bound", "served_quality=none")
        summary = shop.reindex(*words, code=code)
        if code:
            assert "as its refit" in summary["error"]


@pytest.mark.parametrize("name", ["encoder.onnx", "served/encoder.onnx"])
def test_another_encoder_on_either_side_is_refused(refitted: tuple["Shop", EncoderPair], name: str) -> None:
    shop, _ = refitted
    path = shop.run / "encoder" / name
    path.write_bytes(path.read_bytes() + b"\xf8\x3f\x02")
    summary = shop.reindex(code=2)
    assert "belong together" in summary["error"]
