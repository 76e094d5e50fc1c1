"""Bundles with new items: what is kept for them, what is measured, what is said of imputed behaviour vectors."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.online.index import app
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.errors import IndexSpecError, SearchError
from tests.support.listed_bundles import random_lists, with_new_items
from training.nightly.record import digest_of

ITEMS = 300
NEW = list(range(10, 300, 10))


@pytest.fixture(scope="module")
def build(make_table, make_evaluation_queries, encoder_path):
    def call(out, *, length=0.5, lists=None, **spec):
        table = with_new_items(make_table(ITEMS), NEW, length)
        spec = IndexSpec(**{"kind": "flat", "threads": 1, "evaluation_queries": 40} | spec)
        return build_bundle(table, encoder_path, make_evaluation_queries(ITEMS), out, spec, lists=lists)

    return call


def test_the_share_is_in_the_manifest_only_if_it_is_not_0(build, tmp_path):
    kept, none = build(tmp_path / "kept", fresh_share=0.1), build(tmp_path / "none")
    assert json.loads((kept / "manifest.json").read_text())["fresh_share"] == 0.1
    assert "fresh_share" not in json.loads((none / "manifest.json").read_text())
    assert (Manifest.read(kept).fresh_share, Manifest.read(none).fresh_share) == (0.1, 0.0)
    registry = Registry(tmp_path / "registry")
    assert Manifest.read(registry.path(registry.publish(kept))).fresh_share == 0.1


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(IndexSpecError, match=r"fresh_share must be 0 … 1, got .*; 0 keeps no place for new items"):
        IndexSpec(fresh_share=share)


def test_the_fingerprint_of_a_specification_depends_on_a_share_above_0_only():
    spec = IndexSpec()
    others = {part.name: getattr(spec, part.name) for part in fields(spec) if part.name != "fresh_share"}
    assert digest_of(spec) == digest_of(others)  # as before there was a share: nothing is built again for it
    assert digest_of(IndexSpec(fresh_share=0.1)) != digest_of(IndexSpec())


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("listed", [False, True])
def test_the_search_for_new_items_has_a_recall_of_its_own(build, tmp_path, kind, listed):
    lists = random_lists(ITEMS) if listed else None
    recall = Manifest.read(build(tmp_path / "kept", fresh_share=0.1, kind=kind, lists=lists)).index.recall
    assert recall["new items"] >= (1.0 if kind == "flat" else 0.95)
    assert "new items" not in Manifest.read(build(tmp_path / "none", kind=kind, lists=lists)).index.recall


def test_imputed_vectors_are_counted_apart_in_the_report(build, tmp_path):
    filled, empty = build(tmp_path / "filled"), build(tmp_path / "empty", length=0.0)
    for bundle, imputed in ((filled, len(NEW)), (empty, 0)):
        found = json.loads((bundle / "report.json").read_text())["missing"]
        assert found["behaviour"]["imputed"] == imputed
        assert found["behaviour"]["cold"] == len(NEW) + 1  # row 3 has no slot
        assert "imputed" not in found["text"]
    text = re.sub(r"\s+", " ", (filled / "report.html").read_text())
    sentence = "29 of 30 items with too little history have a behaviour vector that is predicted"
    assert sentence in text
    assert "predicted from their text" not in (empty / "report.html").read_text()
    shown = CliRunner().invoke(app, ["show", str(filled)]).stdout
    assert "without behaviour: 0 not in the catalogue, 0 unreadable, 0 not found, " in shown
    assert "30 with too little history, 29 of these imputed" in shown
    assert "of these imputed" not in CliRunner().invoke(app, ["show", str(empty)]).stdout


def test_a_bundle_says_which_vectors_are_imputed(build, tmp_path):
    bundle = Bundle.load(build(tmp_path))
    assert np.flatnonzero(bundle.imputed(np.arange(ITEMS))).tolist() == NEW
    assert bundle.imputed(np.array([3, 20, 21])).tolist() == [False, True, False]
    assert bundle.imputed(np.array([], dtype=np.int64)).shape == (0,)
    with pytest.raises(SearchError, match="rows must lie in 0 … 299, got 300"):
        bundle.imputed(np.array([300]))


def test_lists_are_named_in_the_list_of_bundles_and_in_the_memory(build, tmp_path):
    plain, listed = build(tmp_path), build(tmp_path, lists=random_lists(ITEMS, neighbours=8))
    registry = Registry(tmp_path / "registry")
    for bundle in (plain, listed):
        registry.publish(bundle)
    of_plain, of_listed = registry.list()
    assert (of_plain.lists, of_listed.lists) == ({}, {"co": 8, "words": 8, "look": 8})
    header, first, second = CliRunner().invoke(app, ["list", "--registry", str(registry.root)]).stdout.splitlines()
    assert header.split()[-2:] == ["lists", "verdict"]
    assert "co 8, words 8, look 8" in second
    assert "co 8" not in first
    size = json.loads((listed / "report.json").read_text())["memory"]["lists"]
    text = re.sub(r"\s+", " ", (listed / "report.html").read_text())
    assert f"vectors, index and lists ({size / 1000:.3g} kB) are mapped from disk" in text
    assert "vectors and index are mapped from disk" in (plain / "report.html").read_text()


def test_the_command_takes_the_share(make_table, make_evaluation_queries, encoder_path, tmp_path):
    encoder = tmp_path / "run" / "encoder"
    with_new_items(make_table(80), [10, 20], 0.5).save(encoder / "table")
    make_evaluation_queries(80).save(encoder / "probes.npz")
    (encoder / "encoder.onnx").write_bytes(encoder_path.read_bytes())
    result = CliRunner().invoke(app, ["build", "--run", str(tmp_path / "run"), "--fresh-share", "0.1"])
    assert result.exit_code == 0, result.output
    (bundle,) = (tmp_path / "run" / "bundles").iterdir()
    assert Manifest.read(bundle).fresh_share == 0.1
    assert "new items" in result.stdout
