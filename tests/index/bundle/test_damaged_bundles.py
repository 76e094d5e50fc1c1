"""Damaged bundles: each refused with the file's name, or harmless."""

import json
import os
import random

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.bundle.integrity import sha256_of, stamp_path, verify_files, write_stamp
from index.bundle.manifest import MANIFEST_FILE, REQUIRED_FILES, Manifest
from index.errors import BundleInvalid
from index.items.eval_queries import EvaluationQueries


@pytest.mark.parametrize("name", [MANIFEST_FILE, *REQUIRED_FILES])
@pytest.mark.parametrize("stamped", [False, True])
def test_each_file_missing_truncated_or_longer(copied, name, stamped):
    path = copied / name
    whole = path.read_bytes()
    if stamped:
        write_stamp(copied, Manifest.read(copied))
    for damaged in (None, b"", whole[: len(whole) // 2], whole[:-2], whole + b"\0"):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        with pytest.raises(BundleInvalid, match=name):
            Bundle.load(copied)
    path.write_bytes(whole)
    assert len(Bundle.load(copied)) == 300


def test_seeded_corruption(copied):
    """One byte flipped, or a stretch overwritten, anywhere: refused by name; the untouched bundle loads again."""
    chance = random.Random(20261123)
    names = [MANIFEST_FILE, *REQUIRED_FILES]
    for turn in range(120):
        name = names[turn % len(names)]
        path = copied / name
        whole = path.read_bytes()
        damaged = bytearray(whole)
        position = chance.randrange(len(damaged))
        if turn % 3:
            damaged[position] ^= 1 << chance.randrange(8)
        else:
            stretch = min(chance.randrange(1, 200), len(damaged) - position)
            damaged[position : position + stretch] = chance.randbytes(stretch)
        if bytes(damaged) == whole:
            continue
        path.write_bytes(bytes(damaged))
        try:
            loaded = Bundle.load(copied)
        except BundleInvalid as error:
            assert name in str(error)  # noqa: PT017 - either outcome may be right
        else:  # a manifest may say the same in other bytes
            assert name == MANIFEST_FILE
            path.write_bytes(whole)
            original = Manifest.read(copied).model_copy(update={"forced": loaded.manifest.forced})
            assert loaded.manifest == original
        path.write_bytes(whole)
    assert len(Bundle.load(copied)) == 300


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "not a readable manifest"),
        ("[" * 100_000, "not a readable manifest"),
        ("[]", "'format' is missing"),
        ('{"id": "x"}', "'format' is missing"),
        ('{"format": 1}', "bundle format 1, this version reads 2 and 3"),
        ('{"format": "1"}', "bundle format '1', this version reads 2 and 3"),
        ('{"format": true}', "bundle format True"),
        ('{"format": 2}', "Field required"),
        ("\udcff".encode("utf-8", "surrogateescape"), "not a readable manifest"),
    ],
)
def test_refuses_manifests(copied, text, rule):
    (copied / MANIFEST_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleInvalid, match=rf"manifest\.json.*{rule}"):
        Bundle.load(copied)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"items": 0}, "items: Input should be greater than or equal to 1"),
        ({"items": "300"}, "items: Input should be a valid integer"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"id": "../../etc"}, "id: String should match pattern"),
        ({"metric": "l2"}, "metric: Input should be 'inner_product'"),
        ({"slots": [["text", 0], ["image", 4], ["behaviour", 2]]}, "dim must be at least 1"),
        ({"slots": [["text", 12]]}, "as a whole: .*typical needs a share for each of 1 slots"),
        ({"indexed": 301}, "as a whole: .*301 of 300 items cannot be indexed"),
        ({"files": {}}, "files: Value error, the files items.arrow"),
        ({"items": 301}, "does not fit its own hash"),
        ({"id": "20261123T040500Z-000000"}, "does not fit its own hash"),
        ({"model": {"kind": "other"}}, "does not fit its own hash"),
    ],
)
def test_refuses_altered_manifests(copied, change, rule):
    raw = json.loads((copied / MANIFEST_FILE).read_text())
    (copied / MANIFEST_FILE).write_text(json.dumps(raw | change))
    with pytest.raises(BundleInvalid, match=rule):
        Bundle.load(copied)


