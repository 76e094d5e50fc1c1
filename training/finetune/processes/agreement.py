"""Checks that the processes of a run have the same configuration, data and weights on their machines."""

import hashlib
import platform
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.errors import ConfigError
from training.finetune.distributed import ProcessGroup

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_inputs(processes: ProcessGroup, config: RunConfig, dataset: Dataset, fingerprint: str) -> None:
    """Compare what each process has read from its own disk; of the pictures, which exist and their sizes.

    Args:
        processes: all processes of the run, which must all call this.
        config: of the run, as read by this process.
        dataset: the catalogue, as read by this process.
        fingerprint: see :func:`training.finetune.run_directory.run_fingerprint`.

    Raises:
        ConfigError: they differ; raised in every process.
    """
    if processes.count == 1:
        return
    own = {
        "another configuration": hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        "other items or interactions": fingerprint,
        "other pictures": _pictures(dataset),
    }
    _compare(processes, own, "give every machine the same command, --config and copy of the data set")


def check_weights(processes: ProcessGroup, model: nn.Module) -> None:
    """Compare the weights that each process has loaded, by a sum of their bits for each tensor.

    Args:
        processes: all processes of the run, which must all call this.
        model: before training, or as restored from a checkpoint.

    Raises:
        ConfigError: they differ; raised in every process.
    """
    if processes.count == 1:
        return
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {_bits(value)}".encode())
    own = {"other weights of the model": digest.hexdigest()}
    _compare(processes, own, "copy the same files of vlm.model to every machine")


def _compare(processes: ProcessGroup, own: Mapping[str, str], remedy: str) -> None:
    found = processes.everyone((platform.node(), dict(own)))
    first_machine, first = found[0]
    for number, (machine, values) in enumerate(found):
        for what, digest in values.items():
            if digest != first[what]:
                raise ConfigError(
                    f"process {number} on {machine} has {what} than process 0 on {first_machine}; {remedy}"
                )


def _bits(value: Tensor) -> int:
    """A sum that does not depend on its order, unlike one of floating-point numbers."""
    integers = value.detach().contiguous().view(_INTEGERS[value.element_size()])
    return int(integers.sum(dtype=torch.int64).item())


def _pictures(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for row in range(len(dataset)):
        path = dataset.image_path(row)
        digest.update(f"{-1 if path is None else path.stat().st_size} ".encode())
    return digest.hexdigest()
