"""The commands `vlm2rec index …`, run as a user does."""

import dataclasses
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from cli.online.index import app
from index.bundle.bundle import Bundle
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.errors import BundleInvalid, BundleNotFound, IndexSpecError, ItemListError, RegistryError
from tests.support.listed_bundles import random_lists


@pytest.fixture
def run_directory(tmp_path, make_table, make_evaluation_queries, encoder_path):
    encoder = tmp_path / "run" / "encoder"
    make_table(80).save(encoder / "table")
    make_evaluation_queries(80).save(encoder / "probes.npz")
    shutil.copyfile(encoder_path, encoder / "encoder.onnx")
    return tmp_path / "run"


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_build_prints_the_report_and_the_path(run_directory, tmp_path):
    result = call("build", "--run", run_directory, "--out", tmp_path / "out", "--kind", "hnsw", "--threads", 1)
    path = next((tmp_path / "out").iterdir())
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "hnsw: requested by name; sq8, whose rounding alone leaves recall 1.0000; 79 of 80 items indexed"
    )
    assert lines[1].split() == ["queries", "recall@20", "p50", "ms", "p99", "ms"]
    assert lines[2].split()[0] == "plain"
    assert "without image: 13 not in the catalogue, 0 unreadable, 0 not found, 0 with too little history" in lines
    assert lines[-2] == f"keeps to all 10 bounds; as a page: {path / 'report.html'}"
    assert lines[-1] == str(path)
    assert len(Bundle.load(path)) == 80
    # The same again from the bundle.
    assert call("show", path).stdout.splitlines() == lines[:-1]


@pytest.mark.parametrize(
    ("fitted", "remembered"),
    [({}, True), ({"config": {"exclude_seen": True}}, True), ({"config": {"exclude_seen": False}}, False)],
)
def test_build_reads_exclude_seen_from_the_fit(run_directory, fitted, remembered):
    (run_directory / "encoder" / "fit.json").write_text(json.dumps(fitted))
    call("build", "--run", run_directory, "--kind", "flat")
    assert Manifest.read(next((run_directory / "bundles").iterdir())).exclude_seen is remembered


def test_the_lists_of_the_fit_are_taken_and_shown(run_directory):
    encoder = run_directory / "encoder"
    random_lists(80, weights={"co": 0.7, "words": 0.0, "look": 0.25}).save(encoder / "lists")
    (encoder / "fit.json").write_text(json.dumps({"lists": {"neighbours": 8}}))
    (shown,) = [
        line
        for line in call("build", "--run", run_directory).stdout.splitlines()
        if line.startswith("item-to-item lists")
    ]
    assert re.fullmatch(
        r"item-to-item lists: co \(behaviour\) weight 0\.7, 8 neighbours, \d+\.\d% of the score; "
        r"look \(image\) weight 0\.25, 8 neighbours, \d+\.\d% of the score",
        shown,
    )
    (path,) = (run_directory / "bundles").iterdir()
    assert [part.name for part in Manifest.read(path).lists.lists] == ["co", "look"]
    assert shown in call("show", path).stdout


@pytest.mark.parametrize(
    ("record", "lists"), [({"lists": {}}, True), ({}, True), ({"lists": {"neighbours": 8}}, False)]
)
def test_only_lists_that_the_fit_recorded_count(run_directory, record, lists):
    """A fit that was killed leaves the lists of an earlier one; those that it recorded must be there."""
    encoder = run_directory / "encoder"
    if lists:
        random_lists(80).save(encoder / "lists")
    (encoder / "fit.json").write_text(json.dumps(record))
    if lists:
        call("build", "--run", run_directory)
        assert Manifest.read(next((run_directory / "bundles").iterdir())).lists is None
    else:
        with pytest.raises(ItemListError, match=r"lists\.json: not a readable description of lists"):
            call("build", "--run", run_directory)


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {"exclude_seen": "no"}}', '{"config": null}'])
def test_an_unreadable_record_of_the_fit_is_one_clear_line(run_directory, text):
    (run_directory / "encoder" / "fit.json").write_text(text)
    with pytest.raises(IndexSpecError, match=r"fit\.json: .*fit"):
        call("build", "--run", run_directory, "--kind", "flat")


