"""Validation while training: the best weights are kept, and training ends when patience does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut, Sequences, leave_one_out
from training.errors import ConfigError
from training.finetune.trainer import TrainingProgress, train_vlm
from training.finetune.validation import DirectRanking

Small = Callable[..., RunConfig]


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let validations after given steps find given values."""

    def follow(**values: float) -> None:
        monkeypatch.setattr(DirectRanking, "measure", lambda *_: {"ndcg@10": next(found)})
        found = iter(values.values())

    return follow


def log(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def equal(first: Path, second: Path) -> bool:
    one, two = ({name.removeprefix("model."): w for name, w in load_file(path).items()} for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def kept(directory: Path, step: int) -> Path:
    return directory / "checkpoints" / f"step-{step:08d}" / "weights.safetensors"


def test_training_ends_early_with_the_best_weights(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path, course: Callable[..., None]
) -> None:
    course(step_1=0.1, step_2=0.3, step_3=0.2, step_4=0.3)  # as good as the best is not better
    seen: list[TrainingProgress] = []
    config = small(train__steps=50, train__validate_every=1, train__patience=2, train__keep_checkpoints=1)
    model = train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation, report=seen.append)
    assert [line["ndcg@10"] for line in log(tmp_path)] == [0.1, 0.3, 0.2, 0.3]
    assert seen[-1].step == 4
    assert equal(model / "model.safetensors", kept(tmp_path, 2))
    assert not equal(model / "model.safetensors", kept(tmp_path, 4))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_patience_survives_a_kill(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path, course: Callable[..., None], killed_at: int
) -> None:
    """Also one that comes after the last step, before the model is written."""

    def report(now: TrainingProgress) -> None:
        if now.step == killed_at:
            raise Killed

    values = {"step_1": 0.1, "step_2": 0.3, "step_3": 0.2, "step_4": 0.25}
    config = small(train__steps=50, train__validate_every=1, train__patience=2, train__keep_checkpoints=1)
    course(**values)
    with pytest.raises(Killed):
        train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation, report=report)
    model = train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation, resume=True)
    assert [line["ndcg@10"] for line in log(tmp_path)] == list(values.values())
    assert equal(model / "model.safetensors", kept(tmp_path, 2))


def test_without_patience_every_step_is_done_and_the_last_weights_are_kept(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path, course: Callable[..., None]
) -> None:
    course(step_2=0.3, step_4=0.2, step_5=0.1)
    config = small(train__steps=5, train__validate_every=2, train__log_every=3)
    model = train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation)
    # Validated after every second step and the last one; lines after these and every third.
    assert [(line["step"], line.get("ndcg@10")) for line in log(tmp_path)] == [(2, 0.3), (3, None), (4, 0.2), (5, 0.1)]
    assert equal(model / "model.safetensors", kept(tmp_path, 5))


def test_validation_does_not_change_training(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path
) -> None:
    plain = train_vlm(shop, shop_parts.train, tmp_path / "plain", small(train__steps=4))
    config = small(train__steps=4, train__validate_every=1)
    watched = train_vlm(shop, shop_parts.train, tmp_path / "watched", config, validation=shop_parts.validation)
    assert equal(plain / "model.safetensors", watched / "model.safetensors")
    assert all(0 <= line["ndcg@10 image"] <= 1 for line in log(tmp_path / "watched"))


def test_a_model_that_learns_is_seen_to_learn(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path
) -> None:
    """Users stay with one of six colours, so of 30 items 5 are right for each."""
    config = small(
        train__steps=60,
        train__batch_size=24,
        train__learning_rate=0.005,
        train__validate_every=20,
        loss__wpcl_weight=0.5,
    )
    train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation)
    found = [line["ndcg@10"] for line in log(tmp_path) if "ndcg@10" in line]
    chance = sum(1 / 30 / torch.log2(torch.tensor(rank + 2.0)).item() for rank in range(10))
    assert found[-1] > 1.5 * chance


def test_there_must_be_something_to_validate_on(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path
) -> None:
    config = small(train__validate_every=3)
    with pytest.raises(ConfigError, match=r"train\.validate_every = 3 needs held-out events and there are none"):
        train_vlm(shop, shop_parts.train, tmp_path, config)
    with pytest.raises(ConfigError, match="patience needs validate_every"):
        small(train__patience=3)


def test_the_held_out_events_are_part_of_the_run(
    shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path
) -> None:
    config = small(train__steps=1, train__validate_every=1)
    train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation)
    with pytest.raises(ConfigError, match="another configuration or other data"):
        train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.test, resume=True)


def test_of_no_sequences_there_is_no_validation(small: Small, shop: Dataset, tmp_path: Path) -> None:
    parts = leave_one_out(Sequences(["u"], np.array([0, 2]), np.array([1, 2])))
    with pytest.raises(ConfigError, match="users need at least 3 interactions"):
        train_vlm(shop, parts.train, tmp_path, small(train__validate_every=1), validation=parts.validation)
