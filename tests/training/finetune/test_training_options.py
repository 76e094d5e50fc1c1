"""What the configuration can ask of a run beside its course: memory, attention, adapters, threads, schedules."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from training.backbones.backbone import load_backbone
from training.backbones.batches import Collator
from training.backbones.starting_model import trainable
from training.backbones.vlm import VlmEmbedder
from training.config.run_config import RunConfig, TrainConfig
from training.config.vlm_config import VlmConfig
from training.data.dataset import Dataset
from training.data.pictures import Picture, PictureStore
from training.data.sequences import Sequences
from training.errors import BackboneError, OutOfMemory
from training.finetune import step as step_module
from training.finetune.step import learning_rate_schedule
from training.finetune.trainer import train_vlm

Small = Callable[..., RunConfig]
Encode = Callable[..., Any]


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def log(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


# --- memory


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_cached_gradients_train_like_plain_ones(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, precision: str
) -> None:
    plain = small(train__precision=precision)
    cached = small(train__precision=precision, train__cached_gradients=True, train__chunk_tokens=64)
    train_vlm(shop, shop_train, tmp_path / "plain", plain)
    train_vlm(shop, shop_train, tmp_path / "cached", cached)
    for one, other in zip(log(tmp_path / "plain"), log(tmp_path / "cached"), strict=True):
        assert other == pytest.approx(one, rel=1e-4 if precision == "no" else 0.03, abs=1e-3)


def test_a_large_model_is_trained_in_16_bits_with_everything_that_saves_memory(
    shop: Dataset, shop_train: Sequences, small: Small, backbone_directory: Path, tmp_path: Path
) -> None:
    """As the preset for a real backbone has it: 16-bit weights that stay as they are, float32 adapters that move."""
    config = small(
        vlm__model=str(backbone_directory), vlm__dtype="bfloat16", vlm__activation_checkpointing=True,
        vlm__lora__rank=2, train__precision="bf16", train__cached_gradients=True, train__chunk_tokens=64,
        train__learning_rate=0.01,
    )  # fmt: skip
    model = train_vlm(shop, shop_train, tmp_path, config)
    assert all(math.isfinite(value) for line in log(tmp_path) for value in line.values())
    kept = load_file(model / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in kept.values()} == {torch.float32}
    assert any(weight.abs().max() > 0 for name, weight in kept.items() if "lora_B" in name)


def failing(step: int, error: Callable[[], None]) -> Encode:
    """The real encoding until a step, then an error as PyTorch raises it."""
    calls, encode = 0, step_module.encode

    def encode_or_fail(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            error()
        return encode(*args, **options)

    return encode_or_fail


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines follow")


def host_is_full() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "reason"), [(gpu_is_full, "Tried to allocate 2.00 GiB"), (host_is_full, "DefaultCPUAllocator")]
)
def test_a_batch_that_does_not_fit_says_what_to_lower_and_the_run_goes_on_with_it(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], None], reason: str,
) -> None:  # fmt: skip
    whole = train_vlm(shop, shop_train, tmp_path / "whole", small())
    with monkeypatch.context() as patched:
        patched.setattr(step_module, "encode", failing(4, error))
        with pytest.raises(OutOfMemory, match="step 4 needs more memory") as caught:
            train_vlm(shop, shop_train, tmp_path / "run", small(train__checkpoint_steps=2))
    said = str(caught.value)
    assert reason in said
    assert "\n" not in said
    assert "set train.cached_gradients = true, or lower train.batch_size (6)" in said
    assert "vlm.activation_checkpointing = true" in said
    changed = small(
        train__cached_gradients=True, train__chunk_tokens=64, train__chunk_patches=16, train__workers=0,
        vlm__activation_checkpointing=True,
    )  # fmt: skip
    resumed = train_vlm(shop, shop_train, tmp_path / "run", changed, resume=True)
    first, second = weights(whole), weights(resumed)
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_with_cached_gradients_the_chunks_are_what_to_lower(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "encode", failing(1, gpu_is_full))
    with pytest.raises(OutOfMemory, match=r"lower train\.chunk_tokens \(100\) and train\.chunk_patches \(65536\)"):
        train_vlm(shop, shop_train, tmp_path, small(train__cached_gradients=True, train__chunk_tokens=100))


def test_other_errors_of_pytorch_pass_through(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        torch.zeros(2, 3) @ torch.zeros(2, 3)

    monkeypatch.setattr(step_module, "encode", failing(2, broken))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_vlm(shop, shop_train, tmp_path, small())


# --- the model


def outcome(embedder: VlmEmbedder, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    outputs = embedder(batch)
    (outputs @ torch.linspace(-1, 1, outputs.shape[1])).square().sum().backward()
    return outputs.detach(), {name: w.grad for name, w in embedder.named_parameters() if w.grad is not None}


@pytest.fixture
def prompts(shop: Dataset, backbone_directory: Path) -> Any:
    """Texts and pictures of a few histories."""
    backbone = load_backbone(backbone_directory)
    store = PictureStore(shop.image_path, backbone.image_processor, memory_bytes=10**8)
    collator = Collator(backbone.tokenizer, shop.texts(), store, max_text_tokens=6, max_history=4, chunk_tokens=64)
    return collator.sequences([np.arange(n, n + 4) for n in range(8, 16)])[0]


def test_activation_checkpointing_computes_again_and_changes_nothing(backbone_directory: Path, prompts: Any) -> None:
    calls: dict[bool, int] = {}
    found = {}
    for recompute in (False, True):
        backbone = load_backbone(backbone_directory)
        embedder = VlmEmbedder(trainable(backbone, VlmConfig(activation_checkpointing=recompute))).train()
        calls[recompute] = 0

        def count(*_: object, key: bool = recompute) -> None:
            calls[key] += 1

        backbone.model.language_model.layers[0].mlp.register_forward_pre_hook(count)  # type: ignore[union-attr,index]
        found[recompute] = outcome(embedder, prompts)
    assert calls == {False: len(prompts.groups), True: 2 * len(prompts.groups)}
    torch.testing.assert_close(found[False][0], found[True][0])
    assert found[False][1].keys() == found[True][1].keys()
    for name, gradient in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], gradient)


def test_every_attention_gives_the_same(backbone_directory: Path, prompts: Any) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        backbone = load_backbone(backbone_directory, attention=attention)
        assert backbone.model.language_model.config._attn_implementation == attention
        found.append(outcome(VlmEmbedder(backbone.model).train(), prompts))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-4)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-5, rtol=1e-3)


def test_attention_whose_package_is_missing_is_reported_in_one_line(backbone_directory: Path) -> None:
    with pytest.raises(BackboneError, match="FlashAttention2") as caught:
        load_backbone(backbone_directory, attention="flash_attention_2")
    assert "\n" not in str(caught.value)
    assert 'vlm.attention = "sdpa"' in str(caught.value)


def test_adapters_are_those_of_the_configuration(
    shop: Dataset, shop_train: Sequences, small: Small, backbone_directory: Path, tmp_path: Path
) -> None:
    config = small(
        vlm__model=str(backbone_directory), vlm__lora__rank=3, vlm__lora__alpha=6, train__steps=1,
        vlm__lora__targets=["v_proj", "qkv"],
    )  # fmt: skip
    adapter = train_vlm(shop, shop_train, tmp_path, config) / "adapter"
    kept = load_file(adapter / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in kept} == {"v_proj", "qkv"}
    assert {weight.shape[0] for name, weight in kept.items() if "lora_A" in name} == {3}
    assert json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] == 6


# --- diagnostics


def test_what_is_seen_of_the_modalities_goes_into_the_log(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    names = {
        "confidence text", "confidence image", "gap", "image_weak", "effective rank text", "effective rank image",
        "uniformity text", "uniformity image", "cross-modal gap", "gradient text", "gradient image",
        "gradient language model", "gradient vision tower",
    }  # fmt: skip
    plain = {"loss__wpcl_weight": 0.0, "loss__crtr_weight": 0.0}
    train_vlm(shop, shop_train, tmp_path / "seen", small(**plain, train__diagnose_every=2))
    train_vlm(shop, shop_train, tmp_path / "unseen", small(**plain, train__diagnose_every=0))
    seen, unseen = log(tmp_path / "seen"), log(tmp_path / "unseen")
    for line, other in zip(seen, unseen, strict=True):
        assert (set(line) - set(other)) == (names if line["step"] % 2 == 0 else set())
        assert {name: line[name] for name in other} == other  # looking changes nothing
        if line["step"] % 2 == 0:
            towers = math.hypot(line["gradient language model"], line["gradient vision tower"])
            assert towers == pytest.approx(line["gradient_norm"], rel=1e-5)
            assert line["gradient text"] > 0
            assert line["gradient image"] > 0
            assert 1 <= line["effective rank image"] <= 16


def test_a_modality_alone_is_seen_alone(shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path) -> None:
    train_vlm(shop, shop_train, tmp_path, small(train__modalities=["image"], train__diagnose_every=1, train__steps=1))
    (line,) = log(tmp_path)
    assert line["gradient text"] == 0
    assert line["gradient image"] > 0
    assert "effective rank text" not in line
    assert "confidence text" not in line


# --- what goes from step to step


def test_the_moving_average_goes_from_step_to_step(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = [], []
    loss = step_module.method_loss

    def noted(*args: Any, confidence_gap: float, **options: Any) -> Any:
        found = loss(*args, confidence_gap=confidence_gap, **options)
        before.append(confidence_gap)
        after.append(found.confidence_gap.item())
        return found

    monkeypatch.setattr(step_module, "method_loss", noted)
    train_vlm(shop, shop_train, tmp_path, small())
    assert before == [0.0, *after[:-1]]
    assert len(set(after)) == 6
    assert [line["lead"] for line in log(tmp_path)] == after


def test_biases_and_norms_do_not_decay() -> None:
    model = torch.nn.Sequential()
    model.add_module("visual", torch.nn.Linear(2, 3))
    model.add_module("language", torch.nn.Linear(2, 3))
    model.add_module("norm", torch.nn.LayerNorm(3))
    model.norm.weight.requires_grad = False
    groups = step_module._weight_groups(model, TrainConfig(learning_rate=0.5, weight_decay=0.1, vision_rate=2.0))
    found = {(group["lr"], group["weight_decay"]): [tuple(w.shape) for w in group["params"]] for group in groups}
    assert found == {(1.0, 0.1): [(3, 2)], (1.0, 0.0): [(3,)], (0.5, 0.1): [(3, 2)], (0.5, 0.0): [(3,), (3,)]}


def test_trained_text_layers_have_their_own_rate() -> None:
    model = torch.nn.Module()
    model.text_layers = torch.nn.Linear(2, 3, bias=False)
    model.heads = torch.nn.Linear(2, 4, bias=False)
    groups = step_module._weight_groups(model, TrainConfig(learning_rate=0.5, text_layers_rate=0.1))
    assert {group["lr"]: tuple(group["params"][0].shape) for group in groups} == {0.05: (3, 2), 0.5: (4, 2)}


# --- threads and schedules


def test_pictures_are_read_off_the_training_thread(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: dict[int, set[str]] = {0: set(), 3: set()}
    read = PictureStore._read
    models = {}
    for workers, names in readers.items():

        def noted(self: PictureStore, row: int, names: set[str] = names) -> Picture | None:
            names.add(threading.current_thread().name)
            return read(self, row)

        monkeypatch.setattr(PictureStore, "_read", noted)
        models[workers] = weights(train_vlm(shop, shop_train, tmp_path / str(workers), small(train__workers=workers)))
    assert readers[0] == {threading.current_thread().name}
    assert readers[3]
    assert all(name.startswith("prefetch") for name in readers[3])
    assert all(torch.equal(weight, models[3][name]) for name, weight in models[0].items())
    assert log(tmp_path / "0") == log(tmp_path / "3")


def test_the_schedules_by_hand() -> None:
    """10 steps, 2 of warm-up: ½, 1, then a curve sampled at the middle of each of the 8 steps left."""
    for decay, expected in {
        "cosine": [0.5 * (1 + math.cos(math.pi * (n + 0.5) / 8)) for n in range(8)],
        "linear": [1 - (n + 0.5) / 8 for n in range(8)],
        "constant": [1.0] * 8,
    }.items():
        schedule = learning_rate_schedule(TrainConfig(steps=10, warmup=0.2, decay=decay))
        found = [schedule.factor(step) for step in range(10)]
        assert found[:2] == [0.5, 1.0]
        assert found[2:] == pytest.approx(expected)
        assert all(0 < value <= 1 for value in found)
        assert learning_rate_schedule(TrainConfig(steps=1, warmup=0.0, decay=decay)).factor(0) == 1.0


def test_the_rate_of_the_log_is_that_of_the_schedule(
    shop: Dataset, shop_train: Sequences, small: Small, tmp_path: Path
) -> None:
    config = small(train__decay="linear", train__learning_rate=0.01, train__warmup=0.0, train__steps=4)
    train_vlm(shop, shop_train, tmp_path, config)
    # One step of warm-up at least, then down along a line over three steps.
    assert [line["learning_rate"] for line in log(tmp_path)] == pytest.approx([0.01, 0.01 * 5 / 6, 0.005, 0.01 / 6])
