"""Runs in each process of test_distributed.py: exchanges values, then trains."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from training.config.run_config import load_config
from training.data.dataset import load_dataset
from training.data.sequences import Sequences, leave_one_out
from training.finetune.distributed import ProcessGroup
from training.finetune.trainer import train_vlm


def exchange(processes: ProcessGroup) -> dict[str, object]:
    """Process 0 has three rows and process 1 one; each takes the same function of all of them."""
    rows = torch.tensor([[1.0], [2.0], [3.0]] if processes.first else [[5.0]], requires_grad=True)
    everyone = processes.gathered(rows)
    everyone.prod().backward()
    assert rows.grad is not None
    weights = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32,) * 3 + (torch.float64,)]
    weights[0].grad = torch.full((2,), 1.0 + processes.number)
    if not processes.first:
        weights[1].grad = torch.tensor([4.0, -1.0])
    weights[3].grad = torch.full((2,), 10.0, dtype=torch.float64)
    processes.sum_gradients(weights)
    return {
        "count": processes.count,
        "first": processes.first,
        "share": processes.share(np.arange(5)).tolist(),
        "gathered": everyone.flatten().tolist(),
        "gradient": rows.grad.flatten().tolist(),
        "nothing": processes.gathered(torch.zeros(0 if processes.first else 2, 3, dtype=torch.int64)).shape[0],
        "padded": processes.padded(torch.full((1, 1 + processes.number), 7), -1).tolist(),
        "summed": [None if weight.grad is None else weight.grad.tolist() for weight in weights],
        "summed_values": processes.summed({"one": processes.number, "other": 2}),
        "agreed": processes.agreed({"value": processes.number}),
    }


def main(shop: Path, out: Path, overrides: str) -> None:
    """Exchange, then train."""
    torch.set_num_threads(1)
    processes = ProcessGroup(Accelerator(cpu=True))
    (out / f"exchange-{processes.number}.json").write_text(json.dumps(exchange(processes)))
    dataset = load_dataset(shop)
    parts = leave_one_out(Sequences.from_interactions(dataset.interactions, dataset.item_ids()))
    reported: list[int] = []
    train_vlm(
        dataset,
        parts.train,
        out / "run",
        load_config(overrides=json.loads(overrides)),
        validation=parts.validation,
        report=lambda now: reported.append(now.step),
    )
    (out / f"reported-{processes.number}.json").write_text(json.dumps(reported))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
