"""Puts LoRA adapters (Hu et al., 2021) into a pretrained model, stores them, and loads them."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import peft
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import BackboneError

ADAPTER_DIRECTORY = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapters(model: nn.Module, *, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> nn.Module:
    """A model with adapters, everything else frozen; the adapters are put into the given model, too.

    Args:
        model: of transformers.
        rank: of the adapters, at least 1.
        alpha: scale α / rank.
        dropout: inside the adapters.
        targets: names of the linear layers.

    Raises:
        BackboneError: no layer has one of these names.
    """
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    try:
        with _without_notices():
            return cast("nn.Module", peft.get_peft_model(cast("Any", model), settings))
    except ValueError as error:
        raise BackboneError(f"vlm.lora.targets {list(targets)} fit no layer of this model: {error}") from error


def save_adapters(model: nn.Module, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapters of a model.

    Args:
        model: of :func:`add_adapters`.
        directory: of the trained model; the adapters get a directory in it.
        weights: by name, in place of the model's own; at least the trained ones.
    """
    # By default peft asks the hub whether the vocabulary has grown, which it never has here.
    cast("Any", model).save_pretrained(
        directory / ADAPTER_DIRECTORY,
        save_embedding_layers=False,
        state_dict=None if weights is None else dict(weights),
    )


def load_adapters(model: nn.Module, directory: Path) -> nn.Module:
    """A model with the adapters that :func:`save_adapters` wrote; they are put into the given model, too.

    Args:
        model: as before :func:`add_adapters`.
        directory: of the trained model.

    Raises:
        BackboneError: they are missing or unreadable, or of another model.
    """
    try:
        with _without_notices():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # refused below
            made = peft.PeftModel.from_pretrained(cast("Any", model), directory / ADAPTER_DIRECTORY)
        stored = load_file(directory / ADAPTER_DIRECTORY / ADAPTER_WEIGHTS).keys()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"{directory / ADAPTER_DIRECTORY}: the adapters cannot be loaded ({error}); train again"
        ) from error
    wanted = peft.get_peft_model_state_dict(made, save_embedding_layers=False).keys()
    if differing := set(stored) ^ set(wanted):  # of which peft only warns
        raise BackboneError(
            f"{directory / ADAPTER_DIRECTORY}: the adapters are of another model, or incomplete "
            f"({len(differing)} weights differ); train again"
        )
    return cast("nn.Module", made)


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Suppress warnings about peft's use of names that transformers will drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
