"""Is a modality collapsing? Each rule by itself, at its edge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.finetune.training_run import TrainingRun
from training.report.diagnosis import gradient_share, judge
from training.report.utilisation import Utilisation


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Callable[..., TrainingRun]:
    """A run of one line with these values."""

    def make(values: dict[str, float], **changes: Any) -> TrainingRun:
        return TrainingRun.read(make_run("run", [{"step": 5, **values}] if values else [], **changes))

    return make


def used(modality: str, joint: float, alone: float) -> Utilisation:
    return Utilisation(modality, joint, alone, 100, 50, 5, 5)


LEVEL = {
    "gradient text": 1.0, "gradient image": 1.0, "effective rank text": 9.0, "effective rank image": 9.0,
    "ndcg@10": 0.3, "ndcg@10 text": 0.2, "ndcg@10 image": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind", "headline"),
    [
        ({}, "good", "Both modalities are alive"),
        ({"gradient image": 0.25}, "good", "Both modalities are alive"),  # a fifth
        ({"gradient image": 0.24}, "warn", "The image side may be falling behind"),
        ({"gradient text": 0.24}, "warn", "The text side may be falling behind"),
        ({"ndcg@10 image": 0.1}, "good", "Both modalities are alive"),  # a half
        ({"ndcg@10 image": 0.09}, "warn", "The image side may be falling behind"),
        ({"ndcg@10 text": 0.0}, "warn", "The text side may be falling behind"),
        ({"gradient image": 0.1, "ndcg@10 image": 0.05}, "bad", "The image side is falling behind"),
        ({"gradient image": 0.1, "ndcg@10 text": 0.05}, "warn", "The image or text side may be falling behind"),
        ({"effective rank text": 2.0}, "good", "Both modalities are alive"),
        ({"effective rank text": 1.9}, "bad", "The text vectors have collapsed"),
        ({"gradient image": 0.1, "effective rank text": 1.9}, "bad", "The text vectors have collapsed"),
    ],
)
def test_signs(run: Callable[..., TrainingRun], changes: dict[str, float], kind: str, headline: str) -> None:
    found = judge(run(LEVEL | changes), [])
    assert (found.kind, found.headline) == (kind, headline)
    assert len(found.reasons) == 3


def test_the_numbers_are_said(run: Callable[..., TrainingRun]) -> None:
    found = judge(run(LEVEL | {"gradient image": 3.0, "effective rank image": 4.25, "ndcg@10 image": 0.15}), [])
    assert found.reasons == (
        "The vectors use 9.0 (text) and 4.2 (image) directions.",
        "Image gets 75 % of the gradient late in the run, text 25 %.",
        "NDCG@10 by image alone is 0.1500, by text alone 0.2000.",
    )


@pytest.mark.parametrize(
    ("found", "kind", "headline"),
    [
        ([used("image", 0.06, 0.1)], "bad", "The image side has collapsed"),
        ([used("image", 0.061, 0.1)], "warn", "The image side is not fully used"),
        ([used("image", 0.089, 0.1)], "warn", "The image side is not fully used"),
        ([used("image", 0.45, 0.5)], "good", "The image side is fully used"),
        ([used("image", 0.2, 0.1), used("text", 0.05, 0.1)], "bad", "The text side has collapsed"),
        ([used("image", 0.2, 0.1), used("text", 0.1, 0.1)], "good", "Text and image are both fully used"),
        ([used("image", 0.2, 0.0)], "unknown", "Nothing can be said about utilisation"),
    ],
)
def test_utilisation_settles_it(
    run: Callable[..., TrainingRun], found: list[Utilisation], kind: str, headline: str
) -> None:
    """Also against the signs: the image gets little gradient here."""
    verdict = judge(run(LEVEL | {"gradient image": 0.1}), found)
    assert (verdict.kind, verdict.headline) == (kind, headline)
    assert len(verdict.reasons) == 3 + len(found)


def test_collapsed_vectors_are_no_good_whatever_the_utilisation(run: Callable[..., TrainingRun]) -> None:
    assert judge(run(LEVEL | {"effective rank image": 1.0}), [used("image", 1.0, 0.1)]).kind == "bad"


def test_without_measurements_nothing_is_concluded(run: Callable[..., TrainingRun]) -> None:
    assert judge(run({"loss": 1.0}), []).headline == "The log does not tell how the modalities fare"


def test_of_an_empty_log(run: Callable[..., TrainingRun]) -> None:
    assert judge(run({}), []).headline == "Nothing was logged yet"


def test_one_modality_alone(run: Callable[..., TrainingRun]) -> None:
    found = judge(run(LEVEL, train__modalities=["image"]), [])
    assert (found.kind, found.headline) == ("unknown", "Trained on image alone")


def test_a_share_needs_both(run: Callable[..., TrainingRun]) -> None:
    assert gradient_share(run({"gradient image": 1.0}), "image") is None


def test_no_gradient_at_all_is_no_share(run: Callable[..., TrainingRun]) -> None:
    assert gradient_share(run({"gradient image": 0.0, "gradient text": 0.0}), "image") is None
