"""A bundle with item-to-item lists: its manifest, its files, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.bundle.manifest import MANIFEST_FILE, ListsRecord, Manifest
from index.bundle.registry import Registry
from index.errors import BundleInvalid
from index.lists.item_lists import ItemLists
from tests.support.listed_bundles import compressed, random_lists, with_lists

ITEMS = 40


@pytest.fixture(scope="module")
def plain(tmp_path_factory, make_bundle):
    return make_bundle(tmp_path_factory.mktemp("plain"), items=ITEMS)


@pytest.fixture(scope="module")
def listed(tmp_path_factory, plain):
    return with_lists(plain, random_lists(ITEMS), tmp_path_factory.mktemp("listed"))


@pytest.fixture
def damaged(listed, tmp_path):
    return shutil.copytree(listed, tmp_path / listed.name)


def test_a_bundle_has_format_3_with_lists_and_format_2_without(plain, listed):
    without, with_them = (json.loads((path / MANIFEST_FILE).read_text()) for path in (plain, listed))
    assert without["format"] == 2
    assert "lists" not in without
    assert with_them["format"] == 3
    assert [(part["name"], part["slot"], part["weight"]) for part in with_them["lists"]["lists"]] == [
        ("co", "behaviour", 0.7),
        ("words", "text", 0.4),
        ("look", "image", 0.25),
    ]
    assert {part["neighbours"] for part in with_them["lists"]["lists"]} == {8}
    assert len(with_them["lists"]["recency"]) == 5
    assert Bundle.load(plain).list_scores is None


@pytest.mark.parametrize("verify", ["stamp", "full"])
def test_the_lists_are_loaded_as_they_were_saved(listed, verify):
    loaded, saved = Bundle.load(listed, verify=verify).list_scores.lists, random_lists(ITEMS)
    assert loaded.names == saved.names
    assert loaded.weights.weights == saved.weights.weights
    np.testing.assert_array_equal(loaded.weights.recency, saved.weights.recency)
    for one, other in zip(loaded.lists, saved.lists, strict=True):
        for name in ("offsets", "rows", "similarities"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert not getattr(one, name).flags.writeable


def test_the_manifest_is_written_as_it_was_read(listed, plain):
    for path in (listed, plain):
        assert Manifest.read(path).to_json() == (path / MANIFEST_FILE).read_text()


def test_a_published_bundle_keeps_its_lists(listed, tmp_path):
    registry = Registry(tmp_path / "registry")
    registry.publish(listed)
    path = registry.root / listed.name
    assert Bundle.load(path, verify="full").list_scores.lists.names == ("co", "words", "look")
    assert all(not file.stat().st_mode & 0o222 for file in (path / "lists").iterdir())


def test_a_write_to_a_list_is_noticed(damaged):
    loaded = Bundle.load(damaged)
    assert not loaded.files.written()
    with (damaged / "lists/co-rows.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(BundleInvalid, match="co-rows"):
        loaded.files.check_sizes()
    with pytest.raises(BundleInvalid, match="co-rows"):
        loaded.verify_in_full()


def _edit(path: Path, change: object) -> None:
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda d: d.update(format=2), "lists of format 2"),
        (lambda d: d.update(items=ITEMS + 1), "lists are of 41 items"),
        (lambda d: d.update(recency=[0.5]), "differ from the manifest"),
        (lambda d: d.update(recency=[]), "recency must be"),
        (lambda d: d["lists"][0].update(weight=0.6), "differ from the manifest"),
        (lambda d: d["lists"][0].update(weight=0), "weight: Input should be greater than 0|greater than 0"),
        (lambda d: d["lists"][0].update(weight=-1), "at least 0"),
        (lambda d: d["lists"][0].update(weight=float("nan")), "finite"),
        (lambda d: d["lists"][0].update(entries=3), "co-rows.npy: holds"),
        (lambda d: d["lists"][0].update(name="../co"), "must be one of"),
        (lambda d: d["lists"].pop(), "differ from the manifest"),
        (lambda d: d["lists"].clear(), "at least 1 item"),
        (lambda d: d["lists"].reverse(), "order"),
    ],
)
def test_refuses_a_description_that_does_not_fit(damaged, reseal, change, rule):
    _edit(damaged / "lists/lists.json", change)
    reseal(damaged)
    with pytest.raises(BundleInvalid, match=rule):
        Bundle.load(damaged)


def test_refuses_an_endless_description(damaged, reseal):
    (damaged / "lists/lists.json").write_bytes(b" " * (1 << 21))
    reseal(damaged)
    with pytest.raises(BundleInvalid, match="not a description of lists"):
        Bundle.load(damaged)


@pytest.mark.parametrize("name", ["lists/lists.json", "lists/co-offsets.npy", "lists/look-similarities.npy"])
@pytest.mark.parametrize("content", [None, b"", b"[" * 5000])
def test_refuses_files_that_are_missing_or_unreadable(damaged, reseal, name, content):
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
        reseal(damaged)
    with pytest.raises(BundleInvalid, match=name):
        Bundle.load(damaged)


def _replace(bundle: Path, name: str, edit: object) -> None:
    path = bundle / "lists" / name
    array = np.load(path)
    edit(array)
    np.save(path, array)


def _put(position: int, value: float):
    def edit(array: np.ndarray) -> None:
        array[position] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (_put(0, 1), "offsets must rise"),
        (_put(-1, 5), "offsets must rise"),
        (_put(3, -4), "offsets must rise"),
        (_put(3, 1 << 40), "offsets must rise"),
    ],
)
def test_every_load_checks_the_offsets(damaged, reseal, edit, rule):
    _replace(damaged, "co-offsets.npy", edit)
    reseal(damaged)
    with pytest.raises(BundleInvalid, match=rule):
        Bundle.load(damaged)


@pytest.mark.parametrize(
    ("name", "edit", "rule"),
    [
        ("co-rows.npy", _put(2, ITEMS), "rows must lie"),
        ("co-rows.npy", _put(2, -1), "rows must lie"),
        ("words-similarities.npy", _put(0, np.nan), "finite"),
        ("words-similarities.npy", _put(0, -1), "> 0"),
        ("look-similarities.npy", _put(-1, np.inf), "finite"),
    ],
)
def test_full_verification_checks_every_entry(damaged, reseal, name, edit, rule):
    _replace(damaged, name, edit)
    reseal(damaged)
    loaded = Bundle.load(damaged)
    with pytest.raises(BundleInvalid, match=rule):
        loaded.check_content()
    with pytest.raises(BundleInvalid, match=rule):
        Bundle.load(damaged, verify="full")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"format": 2}, "a bundle with lists has format 3"),
        ({"lists": None}, "a bundle with lists has format 3"),
        ({"slots": [["text", 6], ["image", 4], ["other", 2]]}, "list co counts to behaviour"),
    ],
)
def test_refuses_manifests_that_contradict_themselves(damaged, change, rule):
    raw = json.loads((damaged / MANIFEST_FILE).read_text()) | change
    (damaged / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=rule):
        Bundle.load(damaged)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"lists": []}, "at least 1 item"),
        ({"recency": []}, "at least 1 item"),
        ({"recency": [-1.0]}, "greater than or equal to 0"),
        ({"lists": [{"name": "co", "slot": "text", "weight": 1.0, "neighbours": 8}]}, "list co counts to behaviour"),
        ({"lists": [{"name": "no", "slot": "text", "weight": 1.0, "neighbours": 8}]}, "must be some of"),
        ({"lists": [{"name": "co", "slot": "behaviour", "weight": 1.0, "neighbours": 40}]}, "cannot have 40"),
        ({"lists": [{"name": "co", "slot": "behaviour", "weight": 0.0, "neighbours": 4}]}, "greater than 0"),
    ],
)
def test_refuses_a_record_that_breaks_a_rule(damaged, change, rule):
    raw = json.loads((damaged / MANIFEST_FILE).read_text())
    raw["lists"] |= change
    (damaged / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=rule):
        Bundle.load(damaged)


def test_refuses_a_manifest_that_does_not_list_the_files(damaged):
    raw = json.loads((damaged / MANIFEST_FILE).read_text())
    del raw["files"]["lists/words-rows.npy"]
    (damaged / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=r"words-rows\.npy are not listed"):
        Bundle.load(damaged)


def test_a_record_counts_the_longest_list():
    near = (np.array([1, 2], np.int32), np.array([0.5, 0.25], np.float16))
    none = (np.zeros(0, np.int32), np.zeros(0, np.float16))
    lists = random_lists(3, weights={"co": 1.0})
    record = ListsRecord.of(ItemLists(3, (compressed("co", [near, none, none]),), lists.weights))
    assert record.lists[0].neighbours == 2
    assert record.files == (
        "lists/lists.json",
        "lists/co-offsets.npy",
        "lists/co-rows.npy",
        "lists/co-similarities.npy",
    )
