"""Training: it learns, it can be killed, and it says what went wrong."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from training.backbones.backbone import load_backbone
from training.backbones.batches import Collator
from training.backbones.vlm import load_embedder
from training.config.run_config import RunConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import Sequences
from training.errors import BackboneError, ConfigError, DatasetError, TrainingDiverged
from training.finetune import step
from training.finetune.trainer import TrainingProgress, train_vlm
from training.finetune.trainer_state import TrainerState
from training.losses.method_loss import MethodLoss
from training.runs import checkpoints

if TYPE_CHECKING:
    from training.backbones.batches import PairBatch

Small = Callable[..., RunConfig]


class Killed(BaseException):
    """Stands for a signal: nothing in the trainer may catch it."""


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def kill_after(step: int) -> Callable[[TrainingProgress], None]:
    def report(now: TrainingProgress) -> None:
        if now.step == step:
            raise Killed

    return report


def test_the_loss_falls_on_users_who_stay_with_a_colour(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    config = small(
        train__steps=60, train__batch_size=24, train__learning_rate=0.005, train__log_every=10, loss__wpcl_weight=0.5
    )
    seen: list[TrainingProgress] = []
    model = train_vlm(shop, shop_train, tmp_path, config, report=seen.append)
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [10, 20, 30, 40, 50, 60]
    assert log[-1]["nce"] < log[0]["nce"] - 0.5
    assert all(math.isfinite(value) for line in log for value in line.values())
    assert {"loss", "nce", "wpcl", "crtr", "gap", "log_beta", "image_weak", "gradient_norm", "lead"} <= set(log[0])
    assert (seen[0].step, seen[-1].step, seen[-1].steps) == (0, 60, 60)
    assert load_embedder(model).max_history == 4
    assert list(json.loads((tmp_path / "unreadable.json").read_text())) == ["i05"]


@pytest.mark.parametrize("killed_after", [4, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, killed_after: int
) -> None:
    config = small(train__steps=9, train__checkpoint_steps=3, train__log_every=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_vlm(shop, shop_train, whole, config)
    with pytest.raises(Killed):
        train_vlm(shop, shop_train, broken, config, report=kill_after(killed_after))
    train_vlm(shop, shop_train, broken, config, resume=True)
    without_time = [[{k: v for k, v in line.items() if k != "seconds"} for line in lines(d)] for d in (whole, broken)]
    assert without_time[0] == without_time[1]
    first, second = (load_file(d / "model" / "model.safetensors") for d in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pictures_that_were_unreadable_before_a_kill_stay_recorded(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    copy, run = load_dataset(shutil.copytree(shop.directory, tmp_path / "shop")), tmp_path / "run"
    picture = copy.image_path(5)
    assert isinstance(picture, Path)
    config = small(train__steps=9, train__checkpoint_steps=8)
    with pytest.raises(Killed):
        train_vlm(copy, shop_train, run, config, report=kill_after(8))
    Image.new("RGB", (8, 8)).save(picture, "PNG")  # so that the steps that are left cannot find it unreadable
    train_vlm(copy, shop_train, run, config, resume=True)
    assert list(json.loads((run / "unreadable.json").read_text())) == ["i05"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train_vlm(shop, shop_train, tmp_path, small(), report=kill_after(2))
    train_vlm(shop, shop_train, tmp_path, small(), resume=True)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_done_again(shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path) -> None:
    model = train_vlm(shop, shop_train, tmp_path, small(train__steps=1))
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert train_vlm(shop, shop_train, tmp_path, small(train__steps=1), resume=True) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_a_directory_belongs_to_one_run(shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__steps=1))
    with pytest.raises(ConfigError, match="--resume"):
        train_vlm(shop, shop_train, tmp_path, small(train__steps=1))
    with pytest.raises(ConfigError, match="another configuration or other data"):
        train_vlm(shop, shop_train, tmp_path, small(train__steps=2), resume=True)
    other = replace(shop_train, rows=shop_train.rows[::-1].copy())
    with pytest.raises(ConfigError, match="another configuration or other data"):
        train_vlm(shop, other, tmp_path, small(train__steps=1), resume=True)
    changed = small(train__steps=1, train__log_every=5, train__keep_checkpoints=7)  # nothing that training depends on
    train_vlm(shop, shop_train, tmp_path, changed, resume=True)


def test_a_directory_is_trained_in_by_one_process_at_a_time(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    def another(now: TrainingProgress) -> None:
        if now.step == 2:
            with pytest.raises(ConfigError, match="another process is training here"):
                train_vlm(shop, shop_train, tmp_path, small(), resume=True)

    train_vlm(shop, shop_train, tmp_path, small(train__steps=3), report=another)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_only_the_newest_checkpoints_are_kept(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__checkpoint_steps=1, train__keep_checkpoints=2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_a_checkpoint_is_also_written_when_time_has_passed(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__steps=2, train__checkpoint_seconds=1e-6))
    assert checkpoints.newest(tmp_path / "checkpoints") == checkpoints.Checkpoint(
        tmp_path / "checkpoints" / "step-00000002", 2
    )


def poisoned(loss: Callable[..., MethodLoss], after: int) -> Callable[..., MethodLoss]:
    calls = 0

    def method_loss(*args: Any, **options: Any) -> MethodLoss:
        nonlocal calls
        calls += 1
        found = loss(*args, **options)
        return found if calls <= after else replace(found, total=found.total * float("nan"))

    return method_loss


def test_a_loss_that_is_not_finite_names_the_items(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PairBatch] = []
    collate = Collator.pairs
    monkeypatch.setattr(Collator, "pairs", lambda self, w: seen.append(collate(self, w)) or seen[-1])
    monkeypatch.setattr(step, "method_loss", poisoned(step.method_loss, after=2))
    with pytest.raises(TrainingDiverged, match="loss must be finite, got nan in step 3") as caught:
        train_vlm(shop, shop_train, tmp_path, small())
    ids = [f"i{row:02d}" for row in seen[2].item_ids.tolist()]  # batches are put together ahead
    assert str(caught.value).endswith(", ".join(ids[:20]) + (" …" if len(ids) > 20 else ""))
    record = json.loads((tmp_path / "diverged.json").read_text())
    assert (record["step"], record["what"], record["value"], record["next_items"]) == (3, "loss", "nan", ids)
    assert record["terms"]["nce"] != "nan"
    assert all(target in own for target, own in zip(ids, record["left_out_of_negatives"], strict=True))
    assert not (tmp_path / "model").exists()


def test_a_gradient_that_is_not_finite_is_reported(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = step.method_loss

    def steep(*args: Any, **options: Any) -> MethodLoss:
        found = loss(*args, **options)
        bent = found.total - found.total.detach()  # 0 with a gradient of 1
        return replace(found, total=found.total.detach() + bent * float("inf") if bent.item() else bent.sqrt())

    monkeypatch.setattr(step, "method_loss", steep)
    with pytest.raises(TrainingDiverged, match="norm of the gradient must be finite"):
        train_vlm(shop, shop_train, tmp_path, small())


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(("modality", "untouched"), [("text", "visual."), ("image", None)])
def test_a_modality_can_be_trained_alone(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, modality: str, untouched: str | None
) -> None:
    config = small(train__modalities=[modality], train__steps=2, train__weight_decay=0.0)
    model = weights_of(train_vlm(shop, shop_train, tmp_path, config))
    start = weights_of(tmp_path / "start")
    changed = {name for name in start if not torch.equal(start[name], model[name])}
    assert changed
    if untouched is not None:
        assert not any(untouched in name for name in changed)
    assert all("pairs" in line and line["nce"] > 0 for line in lines(tmp_path))


def test_the_vision_tower_has_its_own_rate(shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path) -> None:
    """AdamW's first step moves a weight by its rate, so the two towers differ by the factor."""
    config = small(train__steps=1, train__warmup=0.0, train__vision_rate=4.0, train__weight_decay=0.0)
    model = weights_of(train_vlm(shop, shop_train, tmp_path, config))
    start = weights_of(tmp_path / "start")
    moved = {name: (model[name] - start[name]).abs().max().item() for name in start}
    vision = max(value for name, value in moved.items() if "visual." in name)
    language = max(value for name, value in moved.items() if "visual." not in name)
    assert vision / language == pytest.approx(4.0, rel=0.02)


