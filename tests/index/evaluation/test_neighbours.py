"""Neighbours by one slot, near-duplicate pictures and disagreeing items, against brute force and planted cases."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from index.evaluation.catalogue_audit import audit_catalogue
from index.evaluation.disagreement import FEWEST_ITEMS, NEAREST, disagreement
from index.evaluation.near_duplicates import COSINE, near_duplicates
from index.evaluation.neighbours import KEPT_CLOSE, nearest, sample_rows
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus
from index.items.slots import Slot, SlotLayout

LAYOUT = SlotLayout((Slot("text", 8), Slot("image", 6)))
TEXT, IMAGE = LAYOUT.slice("text"), LAYOUT.slice("image")


def quiet(_share):
    pass


def clustered(rng, items, clusters=10, noise=0.25):
    """Text and picture of each item come from the same cluster; gives both and the cluster, (n,) int."""
    of = rng.integers(0, clusters, items)
    text = rng.normal(size=(clusters, 8))[of] + noise * rng.normal(size=(items, 8))
    image = rng.normal(size=(clusters, 6))[of] + noise * rng.normal(size=(items, 6))
    return text, image, of


def brute(vectors, members, candidates, sample, k, bound):
    unit = vectors[:, IMAGE].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    rows, close, first = [], [], []
    for row in sample:
        others = [(float(unit[row] @ unit[other]), int(other)) for other in members if other != row]
        near = sorted((-cosine, other) for cosine, other in others if candidates[other])[:k]
        rows.append([other for _, other in near] + [-1] * (k - len(near)))
        matched = [other for cosine, other in others if cosine >= bound]
        close.append(len(matched))
        first.append((matched + [-1] * KEPT_CLOSE)[:KEPT_CLOSE])
    return np.array(rows), np.array(close), np.array(first)


@pytest.mark.parametrize("block", [7, 10_000])
@pytest.mark.parametrize("k", [1, 5, 400])
def test_nearest_is_brute_force(monkeypatch, block, k):
    monkeypatch.setattr("index.evaluation.neighbours._LARGEST_BLOCK", block)
    rng = np.random.default_rng(3)
    text, image, _ = clustered(rng, 200, noise=0.05)
    image[::9] = 0
    vectors = LAYOUT.stack({"text": text, "image": image})
    members = np.flatnonzero(np.any(image != 0, axis=1))
    candidates = rng.random(200) < 0.8
    sample = members[5::3]
    found = nearest(vectors, IMAGE, members, candidates, sample, k=k, bound=0.99, progress=quiet)
    rows, close, first = brute(vectors, members, candidates, sample, k, 0.99)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.close, close)
    np.testing.assert_array_equal(found.first_close, first)
    assert close.max() > KEPT_CLOSE


def test_progress_is_reported():
    vectors = LAYOUT.stack({"image": np.random.default_rng(0).normal(size=(40_000, 6))})
    shares = []
    nearest(
        vectors,
        IMAGE,
        np.arange(40_000),
        np.ones(40_000, bool),
        np.arange(3),
        k=2,
        bound=0.99,
        progress=shares.append,
    )
    assert shares == [0.0, 16_384 / 40_000, 32_768 / 40_000]


def test_a_sample_is_seeded_and_keeps_to_its_budget():
    members = np.arange(0, 3000, 2)
    assert sample_rows(members, comparisons=10**9, smallest=1, seed=0) is members
    some = sample_rows(members, comparisons=1500 * 40, smallest=1, seed=0)
    assert len(set(some.tolist())) == 40
    assert set(some.tolist()) <= set(members.tolist())
    assert (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, sample_rows(members, comparisons=1500 * 40, smallest=1, seed=0))
    assert (some != sample_rows(members, comparisons=1500 * 40, smallest=1, seed=1)).any()
    assert len(sample_rows(members, comparisons=0, smallest=17, seed=0)) == 17


def pictures(groups, items=120, seed=0):
    """Vectors in which the rows of each group have the same picture but for a trace of noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(items, 6))
    for rows in groups:
        image[rows] = image[rows[0]] + 1e-4 * rng.normal(size=(len(rows), 6))
    return LAYOUT.stack({"text": rng.normal(size=(items, 8)), "image": image}).astype(np.float16)


def test_planted_repeats_are_found_and_nothing_else():
    groups = [[3, 50, 70], [10, 11], [90, *range(100, 120)]]
    vectors, members = pictures(groups), np.arange(120)
    near = nearest(vectors, IMAGE, members, np.ones(120, bool), members, k=3, bound=COSINE, progress=quiet)
    found = near_duplicates(near, 120)
    assert [(list(rows), size) for rows, size in found.groups] == [
        ([90, *range(100, 120)], 21),
        ([3, 50, 70], 3),
        ([10, 11], 2),
    ]
    assert (found.repeated, found.sampled, found.pictured) == (26, 120, 120)
    assert found.share == 26 / 120


