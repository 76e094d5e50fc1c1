"""Bundles of a refitted encoder: both encoders are named, and an evaluation counts for this pair alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.online.index import app
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.encoder_pair import EncoderPair, encoder_hash
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import MANIFEST_FILE, Manifest, _content_hash
from index.bundle.quality import Quality
from index.errors import BundleInvalid, IndexSpecError
from tests.support.listed_bundles import random_lists


@pytest.fixture
def run(tmp_path, make_table, make_encoder, make_evaluation_queries, encoder_path):
    """A refitted run: the measured encoder reads another number of items, so its file differs."""
    encoder = tmp_path / "run" / "encoder"
    served = encoder / "served"
    table = make_table(80)
    table.save(encoder / "table")
    make_evaluation_queries(80).save(encoder / "probes.npz")
    make_encoder(encoder / "encoder.onnx", max_history=11)
    pair = {"hash": encoder_hash(encoder_path), "measured": encoder_hash(encoder / "encoder.onnx")}
    replace(table, model={"kind": "made", "encoder": pair}, popularity=table.popularity + 2).save(served / "table")
    shutil.copyfile(encoder_path, served / "encoder.onnx")
    random_lists(80, weights={"co": 0.5, "words": 0.0, "look": 0.0}).save(served / "lists")
    record = {
        "lists": {"neighbours": 8},
        "refit": {"epochs": 3},
        "model": {"encoder": {"hash": pair["measured"], "served": pair["hash"]}},
    }
    (encoder / "fit.json").write_text(json.dumps(record))
    return tmp_path / "run"


@pytest.fixture
def pair(run, encoder_path):
    return EncoderPair(served=encoder_hash(encoder_path), measured=encoder_hash(run / "encoder" / "encoder.onnx"))


@pytest.fixture
def evaluation(make_evaluation, pair):
    """What `evaluate` writes about the run."""
    found = make_evaluation()
    found["model"]["encoder"] = {"hash": pair.measured, "served": pair.served}
    return found | {"lists": {"co": 0.5}}


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def built(run):
    call("build", "--run", run, "--kind", "flat", "--threads", 1)
    (bundle,) = (run / "bundles").iterdir()
    return bundle


def test_a_bundle_takes_what_serves_and_names_both(run, pair, evaluation, tmp_path):
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    bundle = built(run)
    manifest = Manifest.read(bundle)
    assert manifest.refit == pair
    assert json.loads(manifest.to_json())["refit"] == {
        "served": pair.served,
        "measured": pair.measured,
        "served_was_measured": False,
    }
    assert manifest.files["encoder.onnx"].sha256.startswith(pair.served)
    assert manifest.gate.figures["served_quality"] == 3.0
    loaded = Bundle.load(bundle, verify="full")
    assert loaded.max_history == 12
    assert [part.name for part in manifest.lists.lists] == ["co"]
    query = loaded.encode([np.array([5, 6])])
    assert query.shape == (1, 12)
    report = json.loads((bundle / "report.json").read_text())
    assert report["refit"] == pair.model_dump(mode="json")
    page = (bundle / "report.html").read_text()
    assert "was refitted on every event" in page
    assert "was not itself measured" in page
    assert pair.measured in page
    said = (
        f"the encoder {pair.served} serves, refitted on every event; it was not itself measured, accuracy figures are"
    )
    assert f"{said} of {pair.measured}" in call("show", bundle)
    registry = tmp_path / "registry"
    call("publish", bundle, "--registry", registry)
    assert "keeps to 11 bounds; refitted, accuracy measured before" in call("list", "--registry", registry)


def test_without_a_refit_nothing_is_named(run, encoder_path, tmp_path):
    encoder = run / "encoder"
    shutil.rmtree(encoder / "served")
    shutil.copyfile(encoder_path, encoder / "encoder.onnx")
    (encoder / "fit.json").write_text("{}")
    bundle = built(run)
    assert Manifest.read(bundle).refit is None
    assert "refit" not in json.loads((bundle / MANIFEST_FILE).read_text())
    assert "refit" not in (bundle / "report.json").read_text() + (bundle / "report.html").read_text()


def test_an_evaluation_counts_for_its_pair_alone(run, pair, evaluation, make_evaluation, encoder_path):
    measured = run / "encoder" / "encoder.onnx"
    assert Quality.read(evaluation, encoder_path, refit=pair).users == 610
    assert Quality.read(evaluation, measured).users == 610  # without a refit the measured encoder serves
    for named, rule in (
        ({"hash": pair.measured}, f"names none as its refit, this bundle gets '{pair.served}'"),
        ({"hash": pair.measured, "served": "0" * 16}, f"names '{'0' * 16}' as its refit"),
        ({"hash": pair.served, "served": pair.served}, f"this bundle gets the refit '{pair.served}' of"),
        (make_evaluation()["model"]["encoder"], f"this bundle gets the refit '{pair.served}' of '{pair.measured}'"),
    ):
        changed = {**evaluation, "model": {"encoder": named}}
        with pytest.raises(IndexSpecError, match=rule):
            Quality.read(changed, encoder_path, refit=pair)
        (run / "evaluation.json").write_text(json.dumps(changed))
        with pytest.raises(IndexSpecError, match="evaluate again"):
            call("build", "--run", run, "--kind", "flat")


@pytest.mark.parametrize("side", ["measured", "served", "record", "table", "no record", "form"])
def test_a_tampered_pair_is_refused(run, pair, make_encoder, make_table, side):
    encoder = run / "encoder"
    record = json.loads((encoder / "fit.json").read_text())
    table, rule = make_table(80), "fit the encoder again"
    if side in {"measured", "served"}:
        make_encoder(encoder / ("encoder.onnx" if side == "measured" else "served/encoder.onnx"), max_history=9)
    elif side == "table":
        replace(table, model={"encoder": {"hash": pair.served, "measured": "f" * 16}}).save(
            encoder / "served" / "table"
        )
    elif side == "form":
        replace(table, model={"encoder": {"hash": pair.served, "measured": "f"}}).save(encoder / "served" / "table")
        rule = "both must be 16 hexadecimal digits"
    else:
        record["model"]["encoder"]["served"] = "0" * 16
        if side == "no record":
            del record["refit"]
        (encoder / "fit.json").write_text(json.dumps(record))
        rule = "as the encoder that serves, the item table is of"
    with pytest.raises(IndexSpecError, match=rule):
        call("build", "--run", run, "--kind", "flat")
    assert not [*(run / "bundles").glob("*")]


def test_a_build_refuses_a_table_of_another_encoder(make_table, make_evaluation_queries, encoder_path, tmp_path):
    table = replace(make_table(80), model={"encoder": {"hash": "0" * 16, "measured": "1" * 16}})
    with pytest.raises(IndexSpecError, match="was refitted together with the encoder '0000000000000000', this is"):
        build_bundle(table, encoder_path, make_evaluation_queries(80), tmp_path, IndexSpec(kind="flat"))


@pytest.mark.parametrize(
    ("refit", "rule"),
    [
        (None, "refit must name the served and the measured encoder of the items"),
        ({"measured": "0" * 16}, "refit must name the served and the measured encoder of the items"),
        ({"served_was_measured": True}, "served_was_measured"),
        ("both", "refit.served must be the hash of encoder.onnx"),
    ],
)
def test_a_manifest_of_another_pair_is_no_bundle(run, refit, rule):
    bundle = built(run)
    path = bundle / MANIFEST_FILE
    raw = json.loads(path.read_text())
    if refit is None:
        del raw["refit"]
    elif refit == "both":
        raw["refit"]["served"] = raw["model"]["encoder"]["hash"] = "0" * 16
    else:
        raw["refit"] |= refit
    raw["content"] = _content_hash(raw)
    raw["id"] = f"{raw['id'][:-6]}{raw['content'][:6]}"
    path.chmod(0o644)
    path.write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=rule):
        Manifest.read(bundle)


def test_a_fit_that_is_not_finished_is_not_built(run):
    encoder = run / "encoder"
    (encoder / "fit.json").unlink()
    (encoder / "checkpoints").mkdir()
    with pytest.raises(IndexSpecError, match="the fit is not finished; start the same `vlm2rec fit`"):
        call("build", "--run", run)