def test_adapters_on_a_pretrained_model(
    shop: Dataset, shop_train: Sequences, small: Small, backbone_directory: Path, tmp_path: Path
) -> None:
    config = small(
        vlm__model=str(backbone_directory), vlm__lora__rank=2, vlm__lora__dropout=0.3, train__steps=4,
        vlm__activation_checkpointing=True, train__checkpoint_steps=2,
    )  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    model = train_vlm(shop, shop_train, whole, config)
    with pytest.raises(Killed):
        train_vlm(shop, shop_train, broken, config, report=kill_after(3))
    train_vlm(shop, shop_train, broken, config, resume=True)
    kept = load_file(broken / "checkpoints" / "step-00000004" / "weights.safetensors")
    assert all("lora_" in name for name in kept)
    first, second = (load_file(d / "model" / "adapter" / "adapter_model.safetensors") for d in (whole, broken))
    assert any(weight.abs().max() > 0 for name, weight in first.items() if "lora_B" in name)
    assert all(torch.equal(first[name], second[name]) for name in first)  # dropout came back as well
    assert not (model / "model.safetensors").exists()
    assert load_embedder(model).model["id"] == str(backbone_directory)


def test_bfloat16_training_is_finite(shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__precision="bf16", train__steps=2))
    assert all(math.isfinite(value) for line in lines(tmp_path) for value in line.values())