def test_a_chain_is_one_group():
    """Neighbours of neighbours belong together, although the ends are no near-duplicates of one another."""
    angles = np.arange(12) * 0.09  # cos 0.09 = 0.99595, cos 0.18 = 0.984
    image = np.zeros((12, 6))
    image[:, 0], image[:, 1] = np.cos(angles), np.sin(angles)
    vectors = LAYOUT.stack({"image": image})
    near = nearest(vectors, IMAGE, np.arange(12), np.ones(12, bool), np.arange(12), k=1, bound=COSINE, progress=quiet)
    assert near.close.tolist() == [1, *[2] * 10, 1]
    assert near_duplicates(near, 12).groups == ((tuple(range(12)), 12),)


def test_a_sample_counts_all_copies_of_a_placeholder():
    """A thousand items with one picture, of which ten are looked at: one group, its size counted over all."""
    image = np.random.default_rng(1).normal(size=(3000, 6))
    image[1000:2000] = image[1000]
    vectors = LAYOUT.stack({"image": image})
    sample = np.array([5, 6, *range(1500, 1510)])
    near = nearest(vectors, IMAGE, np.arange(3000), np.ones(3000, bool), sample, k=1, bound=0.9999, progress=quiet)
    (group,) = near_duplicates(near, 3000).groups
    assert group[1] == 1000
    assert set(range(1500, 1510)) <= set(group[0])


def agreement_of(text, image, sample=None):
    vectors = LAYOUT.stack({"text": text, "image": image}).astype(np.float16)
    has_text, has_image = np.any(text != 0, axis=1), np.any(image != 0, axis=1)
    members, both = np.flatnonzero(has_image), has_text & has_image
    chosen = members if sample is None else sample
    near = nearest(vectors, IMAGE, members, both, chosen, k=NEAREST, bound=COSINE, progress=quiet)
    return disagreement(vectors, TEXT, np.flatnonzero(both), near, seed=0), vectors


def test_p_follows_its_definition():
    """One pair at a time: whose look-alikes read more like item i, leaving i out of every neighbourhood."""
    rng = np.random.default_rng(5)
    text, image, _ = clustered(rng, 60, clusters=3, noise=0.8)
    found, vectors = agreement_of(text, image)
    unit = vectors[:, TEXT].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    left_out = 0
    for item in range(60):
        fits = []
        for stranger in np.delete(np.arange(60), item):
            members = [row for row in found.neighbours[stranger] if row != item]
            left_out += len(members) < NEAREST
            fits.append((unit[members] @ unit[item]).mean())
        own = (unit[found.neighbours[item]] @ unit[item]).mean()
        assert found.p[item] == pytest.approx(np.mean(np.array(fits) > own), abs=1e-9)
        assert found.own[item] == pytest.approx(own, abs=1e-6)
        assert found.strangers[item] == pytest.approx(np.mean(fits), abs=1e-6)
    assert left_out > 100


@pytest.mark.parametrize("clusters", [4, 10, 30])
def test_planted_disagreement_is_found(clusters):
    """60 of 600 items get the picture of an item of another cluster."""
    rng = np.random.default_rng(7)
    text, image, of = clustered(rng, 600, clusters)
    planted = np.sort(rng.choice(600, 60, replace=False))
    given = image.copy()
    for row in planted:
        given[row] = image[rng.choice(np.flatnonzero(of != of[row]))]
    found, _ = agreement_of(text, given)
    suspects, truth = found.rows[found.suspects].tolist(), set(planted.tolist())
    # A picture of a cluster that reads alike is not seen: the strangers' fit is spread over 0 … 1, about half above ½.
    assert 0.06 < found.share < 0.16
    assert len(set(suspects) & truth) >= 20
    assert len(set(suspects) - truth) <= 6
    assert len(set(suspects[:10]) & truth) >= 9  # the worst come first
    assert found.own.mean() > found.strangers.mean() + 0.3


def test_unrelated_texts_and_pictures_all_disagree():
    """Pictures shuffled over all items: p is uniform, and the estimate is 1 within its error (0.045 at 2,000 items)."""
    rng = np.random.default_rng(11)
    text, image, _ = clustered(rng, 2000)
    found, _ = agreement_of(text, image[rng.permutation(2000)])
    assert 0.9 < found.share <= 1
    counts, _ = np.histogram(found.p, bins=5, range=(0, 1))
    assert counts.min() > 300
    assert abs(found.own.mean() - found.strangers.mean()) < 0.02
    related, _ = agreement_of(text, image)
    assert related.share < 0.01


