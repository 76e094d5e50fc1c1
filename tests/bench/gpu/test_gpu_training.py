"""The training bench at toy size on the CPU: its times mean nothing, but what it counts and records must hold."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from bench.gpu import gpu_training
from bench.gpu.gpu_training import Bench, Card, measure
from bench.gpu.vlm_flops import VlmFlops, Work
from bench.gpu.vlm_work import THREE_B, TOY, longest_pairs, made_shop, model_config
from bench.measurements import Measurements
from training.backbones.backbone import train_tokenizer
from training.backbones.gradient_cache import _CachedPass
from training.backbones.vlm import VlmEmbedder

SMALL = replace(TOY, batches=(1, 2), embedded=(4,), products=(32, 64))


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def card() -> Card:
    return Card(torch.device("cpu"), repeats=1)


def test_the_real_shape_has_as_many_weights_as_the_published_model() -> None:
    config = model_config(THREE_B, train_tokenizer(["a"], 300))
    with torch.device("meta"):
        from transformers import AutoModel

        model = AutoModel.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == 3_754_622_976
    # A text token meets every weight of the language model but its embeddings and norms twice, and no other.
    layers = sum(w.numel() for w in model.language_model.layers.parameters() if w.ndim == 2)
    flops = VlmFlops(model.config, rank=0, targets=())
    assert flops.forward(Work(1, 0, 0, 0, 0, 0)) == 2 * layers


def test_every_prompt_is_as_long_as_it_can_be(tmp_path: Path) -> None:
    history = SMALL.config().train.max_history
    dataset = made_shop(tmp_path / "shop", SMALL, history)
    pairs, last = longest_pairs(dataset)
    windows = pairs.windows(last, history, every=True)
    assert [len(window.targets) for window in windows] == [history, history]
    assert len(dataset) == TOY.items


def test_what_is_measured_is_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Item pictures are 6 × 6 patches; two windows of 3 pairs; the answer needs the same whatever is kept in memory."""
    path, one_size = tmp_path / "results.json", replace(SMALL, batches=(2,))
    measure(one_size, card(), Measurements(path, {}, fresh=False), tmp_path / "first")
    found = Measurements(path, {}, fresh=False)
    keys = ["matrix/32", "matrix/64", "embedding/4"]
    assert all(key in found for key in [*keys, "training/plain/2", "training/cached/2"])
    rate = 1e12 * max(found["matrix/32"]["tflops"], found["matrix/64"]["tflops"])
    assert (found["embedding/4"]["prompts"], found["embedding/4"]["patches"]) == (8, 4 * 36)
    plain, cached = found["training/plain/2"], found["training/cached/2"]
    assert (plain["windows"], plain["pairs"]) == (2, 6)
    for one in (plain, cached, found["embedding/4"]):
        assert one["share"] == pytest.approx(one["tflop"] * 1e12 / one["seconds"] / rate, rel=1e-4)
    dataset = made_shop(tmp_path / "again", one_size, 3)
    bench = Bench(one_size, dataset, card(), rate)
    pairs, last = longest_pairs(dataset)
    prompts = bench._collator.pairs(pairs.windows(last, 3, every=True)).prompts
    needed, run = (Work.of(prompts, bench._vision, as_run=padded) for padded in (False, True))
    once, back = bench._flops.forward(run), bench._flops.backward(run)
    tflop = (bench._flops.forward(needed) + bench._flops.backward(needed)) / 1e12
    assert (plain["tflop"], cached["tflop"]) == pytest.approx((tflop, tflop), rel=1e-4)
    # Checkpointing does every forward pass once more, GradCache another time.
    assert plain["tflop_as_run"] == pytest.approx((2 * once + back) / 1e12, rel=1e-4)
    assert cached["tflop_as_run"] == pytest.approx((3 * once + back) / 1e12, rel=1e-4)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Bench, "training", never)
    monkeypatch.setattr(Bench, "embedding", never)
    measure(one_size, card(), found, tmp_path / "second")


def test_a_size_that_does_not_fit_is_recorded_and_ends_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, made = VlmEmbedder.forward, _CachedPass.__init__

    def little_memory(self: VlmEmbedder, batch: Any) -> Any:
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    seen: list[int] = []
    monkeypatch.setattr(VlmEmbedder, "forward", little_memory)
    monkeypatch.setattr(_CachedPass, "__init__", lambda *given: seen.append(1) or made(*given))
    results = Measurements(tmp_path / "r.json", {}, fresh=False)
    measure(SMALL, card(), results, tmp_path / "first")
    assert "CUDA out of memory" in results["training/plain/1"]["out_of_memory"]
    assert "seconds" not in results["training/plain/1"]
    assert "training/plain/2" not in results
    assert "seconds" in results["training/cached/2"]
    assert seen


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_training"])
    with pytest.raises(SystemExit, match="needs a CUDA device; --toy"):
        gpu_training.main()
