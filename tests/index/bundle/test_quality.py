"""Reading the evaluation that `vlm2rec evaluate` wrote, and refusing other files."""

import copy

import pytest

from index.bundle.quality import METRIC, SYSTEMS, Quality, SystemScore
from index.errors import IndexSpecError
from training.evaluation import evaluate
from training.ranking import table


@pytest.fixture
def evaluation(make_evaluation):
    return make_evaluation()


def test_figures_and_systems(evaluation, encoder_path):
    quality = Quality.read(evaluation, encoder_path)
    assert (quality.targets, quality.users) == ("test", 610)
    assert quality.systems[1] == SystemScore("served encoder", 0.06, 3.0, 2.5, 3.5)
    # A ratio that is not defined is no figure, so a bound on it is missed.
    assert quality.figures() == {"served_quality": 3.0, "text_quality": 0.5}
    assert quality.evaluation == evaluation
    assert quality.as_json()["systems"][3] == {
        "name": "image only",
        "ndcg": 0.0,
        "ratio": None,
        "low": None,
        "high": None,
    }


def test_the_names_are_those_that_evaluate_writes():
    assert SYSTEMS["served_quality"] == evaluate.SERVED
    assert SYSTEMS["text_quality"] == evaluate.subset_name(("text",))
    assert SYSTEMS["image_quality"] == evaluate.subset_name(("image",))
    assert f"ndcg@{table.CUTS[0]}" == METRIC


def test_an_evaluation_of_another_encoder_is_refused(evaluation, encoder_path):
    evaluation["model"]["encoder"]["hash"] = "0123456789abcdef"
    with pytest.raises(IndexSpecError, match=r"measured the encoder '0123456789abcdef', this bundle gets '.{16}'"):
        Quality.read(evaluation, encoder_path)


@pytest.mark.parametrize("served", [True, False])
def test_an_evaluation_with_another_exclude_seen_is_refused(evaluation, encoder_path, served):
    for measured in (None, served):  # an earlier version does not say it
        evaluation["tables"][0]["exclude_seen"] = measured
        assert Quality.read(evaluation, encoder_path, exclude_seen=served).users == 610
    evaluation["tables"][0]["exclude_seen"] = not served
    rule = f"with exclude_seen = {str(not served).lower()}, this bundle has {str(served).lower()}"
    with pytest.raises(IndexSpecError, match=rule):
        Quality.read(evaluation, encoder_path, exclude_seen=served)


def change(evaluation, path, value):
    changed = copy.deepcopy(evaluation)
    part = changed
    for name in path[:-1]:
        part = part[name]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        (("model",), None, "model: Field required"),
        (("model", "encoder"), {}, "hash: Field required"),
        (("model", "encoder", "hash"), 3, "hash: Input should be a valid string"),
        (("tables",), [], "tables: Tuple should have at least 1 item"),
        (("tables",), "x", "tables: Input should be a valid"),
        (("tables", 0, "users"), 0, "users: Input should be greater"),
        (("tables", 0, "rows", 1, "ndcg@10"), "0.06", "Input should be a valid number"),
        (("tables", 0, "rows", 1, "ndcg@10"), None, "Field required"),
        (("tables", 0, "rows", 1, "ratio_to_popularity"), {"ndcg@10": [1.0]}, "ratio_to_popularity"),
    ],
)
def test_other_forms_are_refused(evaluation, encoder_path, path, value, rule):
    with pytest.raises(IndexSpecError, match=rf"not what `vlm2rec evaluate --json` writes \(.*{rule}.*evaluate again"):
        Quality.read(change(evaluation, path, value), encoder_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_refuses_figures_that_are_not_json(evaluation, encoder_path, value):
    evaluation["tables"][0]["rows"][1]["ndcg@10"] = value
    with pytest.raises(IndexSpecError, match="evaluation figures must be JSON without NaN"):
        Quality.read(evaluation, encoder_path)


def test_a_system_without_the_metric_has_no_ratio(evaluation, encoder_path):
    changed = change(evaluation, ("tables", 0, "rows", 1, "ratio_to_popularity"), {"hr@10": [1.0, 1.0, 1.0]})
    assert Quality.read(changed, encoder_path).figures() == {"text_quality": 0.5}
