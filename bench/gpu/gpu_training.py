"""Measures training and embedding with a random-weight Qwen2.5-VL-3B as a share of the GPU's matrix rate.

    python -m bench.gpu.gpu_training           # one CUDA device; continues the last run
    python -m bench.gpu.gpu_training --fresh   # begins anew
    python -m bench.gpu.gpu_training --toy     # a tiny model on the CPU: shows that it runs, says nothing about a GPU

Measured by the project's own path, every batch size until memory runs out: training steps with LoRA (bfloat16,
activation checkpointing, the whole loss) with all activations kept and with cached gradients (GradCache), and the
embedding of item prompts. The weights are random, which changes no time. Every measurement is stored as soon as it is
done (bench/results/gpu_training.json).

The rate is that of large bfloat16 matrix products on the same card, measured first. `share` is the operations that an
answer needs (bench/gpu/vlm_flops.py; no padding, half of causal attention, nothing computed twice) over time and that
rate; `share_as_run` also counts padding, masked pairs, and forward passes that are repeated to save memory.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from bench.gpu.vlm_flops import VlmFlops, Work
from bench.gpu.vlm_work import THREE_B, TOY, Shape, longest_pairs, made_shop, random_backbone
from bench.measurements import Measurements
from training.backbones.batches import Collator, PromptBatch
from training.backbones.starting_model import trainable
from training.backbones.vlm import Embedding, VlmEmbedder
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.errors import OutOfMemory
from training.finetune.distributed import ProcessGroup
from training.finetune.step import ContrastiveStep

_OUT = Path(__file__).parents[1] / "results" / "gpu_training.json"
_LONG_S = 30.0
_GIB = 2**30
_PICTURE_BYTES = 8 * _GIB
_RATE = 1e-6  # of AdamW: what the weights become does not matter, but they must stay finite


class Card:
    """The measured device.

    Args:
        device: CUDA or the CPU.
        repeats: timed calls that a median is taken of.
    """

    def __init__(self, device: torch.device, repeats: int = 5) -> None:
        self.device = device
        self._repeats = repeats
        self._cuda = device.type == "cuda"

    def about(self) -> dict[str, Any]:
        """Properties that a result must share to be continued."""
        if not self._cuda:
            return {"device": "cpu", "torch": torch.__version__}
        properties = torch.cuda.get_device_properties(self.device)
        memory = round(properties.total_memory / _GIB, 1)
        return {"device": properties.name, "memory_gib": memory, "torch": torch.__version__, "cuda": torch.version.cuda}

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a call, after one that is not counted; fewer are made of a call that takes long."""
        self._timed(call)
        times = [self._timed(call)]
        while len(times) < self._repeats and sum(times) < _LONG_S:
            times.append(self._timed(call))
        return float(np.median(times))

    def freed(self) -> None:
        """Free unused memory and reset the peak."""
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        """Peak memory since :meth:`freed`; empty on a CPU."""
        if not self._cuda:
            return {}
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_allocated_gib": allocated / _GIB, "peak_reserved_gib": reserved / _GIB}

    def _timed(self, call: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)


class Bench:
    """The model on its device and its measurements.

    Args:
        shape: model and sizes.
        dataset: that fills its prompts.
        card: where it runs.
        rate: bfloat16 operations a second of large matrix products there.
    """

    def __init__(self, shape: Shape, dataset: Dataset, card: Card, rate: float) -> None:
        self._dataset, self._card, self._rate = dataset, card, rate
        self._config = config = shape.config()
        self._backbone = random_backbone(shape, dataset, config, card.device)
        self._vision = self._backbone.model.config.vision_config
        self._flops = VlmFlops(self._backbone.model.config, rank=config.vlm.lora.rank, targets=config.vlm.lora.targets)
        self._embedder = VlmEmbedder(trainable(self._backbone, config.vlm)).to(card.device)
        self._pairs, self._last = longest_pairs(dataset)
        self._collator = Collator(
            self._backbone.tokenizer,
            dataset.texts(),
            PictureStore(dataset.image_path, self._backbone.image_processor, memory_bytes=_PICTURE_BYTES),
            max_text_tokens=config.vlm.max_text_tokens,
            max_history=config.train.max_history,
            chunk_tokens=config.train.chunk_tokens,
            chunk_patches=config.train.chunk_patches,
        )

    def training(self, windows: int, *, cached: bool) -> dict[str, Any]:
        """Measure a training step on a number of windows."""
        options = self._config.train.model_copy(
            update={"batch_size": windows, "cached_gradients": cached, "learning_rate": _RATE}
        )
        accelerator = Accelerator(mixed_precision=options.precision, cpu=self._card.device.type == "cpu")
        move = ContrastiveStep(
            self._embedder.train(), accelerator, ProcessGroup(accelerator), self._config.loss, options
        )
        numbers = self._pairs.windows(self._last[:windows], options.max_history, every=options.pairs == "every")
        batch = self._collator.pairs(numbers)

        def step() -> None:
            taken = move(batch, step=0, confidence_gap=0.0)
            if taken.diverged is not None:
                raise SystemExit(f"a step of {windows} windows gave a {taken.diverged[0]} of {taken.diverged[1]}")

        again = int(cached) + int(self._config.vlm.activation_checkpointing)
        needed, run = self._works(batch.prompts)
        operations = self._flops.forward(needed) + self._flops.backward(needed)
        as_run = (1 + again) * self._flops.forward(run) + self._flops.backward(run)
        about = {"windows": windows, "pairs": len(batch.item_ids)} | _sizes(batch.prompts, needed)
        return self._measured(step, about, operations, as_run)

    def embedding(self, items: int) -> dict[str, Any]:
        """Item prompts, already made; and the same with reading pictures and making prompts."""
        embedder, rows = self._embedder.eval(), np.arange(items)
        prompts, _ = self._collator.items(rows)

        @torch.inference_mode()
        def embed() -> None:
            embedder(prompts.to(self._card.device)).cpu()

        needed, run = self._works(prompts)
        about = {"items": items} | _sizes(prompts, needed)
        found = self._measured(embed, about, self._flops.forward(needed), self._flops.forward(run))
        vlm, train = self._config.vlm, self._config.train
        embedding = Embedding(embedder, self._backbone, vlm.max_text_tokens, train.max_history, {})
        whole = CatalogueEncoder(embedding, self._dataset)
        spent = self._tried(lambda: whole.items(rows))
        if "seconds" not in found or isinstance(spent, str):
            return found | ({"out_of_memory": spent} if isinstance(spent, str) else {})
        return found | {"items_s": items / found["seconds"], "items_s_from_files": items / spent}

    def _works(self, prompts: PromptBatch) -> tuple[Work, Work]:
        return Work.of(prompts, self._vision), Work.of(prompts, self._vision, as_run=True)

    def _measured(
        self, call: Callable[[], object], about: dict[str, Any], operations: int, as_run: int
    ) -> dict[str, Any]:
        """Time, memory and shares of a call, or the record that it does not fit."""
        self._card.freed()
        spent = self._tried(call)
        if isinstance(spent, str):
            return about | {"out_of_memory": spent}
        return about | {
            "seconds": spent,
            "tokens_s": about["tokens"] / spent,
            "tflop": operations / 1e12,
            "tflop_as_run": as_run / 1e12,
            "share": operations / spent / self._rate,
            "share_as_run": as_run / spent / self._rate,
            **self._card.peak(),
        }

    def _tried(self, call: Callable[[], object]) -> float | str:
        """Seconds of a call, or PyTorch's message if it does not fit."""
        try:
            return self._card.seconds(call)
        except (OutOfMemory, torch.OutOfMemoryError) as error:
            self._embedder.zero_grad(set_to_none=True)
            return str(error).splitlines()[0]


