"""Bundles that are built with item-to-item lists: what is taken, what is measured, what is refused."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.errors import IndexSpecError, ItemListError
from index.lists.item_lists import ItemLists
from tests.support.listed_bundles import random_lists

ITEMS = 300
NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def build(make_table, make_evaluation_queries, encoder_path):
    def call(out, lists, kind="flat", **more):
        spec = IndexSpec(kind=kind, threads=1, evaluation_queries=40)
        queries = make_evaluation_queries(ITEMS)
        return build_bundle(make_table(ITEMS), encoder_path, queries, out, spec, lists=lists, now=NOW, **more)

    return call


@pytest.fixture(scope="module")
def listed(build, tmp_path_factory):
    return build(tmp_path_factory.mktemp("listed"), random_lists(ITEMS, neighbours=20))


def report_of(bundle):
    return json.loads((bundle / "report.json").read_text())


def test_the_bundle_holds_the_lists_and_can_be_published(listed, tmp_path):
    manifest = Manifest.read(listed)
    assert manifest.format == 3
    assert {f"lists/{name}-rows.npy" for name in ("co", "words", "look")} | {"lists/lists.json"} <= set(manifest.files)
    found, lists = Bundle.load(listed, verify="full").list_scores.lists, random_lists(ITEMS, neighbours=20)
    for one, other in zip(found.lists, lists.lists, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
    registry = Registry(tmp_path)
    assert registry.publish(listed) == manifest.id
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in registry.path(manifest.id).rglob("*.npy"))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_recall_is_against_the_whole_score(build, tmp_path, kind):
    manifest = Manifest.read(build(tmp_path, random_lists(ITEMS, neighbours=20), kind))
    assert {"plain", "text x3", "behaviour alone", "filtered 10 %", "plain top 200"} <= set(manifest.index.recall)
    assert min(manifest.index.recall.values()) >= (1.0 if kind == "flat" else 0.95)


def test_the_report_describes_the_lists(listed, build, tmp_path):
    report, lists = report_of(listed), random_lists(ITEMS, neighbours=20)
    described = {part["name"]: part for part in report["lists"]["lists"]}
    assert [(part["slot"], part["weight"]) for part in described.values()] == [
        ("behaviour", 0.7), ("text", 0.4), ("image", 0.25)
    ]  # fmt: skip
    lengths = np.diff(lists.lists[0].offsets)
    assert described["co"]["neighbours"] == lengths.max()
    assert described["co"]["mean_neighbours"] == round(float(lengths.mean()), 1)
    assert described["co"]["items"] == (lengths > 0).sum()
    assert report["lists"]["plain_recall_without"] == 1.0
    without = report_of(build(tmp_path, None))
    assert "lists" not in without
    shares, shares_without = report["answers"]["slot_shares"], without["answers"]["slot_shares"]
    assert shares["behaviour"] > shares_without["behaviour"]
    assert 0 < described["co"]["share"] < shares["behaviour"]
    assert Manifest.read(listed).gate.figures["slot_share.behaviour"] == shares["behaviour"]
    memory = report["memory"]
    assert memory["lists"] == sum(path.stat().st_size for path in (listed / "lists").iterdir())
    assert "lists" not in without["memory"]


def test_the_page_has_a_row_for_each_list(listed, build, tmp_path):
    text = re.sub(r"\s+", " ", (listed / "report.html").read_text())
    assert "<h2>Item-to-item lists</h2>" in text
    assert "by slots and lists together" in text
    for name, slot in (("co", "behaviour"), ("words", "text"), ("look", "image")):
        assert f"<td>{name}</td><td>{slot}</td>" in text
    assert "Item-to-item lists" not in (build(tmp_path, None) / "report.html").read_text()


def test_lists_without_weight_or_slot_are_left_out(build, tmp_path, make_table, make_evaluation_queries, encoder_path):
    lists = random_lists(ITEMS, weights={"co": 0.0, "words": 0.4})
    path = build(tmp_path / "words", lists)
    assert [part.name for part in Manifest.read(path).lists.lists] == ["words"]
    assert sorted(file.name for file in (path / "lists").iterdir()) == [
        "lists.json", "words-offsets.npy", "words-rows.npy", "words-similarities.npy"
    ]  # fmt: skip
    unused = build(tmp_path / "unused", random_lists(ITEMS, weights={"co": 0.0}))
    none = build(tmp_path / "none", None)
    assert (Manifest.read(unused).format, Manifest.read(none).format) == (2, 2)
    assert {path.name for path in unused.iterdir()} == {path.name for path in none.iterdir()}


def test_lists_of_another_catalogue_are_refused(build, tmp_path):
    with pytest.raises(ItemListError, match="the lists are of 299 items, the item table has 300"):
        build(tmp_path, random_lists(ITEMS - 1))
    assert not list(tmp_path.iterdir())


def test_damaged_lists_are_refused(build, tmp_path):
    lists = random_lists(ITEMS)
    rows = lists.lists[0].rows.copy()
    rows[5] = ITEMS
    damaged = ItemLists(ITEMS, (replace(lists.lists[0], rows=rows), *lists.lists[1:]), lists.weights)
    with pytest.raises(ItemListError, match="rows must lie in 0 … 299"):
        build(tmp_path, damaged)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_counts_only_for_the_same_lists(build, tmp_path, make_evaluation):
    lists, evaluation = random_lists(ITEMS), make_evaluation()
    with pytest.raises(IndexSpecError, match="measured no item-to-item lists, this bundle gets the item-to-item lists"):
        build(tmp_path, lists, evaluation=evaluation)
    evaluation["lists"] = dict(lists.weights.weights)
    assert Manifest.read(build(tmp_path, lists, evaluation=evaluation)).gate.figures["served_quality"] == 3.0
    with pytest.raises(
        IndexSpecError, match=r"lists co 0\.7, words 0\.4, look 0\.25, this bundle gets no item-to-item"
    ):
        build(tmp_path, None, evaluation=evaluation)
    evaluation["lists"]["co"] = 0.8
    with pytest.raises(IndexSpecError, match="evaluate again"):
        build(tmp_path, lists, evaluation=evaluation)
