"""The index commands, as a user types them."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from cli.index import app
from index.bundle import Bundle
from index.errors import BundleNotFound, IndexSpecError, ItemTableError, RegistryError
from index.manifest import Manifest
from index.registry import Registry


@pytest.fixture
def run_directory(tmp_path, make_table, make_probes, encoder_path):
    encoder = tmp_path / "run" / "encoder"
    make_table(80).save(encoder / "table")
    make_probes(80).save(encoder / "probes.npz")
    shutil.copyfile(encoder_path, encoder / "encoder.onnx")
    return tmp_path / "run"


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_build_prints_the_recall_and_the_path(run_directory, tmp_path):
    result = call("build", "--run", run_directory, "--out", tmp_path / "out", "--kind", "hnsw", "--threads", 1)
    path = next((tmp_path / "out").iterdir())
    lines = result.stdout.splitlines()
    assert lines[0].startswith("hnsw: asked for by name; ")
    assert lines[0].endswith("; 79 of 80 items indexed")
    assert lines[1].split() == ["queries", "recall@20", "p50", "ms", "p99", "ms"]
    assert lines[2].split()[0] == "plain"
    assert lines[-1] == str(path)
    assert len(Bundle.load(path)) == 80


def test_from_build_to_prune(run_directory, tmp_path):
    registry = tmp_path / "registry"
    assert "nothing is published yet" in call("list", "--registry", registry).stdout
    assert "nothing is published yet" in call("verify", "--registry", registry).stdout
    (run_directory / "evaluation.json").write_text('{"ndcg@10": 0.5}')
    published = call("build", "--run", run_directory, "--publish", registry).stdout.splitlines()[-1]
    first = published.removeprefix("published: ")
    assert Registry(registry).current() == first
    built = run_directory / "bundles" / first
    assert json.loads((built / "report.json").read_text())["evaluation"] == {"ndcg@10": 0.5}
    call("build", "--run", run_directory, "--out", tmp_path / "out", "--kind", "ivf")
    second = next((tmp_path / "out").iterdir())
    assert call("publish", second, "--registry", registry).stdout == f"published: {second.name}\n"
    listed = call("list", "--registry", registry).stdout.splitlines()
    assert listed[0].split() == ["bundle", "created", "items", "MB", "recall", "remark"]
    current = next(line for line in listed if line.startswith("*"))
    assert second.name in current
    assert " 80 " in current
    assert call("rollback", "--registry", registry).stdout == f"current: {first}\n"
    assert "whole, 80 items" in call("verify", second).stdout
    assert call("verify", "--registry", registry).stdout.count("whole") == 2
    gone = call("prune", "--registry", registry, "--keep", 1).stdout
    expected = min(first, second.name)
    assert gone == ("nothing to delete\n" if expected == first else f"deleted: {expected}\n")


def test_the_gate_ends_with_one(run_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("index.measure.Exact.recall", lambda *_: 0.42)
    registry = tmp_path / "registry"
    result = call("build", "--run", run_directory, "--publish", registry, code=1)
    assert "refused: " in result.stderr
    assert "plain 0.4200" in result.stderr
    assert Registry(registry).current() is None
    bundle = next((run_directory / "bundles").iterdir())
    call("publish", bundle, "--registry", registry, code=1)
    call("publish", bundle, "--registry", registry, "--force")
    assert "forced" in call("list", "--registry", registry).stdout
    call("build", "--run", run_directory, "--publish", registry, "--min-recall", 0)


def test_verify_ends_with_one_for_a_damaged_bundle(copied):
    (copied / "vectors.npy").write_bytes(b"")
    result = call("verify", copied, code=1)
    assert "vectors.npy: has 0 bytes" in result.stderr


def test_verify_wants_exactly_one_thing(tmp_path, built):
    call("verify", code=2)
    call("verify", built, "--registry", tmp_path, code=2)


def test_package_errors_reach_the_caller(run_directory, tmp_path):
    with pytest.raises(ItemTableError, match="not a readable item table"):
        call("build", "--run", tmp_path / "nothing")
    with pytest.raises(IndexSpecError, match="kind must be one of"):
        call("build", "--run", run_directory, "--kind", "pq")
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
    asked = ["--kind", "ivf", "--codes", "fp16", "--memory-mb", 1, "--target-recall", 1]
    call("build", "--run", run_directory, "--out", tmp_path / "out", *asked)
    record = Manifest.read(next((tmp_path / "out").iterdir())).index
    assert (record.kind, record.parameters["codes"]) == ("ivf", "fp16")
    assert set(record.recall.values()) == {1.0}
    for wrong, rule in ((("--codes", "pq"), "codes must be one of"), (("--memory-mb", 0), "memory_bytes must be")):
        with pytest.raises(IndexSpecError, match=rule):
            call("build", "--run", run_directory, "--out", tmp_path / "none", *wrong)