def matrix_rate(card: Card, size: int) -> dict[str, Any]:
    """Operations a second of n × n bfloat16 products, 2 n³ each."""
    left, right = (torch.randn(size, size, device=card.device).to(torch.bfloat16) for _ in range(2))
    spent = card.seconds(lambda: left @ right)
    return {"n": size, "seconds": spent, "tflops": 2 * size**3 / spent / 1e12}


def measure(shape: Shape, card: Card, results: Measurements, work: Path) -> None:
    """Run the missing measurements; each kind of work stops at the first size that does not fit."""

    def put(key: str, call: Callable[[], dict[str, Any]]) -> bool:
        """Store the measurement; whether it fits."""
        if key not in results:
            started = time.perf_counter()
            results.put(key, call(), took_s=time.perf_counter() - started)
        shown = {name: results[key][name] for name in ("tflops", "seconds", "share") if name in results[key]}
        print(f"  {key:<24} {shown or results[key].get('out_of_memory', '')}", flush=True)
        return "out_of_memory" not in results[key]

    for size in shape.products:
        put(f"matrix/{size}", lambda size=size: matrix_rate(card, size))
    rate = 1e12 * max(results[f"matrix/{size}"]["tflops"] for size in shape.products)
    dataset = made_shop(work / "shop", shape, shape.config().train.max_history)
    bench = Bench(shape, dataset, card, rate)
    for items in shape.embedded:
        if not put(f"embedding/{items}", lambda items=items: bench.embedding(items)):
            break
    for name, cached in (("plain", False), ("cached", True)):
        for windows in shape.batches:
            key = f"training/{name}/{windows}"
            if not put(key, lambda windows=windows, cached=cached: bench.training(windows, cached=cached)):
                break


def main() -> None:
    """Measure everything that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU, results aside")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--out", type=Path, help=f"default {_OUT.parent.name}/{_OUT.name} beside this file; toy: /tmp")
    options = parser.parse_args()
    if options.toy:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        sys.exit("this needs a CUDA device; --toy shows on the CPU that the script works")
    card, shape = (Card(torch.device("cpu"), repeats=1), TOY) if options.toy else (Card(torch.device("cuda")), THREE_B)
    out = options.out or (Path(tempfile.gettempdir()) / "vlm2rec-gpu-training-toy.json" if options.toy else _OUT)
    settings = {"model": "toy" if options.toy else "Qwen2.5-VL-3B, random weights", **card.about()}
    settings |= {"config": shape.config().model_dump(mode="json", include={"vlm", "loss", "train"})}
    results = Measurements(out, settings, fresh=options.fresh)
    with tempfile.TemporaryDirectory(prefix="vlm2rec-gpu-training-") as work:
        measure(shape, card, results, Path(work))
    print(f"all measured: {out}")


def _sizes(prompts: PromptBatch, needed: Work) -> dict[str, Any]:
    """How large a batch is; tokens without padding."""
    return {
        "prompts": sum(len(group.lengths) for group in prompts.groups),
        "tokens": needed.tokens + needed.shown_tokens,
        "padded_tokens": sum(group.input_ids.numel() for group in prompts.groups),
        "patches": needed.patches,
    }


if __name__ == "__main__":
    main()
