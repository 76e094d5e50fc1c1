from collections.abc import Callable

import numpy as np
import pytest

from training.data.sequences import LeaveOneOut, Sequences, leave_one_out
from training.evaluation import interaction_baselines as module
from training.evaluation.interaction_baselines import interaction_baselines
from training.ranking import metrics
from training.ranking.interaction_models import Ease, ItemKnn
from training.ranking.ranking import rank_targets

ITEMS = 24
EVERYTHING = np.ones(ITEMS, dtype=np.bool_)


@pytest.fixture
def parts(make_sequences: Callable[[list[list[int]]], Sequences]) -> LeaveOneOut:
    """Users who stay among six of 24 items, mostly."""
    rng = np.random.default_rng(0)
    histories = []
    for user in range(150):
        own = 6 * (user % 4) + rng.permutation(6)[:5]
        histories.append(np.where(rng.random(5) < 0.2, rng.integers(0, ITEMS, 5), own).tolist())
    return leave_one_out(make_sequences(histories))


def ndcg(ranker: Ease | ItemKnn, parts: LeaveOneOut, *, exclude_seen: bool = True) -> float:
    ranked = rank_targets(ranker, parts.validation, EVERYTHING, exclude_seen=exclude_seen)
    return float(metrics.gains(ranked.full, 10).mean())


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_best_setting_on_validation_is_chosen(parts: LeaveOneOut, exclude_seen: bool) -> None:
    steps: list[tuple[str, int, int]] = []
    found = interaction_baselines(parts, ITEMS, exclude_seen=exclude_seen, progress=lambda *step: steps.append(step))
    assert list(found.systems) == ["item kNN", "EASE"]
    assert found.notes == []
    values = {
        value: ndcg(Ease(parts.train, ITEMS, regularisation=value), parts, exclude_seen=exclude_seen)
        for value in module._REGULARISATIONS
    }
    assert len(set(values.values())) > 1
    chosen = found.settings["EASE"]
    assert chosen["regularisation"] == max(values, key=values.__getitem__)
    assert chosen["validation ndcg@10"] == max(values.values())
    for name, ranker in found.systems.items():
        assert ndcg(ranker, parts, exclude_seen=exclude_seen) == found.settings[name]["validation ndcg@10"]
    assert steps[0][:2] == ("item kNN", 0)
    assert steps[-1] == ("EASE", len(values), len(values))


def test_ease_is_left_out_of_large_catalogues_in_one_line(parts: LeaveOneOut, monkeypatch: pytest.MonkeyPatch) -> None:
    known = len(np.unique(parts.train.rows))
    monkeypatch.setattr(module, "EASE_BY_DEFAULT", known - 1)
    default = interaction_baselines(parts, ITEMS)
    assert (list(default.systems), len(default.notes)) == (["item kNN"], 1)
    assert f"{known} items have events, above {known - 1} it needs --ease" in default.notes[0]
    assert list(interaction_baselines(parts, ITEMS, ease=True).systems) == ["item kNN", "EASE"]
    none = interaction_baselines(parts, ITEMS, ease=False)
    assert (list(none.systems), none.notes) == (["item kNN"], [])
    monkeypatch.setattr(module, "EASE_AT_ALL", known - 1)
    above = interaction_baselines(parts, ITEMS, ease=True)
    assert list(above.systems) == ["item kNN"]
    assert f"at most {known - 1}" in above.notes[0]


def test_item_knn_is_left_out_of_large_data_in_one_line(parts: LeaveOneOut, monkeypatch: pytest.MonkeyPatch) -> None:
    known, pairs = len(np.unique(parts.train.rows)), int((np.diff(parts.train.offsets) ** 2).sum())
    monkeypatch.setattr(module, "KNN_PAIRS", pairs)
    assert list(interaction_baselines(parts, ITEMS, ease=False).systems) == ["item kNN"]
    monkeypatch.setattr(module, "KNN_PAIRS", pairs - 1)
    for said in (f"{pairs:,} pairs of items of the same user, at most {pairs - 1:,}", f"{known} items have events"):
        without = interaction_baselines(parts, ITEMS)
        assert list(without.systems) == ["EASE"]
        assert len(without.notes) == 1
        assert said in without.notes[0]
        monkeypatch.setattr(module, "KNN_ITEMS", known - 1)


def test_without_validation_targets_the_first_setting_is_taken(parts: LeaveOneOut) -> None:
    nothing = parts.validation.only(np.zeros(len(parts.validation), dtype=np.bool_))
    found = interaction_baselines(LeaveOneOut(parts.train, nothing, parts.test), ITEMS)
    assert found.settings["EASE"]["regularisation"] == module._REGULARISATIONS[0]