def test_from_build_to_prune(run_directory, tmp_path, make_evaluation):
    registry = tmp_path / "registry"
    assert "nothing is published yet" in call("list", "--registry", registry).stdout
    assert "nothing is published yet" in call("verify", "--registry", registry).stdout
    (run_directory / "evaluation.json").write_text(json.dumps(make_evaluation()))
    result = call("build", "--run", run_directory, "--publish", registry)
    assert "served encoder 3.00 [2.50, 3.50], text only 0.50 [0.40, 0.60], image only not defined" in result.stdout
    first = result.stdout.splitlines()[-1].removeprefix("published: ")
    assert Registry(registry).current() == first
    call("build", "--run", run_directory, "--out", tmp_path / "out", "--kind", "ivf", "--bound", "recall=none",
         "--bound", "served_quality=none")  # fmt: skip
    second = next((tmp_path / "out").iterdir())
    assert call("publish", second, "--registry", registry).stdout == f"published: {second.name}\n"
    listed = call("list", "--registry", f"file://{registry}").stdout.splitlines()
    assert listed[0].split() == ["bundle", "created", "items", "MB", "recall", "lists", "verdict"]
    current = next(line for line in listed if line.startswith("*"))
    assert second.name in current
    assert " 80 " in current
    assert "no bounds" in current
    assert "keeps to 11 bounds" in next(line for line in listed if first in line)
    assert call("rollback", "--registry", registry).stdout == f"current: {first}\n"
    assert call("rollback", "--registry", registry, "--to", second.name).stdout == f"current: {second.name}\n"
    assert "no bound was set" in call("show", "--registry", registry).stdout
    assert "keeps to all 11 bounds" in call("show", first, "--registry", registry).stdout
    call("rollback", "--registry", registry)
    assert "whole, 80 items" in call("verify", second).stdout
    assert call("verify", "--registry", registry).stdout.count("whole") == 2
    # The second was published last, the first is current, whatever their names say.
    assert call("prune", "--registry", registry, "--keep", 1).stdout == "nothing to delete\n"
    listed = call("list", "--registry", registry).stdout.splitlines()
    assert [first in listed[1], second.name in listed[2]] == [True, True]


def test_a_modality_worse_than_popularity_is_a_warning_unless_it_has_a_bound(run_directory, tmp_path, make_evaluation):
    registry = tmp_path / "registry"
    (run_directory / "evaluation.json").write_text(json.dumps(make_evaluation()))
    said = call("build", "--run", run_directory, "--publish", registry).stdout
    phrase = r"text: 98\.[78] % of the items have it, but alone it ranks worse than popularity \(0\.50 ×\)"
    assert re.search(rf"^warning: {phrase}; train with another backbone", said, re.MULTILINE)
    assert re.search(rf"keeps to 11 bounds; warning: {phrase}$", call("list", "--registry", registry).stdout.strip())
    page = (registry / Registry(registry).current() / "report.html").read_text()
    assert "A modality hardly counts" in page
    assert "alone it ranks worse than popularity (0.50 ×)" in page
    call("build", "--run", run_directory, "--publish", registry, "--bound", "text_quality=1", code=1)


def test_a_licence_that_is_not_allowed_ends_the_build(run_directory, make_table):
    table = dataclasses.replace(make_table(80), model={"embeddings": {"kind": "vlm", "licences": ["qwen-research"]}})
    shutil.rmtree(run_directory / "encoder" / "table")
    table.save(run_directory / "encoder" / "table")
    with pytest.raises(IndexSpecError, match=r"must be one of apache-2\.0, mit, got 'qwen-research'"):
        call("build", "--run", run_directory, "--bound", "licence.allowed=apache-2.0,mit")
    assert not (run_directory / "bundles").exists()
    call("build", "--run", run_directory, "--bound", "licence.allowed=qwen-research")


def test_the_gate_exits_with_1(run_directory, tmp_path):
    registry = tmp_path / "registry"
    (tmp_path / "bounds.toml").write_text("coverage = 1.0\n[missing]\nimage = 0.1\n")
    strict = ("--bounds", tmp_path / "bounds.toml", "--bound", "served_quality=1")
    result = call("build", "--run", run_directory, "--publish", registry, *strict, code=1)
    table = [line.split() for line in result.stderr.splitlines()]
    assert ["figure", "measured", "bound"] in table
    assert ["served_quality", "–", "≥", "1", "not", "measured"] in table
    assert next(line for line in table if line and line[0] == "coverage")[2:] == ["≥", "1", "missed"]
    assert ["missing.image", "0.1625", "≤", "0.1", "missed"] in table
    assert "refused: " in result.stderr
    assert "misses 3 of 13 bounds" in result.stdout
    assert Registry(registry).current() is None
    bundle = next((run_directory / "bundles").iterdir())
    call("publish", bundle, "--registry", registry, code=1)
    call("publish", bundle, "--registry", registry, "--force")
    listed = call("list", "--registry", registry).stdout
    assert "forced: misses served_quality, coverage, missing.image" in listed
    assert "misses 3 of 13 bounds, published by force" in call("show", "--registry", registry).stdout