@pytest.mark.parametrize("name", ["../items.arrow", "/etc/passwd", "a/../../b", "a\\b", "manifest.json", "./x"])
def test_refuses_paths_that_leave_the_bundle(copied, name):
    raw = json.loads((copied / MANIFEST_FILE).read_text())
    raw["files"][name] = {"sha256": "0" * 64, "size": 1}
    (copied / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match="must be a plain path inside the bundle"):
        Bundle.load(copied)


def test_refuses_an_endless_manifest(copied, monkeypatch):
    monkeypatch.setattr("index.bundle.manifest.LARGEST_MANIFEST", 10)
    with pytest.raises(BundleInvalid, match="larger than 10 bytes"):
        Bundle.load(copied)


def test_exclude_seen_is_written_only_if_false(copied):
    """A manifest of an earlier version lacks it; written again, by a publish, it must keep its hash."""
    text = (copied / MANIFEST_FILE).read_text()
    assert "exclude_seen" not in json.loads(text)
    manifest = Manifest.read(copied)
    assert manifest.exclude_seen is True
    assert manifest.to_json() == text
    chosen = manifest.model_copy(update={"exclude_seen": False})
    assert json.loads(chosen.to_json())["exclude_seen"] is False


def test_forced_may_be_set_on_a_copy(copied):
    raw = json.loads((copied / MANIFEST_FILE).read_text())
    (copied / MANIFEST_FILE).write_text(json.dumps(raw | {"forced": True}))
    assert Bundle.load(copied).manifest.forced


@pytest.mark.parametrize(
    ("change", "name", "rule"),
    [
        ({"items": 301}, "items.arrow", "holds 300 items, the manifest says 301"),
        ({"dtype": "float32"}, "vectors.npy", "holds float16 .*, the manifest says float32"),
        ({"slots": (("text", 6), ("image", 5), ("behaviour", 1))}, "encoder.onnx", "the encoder is for the slots"),
        (
            {"slots": (("text", 6), ("image", 3), ("behaviour", 2))},
            "vectors.npy",
            r"\(300, 12\), the manifest says float16 \(300, 11\)",
        ),
        ({"indexed": 300}, "indexed.npy", "must mark 300 of 300 rows"),
        ({"max_history": 11}, "encoder.onnx", "11"),
    ],
)
def test_refuses_a_manifest_that_does_not_fit_its_files(copied, reseal, change, name, rule):
    reseal(copied, **change)
    with pytest.raises(BundleInvalid, match=rf"{name}.*{rule}"):
        Bundle.load(copied)


def test_refuses_another_kind_of_index(copied, reseal):
    record = Manifest.read(copied).index
    reseal(copied, index=record.model_copy(update={"kind": "ivf"}))
    with pytest.raises(BundleInvalid, match=r"index\.faiss: holds a flat index, the manifest says ivf"):
        Bundle.load(copied)


def _npy(value):
    return lambda path: np.save(path, value)


def _as_bool(path, values):
    np.save(path, np.array(values, np.uint8).view(bool))


