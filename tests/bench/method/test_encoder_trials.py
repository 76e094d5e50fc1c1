"""The bench of encoder settings: a trial's gains, paired ratios, resumed runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.method import encoder_trials
from bench.method.encoder_trials import BASE, SERVED, Features, main, ratio, run_trial, trial_config
from demo.build import build_demo


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trials") / "shop"
    return build_demo(made, items=40, users=60, evaluation_users=10, without_text=1, without_image=1)


def test_gains_of_what_is_served_are_those_that_chose_its_weights(data: Path, tmp_path: Path) -> None:
    features = Features.load(data, tmp_path)
    config = trial_config({"width": 16}, features, seed=0, epochs=2)
    figures, gains = run_trial(features, config, tmp_path / "fit", best=True)
    assert {name: len(found) for name, found in gains.items()} == {"alone": 60, SERVED: 60}
    alone, served = figures["by_epoch"][figures["best_epoch"] - 1]
    assert figures["ndcg@10"]["alone"] == pytest.approx(alone, abs=1e-6)
    assert figures["ndcg@10"][SERVED] >= served - 1e-6  # recency is searched as well
    assert not (tmp_path / "fit").exists()


def test_a_ratio_is_paired() -> None:
    base = np.random.default_rng(0).random(200)
    assert ratio(2 * base, base) == [2.0, 2.0, 2.0]


def test_a_stored_trial_is_not_fitted_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    given = [str(data), "--work", str(tmp_path / "work"), "--out", str(out), "--epochs", "1", "--trials", "width-128"]
    main(given)
    stored = json.loads(out.read_text())["measurements"]
    assert [*stored] == [f"shop/{BASE}/0", "shop/width-128/0"]
    assert stored[f"shop/{BASE}/0"]["ratios"] == {"alone": [1, 1, 1], SERVED: [1, 1, 1]}
    monkeypatch.setattr(encoder_trials, "run_trial", pytest.fail)
    main(given)
    assert json.loads(out.read_text())["measurements"] == stored
    assert "shop/width-128/0" in capsys.readouterr().out