def test_show_names_what_is_wrong(copied, tmp_path):
    with pytest.raises(BundleNotFound, match="there is no bundle"):
        call("show", tmp_path / "none")
    with pytest.raises(BundleNotFound, match="nothing is published yet"):
        call("show", "--registry", tmp_path / "r")
    call("show", code=2)
    (copied / "report.json").write_text("{}")
    with pytest.raises(BundleInvalid, match=r"report\.json"):
        call("show", copied)


@pytest.mark.parametrize(
    "change", [{"search_ms": None}, {"answers": {}}, {"memory": {"vectors": "x"}}, {"missing": [1]}, {"quality": {}}]
)
def test_a_report_of_another_form_is_one_clear_line(copied, monkeypatch, change):
    path = copied / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr("index.evaluation.report_file.verify_file", lambda *_: None)
    with pytest.raises(BundleInvalid, match=r"report\.json: not a report that this version reads"):
        call("show", copied)


def test_verify_exits_with_1_for_a_damaged_bundle(copied):
    (copied / "vectors.npy").write_bytes(b"")
    result = call("verify", copied, code=1)
    assert "vectors.npy: has 0 bytes" in result.stderr


@pytest.mark.parametrize("begun", [False, True])
def test_verify_goes_on_where_a_bundle_is_deleted_meanwhile(registry, bundles, monkeypatch, begun):
    for bundle in bundles:
        registry.publish(bundle)
    load, first = Registry.load_verified, bundles[0].name

    def loading(self, bundle_id):
        path = self.path(bundle_id)
        registry.prune(2)
        return Bundle.load(path, verify="full") if begun and bundle_id == first else load(self, bundle_id)

    monkeypatch.setattr(Registry, "load_verified", loading)
    lines = call("verify", "--registry", registry.root).output.splitlines()
    assert lines[0] == f"{registry.root}/{first}: was deleted meanwhile"
    assert lines[1:] == [f"{registry.root}/{bundle.name}: whole, 40 items" for bundle in bundles[1:]]


def test_verify_takes_exactly_one_target(tmp_path, built):
    call("verify", code=2)
    call("verify", built, "--registry", tmp_path, code=2)


def test_package_errors_reach_the_caller(run_directory, tmp_path):
    with pytest.raises(IndexSpecError, match="holds no fitted encoder; run `vlm2rec fit`"):
        call("build", "--run", tmp_path / "nothing")
    with pytest.raises(IndexSpecError, match="kind must be one of"):
        call("build", "--run", run_directory, "--kind", "pq")
    with pytest.raises(IndexSpecError, match="unknown bound 'recal'"):
        call("build", "--run", run_directory, "--bound", "recal=0.9")
    with pytest.raises(IndexSpecError, match=r"none\.toml: not usable as bounds"):
        call("build", "--run", run_directory, "--bounds", tmp_path / "none.toml")
    with pytest.raises(RegistryError, match="must be a local path, a file:// URL or an S3 URL"):
        call("list", "--registry", "gs://bucket/registry")
    with pytest.raises(RegistryError, match="keep must be at least 1, got 0"):
        call("prune", "--registry", tmp_path / "r", "--keep", 0)
    with pytest.raises(BundleNotFound, match="no bundle"):
        call("rollback", "--registry", tmp_path / "r", "--to", "20200101T000000Z-000000")
    with pytest.raises(BundleNotFound):
        call("publish", tmp_path / "none", "--registry", tmp_path / "r")
    with pytest.raises(RegistryError, match="no earlier bundle"):
        call("rollback", "--registry", tmp_path / "r")
    with pytest.raises(BundleNotFound):
        call("verify", tmp_path / "none")


@pytest.mark.parametrize(("text", "rule"), [("{", "no readable JSON"), ("[1]", "must be a JSON object, got list")])
def test_a_bad_evaluation_is_named(run_directory, text, rule):
    (run_directory / "figures.json").write_text(text)
    with pytest.raises(IndexSpecError, match=rf"figures\.json.*{rule}"):
        call("build", "--run", run_directory, "--evaluation", run_directory / "figures.json")


def test_codes_memory_and_recall_are_options(run_directory, tmp_path):
    options = ["--kind", "ivf", "--codes", "fp16", "--memory-mb", 1, "--target-recall", 1]
    call("build", "--run", run_directory, "--out", tmp_path / "out", *options)
    record = Manifest.read(next((tmp_path / "out").iterdir())).index
    assert (record.kind, record.parameters["codes"]) == ("ivf", "fp16")
    assert set(record.recall.values()) == {1.0}
    with pytest.raises(IndexSpecError, match="codes must be one of"):
        call("build", "--run", run_directory, "--out", tmp_path / "none", "--codes", "pq")
    call("build", "--run", run_directory, "--out", tmp_path / "none", "--memory-mb", 0, code=2)