@pytest.mark.parametrize(
    ("name", "write", "rule"),
    [
        ("vectors.npy", lambda path: path.write_bytes(b"\x93NUMPY garbage"), "not an npy file of version 1.0"),
        ("vectors.npy", lambda path: path.write_bytes(b"\x93NUMPY\1\0\xff"), "not a readable array"),
        ("vectors.npy", lambda path: path.write_bytes(path.read_bytes().replace(b"<f2", b"<f3")), "an unknown type"),
        ("vectors.npy", lambda path: path.write_bytes(path.read_bytes().replace(b"v\0", b"w\0", 1)), "not an npy file"),
        ("vectors.npy", _npy(np.array([{}])), "not an npy file of version 1.0"),
        ("vectors.npy", lambda path: path.open("wb").close(), "not a readable array"),
        ("vectors.npy", _npy(np.zeros((12, 300), np.float16).T), "not an npy file of version 1.0"),
        ("vectors.npy", lambda path: path.write_bytes(b"PK\x03\x04 zip"), "not an npy file"),
        (
            "vectors.npy",
            lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
            r"float16 \(300, 12\) takes 7328 bytes, the file has 7330",
        ),
        ("vectors.npy", lambda path: path.write_bytes(path.read_bytes()[:-2]), r"takes 7328 bytes, the file has 7326"),
        ("indexed.npy", _npy(np.ones(300, bool)), "must mark 299 of 300"),
        ("indexed.npy", lambda path: _as_bool(path, [2] * 299 + [0]), "must mark"),
        ("indexed.npy", _npy(np.ones((300, 1))), "float64"),
        ("indexed.npy", lambda path: path.write_bytes(b"x"), "not a readable array"),
        ("missing.npy", _npy(np.zeros((300, 2), np.uint8)), r"\(300, 2\).*the manifest says .*\(300, 3\)"),
        ("missing.npy", _npy(np.zeros((300, 3), np.int64)), "int64"),
        ("missing.npy", _npy(np.full((300, 3), 5, np.uint8)), "must lie in 0 … 4, got 5"),
        ("missing.npy", _npy(np.zeros((300, 3), np.uint8)), "row 3 must have a present slot exactly if it is indexed"),
        ("missing.npy", _npy(np.ones((300, 3), np.uint8)), "row 0 must have a present slot"),
        ("missing.npy", lambda path: path.write_bytes(b"x"), "not a readable array"),
        ("probes.npz", lambda path: path.write_bytes(b"PK\x03\x04 broken"), "cannot be read"),
        (
            "probes.npz",
            lambda path: EvaluationQueries(np.array([[300]]), np.array([0])).save(path),
            "must lie in 0 … 299",
        ),
        ("items.arrow", lambda path: path.write_bytes(b"ARROW1"), "the items cannot be read"),
        ("encoder.onnx", lambda path: path.write_bytes(b"nonsense"), "not a readable ONNX model"),
        ("index.faiss", lambda path: path.write_bytes(b"nonsense"), "not a readable FAISS index"),
    ],
)
def test_refuses_files_of_another_form(copied, reseal, name, write, rule):
    """The hashes match: a wrong file was written before the manifest was sealed."""
    write(copied / name)
    reseal(copied)
    with pytest.raises(BundleInvalid, match=rf"{name}.*{rule}"):
        Bundle.load(copied)


def test_links_are_not_files(copied):
    path = copied / "report.json"
    path.rename(copied.parent / "elsewhere.json")
    path.symlink_to(copied.parent / "elsewhere.json")
    with pytest.raises(BundleInvalid, match=r"report\.json: must be a regular file"):
        Bundle.load(copied)


def test_further_files_are_ignored(copied):
    (copied / "notes.txt").write_text("mine")
    assert len(Bundle.load(copied)) == 300


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr("index.bundle.integrity._SMALL", 0)


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that get hashed."""
    names = []

    def spy(path, *between):
        names.append(path.name)
        return sha256_of(path, *between)

    monkeypatch.setattr("index.bundle.integrity.sha256_of", spy)
    return names


@pytest.mark.usefixtures("everything_is_large")
def test_a_stamp_saves_the_hashing(copied, hashed):
    manifest = Manifest.read(copied)
    write_stamp(copied, manifest)
    hashed.clear()
    verify_files(copied, manifest)
    assert hashed == [MANIFEST_FILE]
    hashed.clear()
    verify_files(copied, manifest, "full")
    assert sorted(hashed) == sorted(REQUIRED_FILES)


@pytest.mark.usefixtures("everything_is_large")
def test_a_file_that_does_not_match_the_stamp_is_hashed(copied, hashed):
    manifest = Manifest.read(copied)
    write_stamp(copied, manifest)
    os.utime(copied / "vectors.npy", ns=(1, 1))
    hashed.clear()
    verify_files(copied, manifest)
    assert hashed == [MANIFEST_FILE, "vectors.npy"]


@pytest.mark.usefixtures("everything_is_large")
def test_a_change_that_keeps_size_and_time_is_found_by_full(copied):
    manifest = Manifest.read(copied)
    write_stamp(copied, manifest)
    path = copied / "vectors.npy"
    before = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before, before))
    verify_files(copied, manifest)  # what the stamp cannot see, as documented
    with pytest.raises(BundleInvalid, match=r"vectors\.npy: its content was altered"):
        Bundle.load(copied, verify="full")


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 9, "manifest": "", "files": {}}', '{"format": 1, "manifest": "x", "files": {}}'],
)
def test_a_bad_stamp_is_ignored(copied, hashed, text):
    stamp_path(copied).write_text(text)
    verify_files(copied, Manifest.read(copied))
    assert set(hashed) >= set(REQUIRED_FILES)


def test_verification_reports_progress(copied):
    seen = []
    verify_files(copied, Manifest.read(copied), "full", lambda name, share: seen.append((name, share)))
    assert [name for name, _ in seen] == sorted(REQUIRED_FILES)
    assert seen[-1][1] == pytest.approx(1.0)
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
