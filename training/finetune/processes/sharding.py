"""Shards a model's weights over the processes of a run by FSDP2, and gathers them again to be saved."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from training.backbones.vlm import VISION, VlmEmbedder
from training.errors import ConfigError


def shard_weights(embedder: VlmEmbedder, accelerator: Accelerator) -> None:
    """Leave to this process a part of each weight, on its device; layers are gathered one at a time when they run.

    Gradients are summed over the processes, not averaged: each process's gradient is that of the global loss on its
    own vectors (:mod:`training.finetune.distributed`).

    Args:
        embedder: the same in every process, in the memory of the host.
        accelerator: of the run's processes.

    Raises:
        ConfigError: no weight of the language model is trained.
    """
    if not any(weight.requires_grad and VISION not in name for name, weight in embedder.named_parameters()):
        raise ConfigError(
            "train.shard = true needs trained weights in the language model, got vlm.lora.targets in the vision tower "
            "alone; add a target such as q_proj, or set train.shard = false"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in _layers(embedder.base):
        fully_shard(layer, mesh=mesh)
    fully_shard(embedder, mesh=mesh)
    register_fsdp_forward_method(embedder, "encode_pictures")
    register_fsdp_forward_method(embedder, "encode_group")
    for module in embedder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    _require_gradients_of_inputs(embedder.base)


def full_weights(module: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """The weights as a state dictionary on the host; every process must call this, and every process gets them.

    Args:
        module: sharded, as :func:`reshard` leaves it.
        trained_only: leave out frozen weights and buffers.
    """
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    gathered = {}
    for name, value in module.state_dict().items():
        if not trained_only or name in trained:
            gathered[name] = whole(value).detach().cpu()
    return gathered


def reshard(module: nn.Module) -> None:
    """Leave only its part of each weight to this process, also after passes without gradients.

    FSDP2 keeps the weights outside of the layers gathered after such a pass. Until then they are other parameters of
    the module than those that the optimiser updates.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """A tensor of which this process may hold only a part; every process must call this."""
    return cast("Tensor", cast("Any", value).full_tensor()) if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """This process's part of a tensor, which is all of it unless it is sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    yield from cast("Any", model).visual.blocks
    yield from cast("Any", model).language_model.layers


def _require_gradients_of_inputs(model: PreTrainedModel) -> None:
    """Make the inputs of the first layers require a gradient in each pass.

    Otherwise the first layer's gradients would be summed before or after others, depending on whether a process's
    prompts show pictures, and the processes would sum different layers with each other.
    """

    def require(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()

    model.get_input_embeddings().register_forward_hook(require)
    cast("Any", model).visual.patch_embed.register_forward_hook(require)