def test_many_strangers_are_sampled(monkeypatch):
    rng = np.random.default_rng(17)
    text, image, _ = clustered(rng, 400)
    all_of_them, _ = agreement_of(text, image)
    monkeypatch.setattr("index.evaluation.disagreement._STRANGERS", 100)
    monkeypatch.setattr("index.evaluation.disagreement._BLOCK_ITEMS", 64)
    some, _ = agreement_of(text, image)
    again, _ = agreement_of(text, image)
    np.testing.assert_array_equal(some.p, again.p)
    assert 0 < np.abs(some.p - all_of_them.p).max() < 0.2


def test_items_without_text_are_ignored():
    rng = np.random.default_rng(13)
    text, image, _ = clustered(rng, 300)
    text[:100] = 0
    found, _ = agreement_of(text, image)
    assert found.rows.tolist() == list(range(100, 300))
    assert found.neighbours.min() >= 100
    few, _ = agreement_of(text[: 100 + FEWEST_ITEMS - 1], image[: 100 + FEWEST_ITEMS - 1])
    assert few is None
    enough, _ = agreement_of(text[: 100 + FEWEST_ITEMS], image[: 100 + FEWEST_ITEMS])
    assert len(enough.rows) == FEWEST_ITEMS
    nobody, _ = agreement_of(text, image, sample=np.arange(20))
    assert nobody is None


def test_identical_texts_are_no_error():
    found, _ = agreement_of(np.ones((80, 8)), np.random.default_rng(0).normal(size=(80, 6)))
    assert np.isfinite(found.p).all()
    assert 0 <= found.share <= 1


@pytest.fixture
def table():
    """100 items; i0 … i4 share a picture, i5 lacks its picture and i6 could not be read, i7 lacks its text."""
    rng = np.random.default_rng(2)
    text, image = rng.normal(size=(100, 8)), rng.normal(size=(100, 6))
    image[1:5] = image[0]
    image[5:7] = 0
    text[7] = 0
    missing = np.zeros((100, 2), dtype=np.uint8)
    missing[7, 0], missing[5, 1], missing[6, 1] = (
        ModalityStatus.ABSENT,
        ModalityStatus.ABSENT,
        ModalityStatus.UNREADABLE,
    )
    return ItemTable(
        layout=LAYOUT,
        ids=ItemIds(f"i{row}" for row in range(100)),
        vectors=LAYOUT.stack({"text": text, "image": image}),
        popularity=np.zeros(100, np.int64),
        metadata=pa.table({"title": ["T" * 500 if row == 6 else f"item {row}" for row in range(100)]}),
        missing=missing,
    )


def examined(table):
    return audit_catalogue(table, table.vectors, table.missing_record(), seed=0, progress=quiet)


def test_a_catalogue_by_hand(table):
    found = examined(table)
    figures = found.figures()
    assert figures["missing.text"] == 0.01
    assert figures["missing.image"] == 0.02
    assert figures["near_duplicates"] == 5 / 98
    assert figures["disagreement"] > 0.6  # all of it is random
    sections = found.as_json()
    assert sections["missing"]["image"] == {
        "present": 98,
        "absent": 1,
        "unreadable": 1,
        "cold": 0,
        "not_found": 0,
        "examples": [{"id": "i6", "title": "T" * 160}, {"id": "i5", "title": "item 5"}],
    }
    group = sections["near_duplicates"]["groups"][0]
    assert group["size"] == 5
    assert [item["id"] for item in group["items"]] == ["i0", "i1", "i2", "i3", "i4"]
    assert sections["disagreement"]["sampled"] == 97
    assert sum(sections["disagreement"]["p"]) == 97
    assert sections["disagreement"]["examples"][0]["p"] >= sections["disagreement"]["examples"][1]["p"] > 0.5
    assert len(sections["disagreement"]["examples"][0]["looks_like"]) == 5


def test_figures_that_cannot_be_measured_are_omitted(table):
    blind = replace(table, vectors=LAYOUT.keep_only(["text"], table.vectors), missing=None)
    assert set(examined(blind).figures()) == {"missing.text", "missing.image"}
    assert examined(blind).as_json()["near_duplicates"] is None
    mute = replace(table, vectors=LAYOUT.keep_only(["image"], table.vectors), missing=None)
    assert "disagreement" not in examined(mute).figures()
    assert examined(mute).figures()["near_duplicates"] == 5 / 98
    untitled = replace(table, metadata=pa.table({"title": np.arange(100)}))
    assert examined(untitled).as_json()["missing"]["text"]["examples"] == [{"id": "i7", "title": None}]


def test_a_catalogue_without_an_image_slot():
    layout = SlotLayout((Slot("text", 4),))
    vectors = layout.stack({"text": np.random.default_rng(0).normal(size=(60, 4))})
    table = ItemTable(
        layout, ItemIds(f"i{row}" for row in range(60)), vectors, np.zeros(60, np.int64), pa.table({"n": range(60)})
    )
    found = examined(table)
    assert found.figures() == {"missing.text": 0.0}
    assert found.as_json()["disagreement"] is None
