"""Utilisation by hand, and every reason not to compare two runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from training.data.dataset import Dataset
from training.errors import EvaluationError
from training.finetune.training_run import TrainingRun
from training.report.utilisation import Utilisation, utilisation

JOINT = [
    {"step": 5, "ndcg@10": 0.5, "ndcg@10 text": 0.2, "ndcg@10 image": 0.12},
    {"step": 10, "ndcg@10": 0.4, "ndcg@10 text": 0.3, "ndcg@10 image": 0.06},
    {"step": 11, "loss": 1.0},
]
ALONE = [{"step": 5, "ndcg@10": 0.4}, {"step": 10, "ndcg@10": 0.2}]
EVERY = {"train__validate_every": 5}
IMAGE = {"train__modalities": ["image"], **EVERY}


@pytest.fixture
def compare(make_run: Callable[..., Path], small_shop: Dataset) -> Callable[..., Utilisation]:
    def comparing(
        joint: dict[str, Any] = EVERY,
        alone: dict[str, Any] = IMAGE,
        *,
        logs: tuple[list[Any], list[Any]] = (JOINT, ALONE),
        dataset: Dataset = small_shop,
        modality: str = "image",
    ) -> Utilisation:
        runs = [
            TrainingRun.read(make_run(name, log, **changes))
            for name, log, changes in zip(("joint", "alone"), logs, (joint, alone), strict=True)
        ]
        return utilisation(*runs, modality, dataset, runs[0].split(dataset))

    return comparing


def test_the_last_values_of_both(compare: Callable[..., Utilisation]) -> None:
    found = compare()
    assert (found.joint, found.alone, found.ratio) == (0.06, 0.2, pytest.approx(0.3))
    assert (found.joint_step, found.alone_step, found.users, found.items) == (10, 10, 6, 12)
    assert found.unfinished == ()


def test_of_a_run_that_keeps_its_best_weights_theirs(compare: Callable[..., Utilisation]) -> None:
    found = compare({**EVERY, "train__patience": 3})
    assert (found.joint, found.joint_step, found.ratio) == (0.12, 5, pytest.approx(0.6))


def test_text_is_compared_as_images_are(compare: Callable[..., Utilisation]) -> None:
    assert compare(alone={**IMAGE, "train__modalities": ["text"]}, modality="text").ratio == pytest.approx(1.5)


def test_a_run_that_has_not_ended_is_named(compare: Callable[..., Utilisation]) -> None:
    assert [Path(name).name for name in compare({**EVERY, "finished": False}).unfinished] == ["joint"]


def test_what_finds_nothing_alone_cannot_be_used(compare: Callable[..., Utilisation]) -> None:
    assert compare(logs=(JOINT, [{"step": 5, "ndcg@10": 0.0}])).ratio is None


def test_chance() -> None:
    """Of two items the right one is first or second, equally often; beyond ten nothing is gained."""
    assert Utilisation("image", 1, 1, 1, 2, 1, 1).chance == pytest.approx((1 + 1 / 1.584962500721156) / 2)
    assert Utilisation("image", 1, 1, 1, 20, 1, 1).chance == pytest.approx(4.543559338088345 / 20)


@pytest.mark.parametrize(
    ("joint", "alone", "said"),
    [
        (IMAGE, IMAGE, "the joint run must be trained on image and text, it was trained on image "),
        (EVERY, EVERY, "--image-alone must be trained on image, it was trained on text and image"),
        (EVERY, {**IMAGE, "train__modalities": ["text"]}, "must be trained on image, it was trained on text"),
        (EVERY, {"train__modalities": ["image"]}, "no validation in its log; train it with train.validate_every set"),
        (EVERY, {**IMAGE, "train__validation_users": 3}, "validated on different events or items"),
        (EVERY, {**IMAGE, "train__validation_items": 8}, "validated on different events or items"),
        (EVERY, {**IMAGE, "encoder__cold_items": 0.3}, "validated on different events or items"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared(
    compare: Callable[..., Utilisation], joint: dict[str, Any], alone: dict[str, Any], said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        compare(joint, alone)


@pytest.mark.parametrize("logs", [([], ALONE), (JOINT, []), (JOINT, [{"step": 5, "loss": 2.0}])])
def test_without_a_validation_there_is_nothing_to_compare(compare: Callable[..., Utilisation], logs: Any) -> None:
    with pytest.raises(EvaluationError, match="no validation in its log"):
        compare(logs=logs)


def test_a_log_without_the_modality(compare: Callable[..., Utilisation]) -> None:
    with pytest.raises(EvaluationError, match="lacks NDCG@10 of image alone"):
        compare(logs=([{"step": 5, "ndcg@10": 0.5}], ALONE))


def test_other_data(compare: Callable[..., Utilisation], small_shop: Dataset) -> None:
    changed = Dataset(
        small_shop.directory,
        small_shop.items.with_columns(pl.lit("another text").alias("text")),
        small_shop.interactions,
    )
    with pytest.raises(EvaluationError, match=r"joint: this run was trained on other data, or by another version"):
        compare(dataset=changed)


def test_a_run_without_a_fingerprint_is_not_believed(make_run: Callable[..., Path], small_shop: Dataset) -> None:
    joint, alone = make_run("joint", JOINT, **EVERY), make_run("alone", ALONE, **IMAGE)
    (alone / "train" / "fingerprint").unlink()
    run = TrainingRun.read(joint)
    with pytest.raises(EvaluationError, match=r"alone: this run was trained on other data.*fingerprint unknown"):
        utilisation(run, TrainingRun.read(alone), "image", small_shop, run.split(small_shop))