def test_one_pair_a_window(shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__pairs="last", train__steps=1))
    assert lines(tmp_path)[0]["pairs"] <= 6


def test_nothing_to_train_on(shop: Dataset, small: Small, tmp_path: Path) -> None:
    lonely = Sequences(["u"], np.array([0, 1]), np.array([2]))
    with pytest.raises(DatasetError):
        train_vlm(shop, lonely, tmp_path, small())


def test_a_missing_backbone_leaves_the_directory_free(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    with pytest.raises(BackboneError):
        train_vlm(shop, shop_train, tmp_path, small(vlm__model=str(tmp_path / "none")))
    train_vlm(shop, shop_train, tmp_path, small(train__steps=1))


def test_a_line_cut_short_by_a_kill_is_dropped(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    config = small(train__checkpoint_steps=2)
    with pytest.raises(Killed):
        train_vlm(shop, shop_train, tmp_path, config, report=kill_after(5))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train_vlm(shop, shop_train, tmp_path, config, resume=True)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


class TestCheckpoints:
    @staticmethod
    def model() -> tuple[nn.Linear, torch.optim.AdamW]:
        layer = nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return layer, optimizer

    def test_what_is_half_written_does_not_count(self, tmp_path: Path) -> None:
        layer, optimizer = self.model()
        written = checkpoints.write(tmp_path, 3, layer, optimizer, {"step": 3}, keep=2)
        (tmp_path / ".step-00000009.part").mkdir()
        (tmp_path / "step-x").mkdir()
        assert checkpoints.newest(tmp_path) == written == checkpoints.at(tmp_path, 3)
        checkpoints.write(tmp_path, 4, layer, optimizer, {"step": 4}, keep=1, beside={3})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004", "step-x"]
        assert checkpoints.newest(tmp_path / "none") is None

    def test_moments_come_back(self, tmp_path: Path) -> None:
        layer, optimizer = self.model()
        written = checkpoints.write(tmp_path, 1, layer, optimizer, {"step": 1, "lead": 0.5}, keep=1)
        fresh = nn.Linear(2, 1)
        moments = torch.optim.AdamW(fresh.parameters(), lr=0.1)
        assert checkpoints.restore(written, fresh, moments) == {"step": 1, "lead": 0.5}
        assert torch.equal(fresh.weight, layer.weight)
        for mine, theirs in zip(fresh.parameters(), layer.parameters(), strict=True):
            for key, value in optimizer.state[theirs].items():
                assert torch.equal(moments.state[mine][key], value)

    @pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
    def test_a_damaged_checkpoint_is_reported(self, tmp_path: Path, name: str) -> None:
        layer, optimizer = self.model()
        written = checkpoints.write(tmp_path, 1, layer, optimizer, {}, keep=1)
        (written.path / name).write_bytes(b"{")
        with pytest.raises(BackboneError, match="cannot be read"):
            checkpoints.restore(written, layer, optimizer)

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path: Path) -> None:
        layer, optimizer = self.model()
        written = checkpoints.write(tmp_path, 1, layer, optimizer, {}, keep=1)
        save_file({"other": torch.zeros(1)}, written.path / "weights.safetensors")
        with pytest.raises(BackboneError, match="another model"):
            checkpoints.restore(written, layer, optimizer)


def test_the_backbone_from_scratch_is_made_once(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train_vlm(shop, shop_train, tmp_path, small(), report=kill_after(0))
    first = load_backbone(tmp_path / "start").model.state_dict()
    before = (tmp_path / "start" / "model.safetensors").stat().st_mtime_ns
    train_vlm(shop, shop_train, tmp_path, small(train__steps=6), resume=True)
    assert (tmp_path / "start" / "model.safetensors").stat().st_mtime_ns == before
    assert all(torch.isfinite(weight).all() for weight in first.values())


def test_the_state_in_a_checkpoint_has_the_names_of_earlier_versions(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__steps=2, train__checkpoint_steps=2))
    stored = json.loads((tmp_path / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert list(stored) == ["lead", "step", "window", "seconds", "best", "best_step", "worse"]
    assert stored["lead"] == lines(tmp_path)[-1]["lead"] != 0
    restored = TrainerState.from_json(stored)
    assert (restored.step, restored.confidence_gap) == (2, stored["lead"])
    assert restored.as_json() == stored
    for other in ({**stored, "epoch": 1}, {name: value for name, value in stored.items() if name != "lead"}):
        with pytest.raises(BackboneError, match=r"of another version of the program \((epoch|lead)\); resume with"):
            TrainerState.from_json(other)
