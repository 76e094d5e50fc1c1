"""Encodes a batch so that a gradient on its vectors reaches the weights, with or without cached activations."""

# A contrastive loss needs the vectors of the whole batch at once, but not their activations. A plain pass keeps the
# activations of every prompt; a cached one (GradCache, Gao et al., arXiv 2101.06983) encodes group after group
# without any, and encodes each group again once the gradient on its vectors is known. Its memory is that of one group
# of prompts or pictures, however large the batch, at the price of a second forward pass. Value and gradient are the
# same: each group is encoded again under the same state of the random generators.
#
# The vision tower's output is cached one level deeper: a picture is encoded once for all the prompts that show it,
# the gradients of these prompts add up on its tokens, and then the tower gets its own backward pass, group by group.

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from training.backbones.batches import ModelInputs, PromptBatch
from training.backbones.items.heads import ModalityHeads
from training.backbones.lockstep import Lockstep, smallest_pictures, smallest_prompts
from training.backbones.vlm import VisualTokens, VlmEmbedder

Autocast = Callable[[], AbstractContextManager[None]]
"""Makes the context under which a model runs."""
Embedder = VlmEmbedder | ModalityHeads
"""A model that turns a batch into unit vectors."""
_Made = TypeVar("_Made", Tensor, VisualTokens)


class EncodingPass(Protocol):
    """The vectors of one batch.

    Attributes:
        outputs: (K, D) float32, rows of length 1, a leaf that collects the gradient of a loss in ``outputs.grad``.
    """

    outputs: Tensor

    def backward(self) -> None:
        """Add the gradient of the weights that follows from ``outputs.grad``."""
        ...


def encode(
    embedder: Embedder, prompts: ModelInputs, *, autocast: Autocast, cached: bool, lockstep: Lockstep | None = None
) -> EncodingPass:
    """Encode a batch so that a gradient on its vectors can be propagated back.

    Args:
        embedder: in training or evaluation mode, as it should run.
        prompts: on the embedder's device.
        autocast: entered around every call of the model.
        cached: keep no activations; heads on stored vectors have hardly any, and keep them.
        lockstep: the processes that share the weights of a cached pass, which must all encode at the same time.
    """
    if cached and isinstance(embedder, VlmEmbedder) and isinstance(prompts, PromptBatch):
        return _CachedPass(embedder, prompts, autocast, lockstep)
    return _PlainPass(embedder, prompts, autocast)


class _PlainPass:
    """Keeps the activations."""

    def __init__(self, embedder: Embedder, prompts: ModelInputs, autocast: Autocast) -> None:
        with autocast():
            self._made = embedder(prompts)
        self.outputs = self._made.detach().requires_grad_()

    def backward(self) -> None:
        """See :class:`EncodingPass`."""
        if self.outputs.grad is not None and self._made.requires_grad:
            torch.autograd.backward([self._made], [self.outputs.grad])


class _CachedPass:
    """Keeps the random generators' states."""

    def __init__(
        self, embedder: VlmEmbedder, prompts: PromptBatch, autocast: Autocast, lockstep: Lockstep | None
    ) -> None:
        self._embedder, self._prompts, self._autocast = embedder, prompts, autocast
        self._lockstep = lockstep is not None
        own = len(prompts.pictures), len(prompts.groups)
        most = own if lockstep is None else lockstep.most(own)
        self._idle_pictures, self._idle_prompts = (all_ - here for all_, here in zip(most, own, strict=True))
        self._device = embedder.base.device
        self._vision_states: list[_RandomState] = []
        self._prompt_states: list[_RandomState] = []
        with torch.no_grad():
            seen = [
                self._first(self._vision_states, embedder.encode_pictures, pictures) for pictures in prompts.pictures
            ]
            for _ in range(self._idle_pictures):
                self._run(embedder.encode_pictures, smallest_pictures(embedder.base))
            self._seen = embedder.join_tokens(seen)
            read = [
                self._first(self._prompt_states, embedder.encode_group, group, self._seen) for group in prompts.groups
            ]
            for _ in range(self._idle_prompts):
                self._run(embedder.encode_group, smallest_prompts(embedder.base), None)
        self._tokens = [len(part.layers[0]) for part in seen]
        self.outputs = (torch.cat(read) if read else embedder.no_vectors()).requires_grad_()

    def backward(self) -> None:
        """See :class:`EncodingPass`."""
        gradient = self.outputs.grad
        if gradient is None:
            if not self._lockstep:
                return
            gradient = torch.zeros_like(self.outputs)
        trains_vision = self._embedder.trains_vision
        seen = None if self._seen is None else self._seen.as_leaves(requires_grad=trains_vision)
        parts = torch.split(gradient, [len(group.pooled) for group in self._prompts.groups])
        for group, state, part in zip(self._prompts.groups, self._prompt_states, parts, strict=True):
            made = self._again(state, self._embedder.encode_group, group, seen)
            if made.requires_grad:
                torch.autograd.backward([made], [part])
        for _ in range(self._idle_prompts):
            made = self._run(self._embedder.encode_group, smallest_prompts(self._embedder.base), None)
            torch.autograd.backward([made], [torch.zeros_like(made)])
        if trains_vision:
            self._pictures_backward(seen)

    def _pictures_backward(self, seen: VisualTokens | None) -> None:
        """Propagate what the prompts' passes have added up on the visual tokens."""
        gradients = {} if seen is None else self._token_gradients(seen)
        for number, (pictures, state) in enumerate(zip(self._prompts.pictures, self._vision_states, strict=True)):
            tokens = self._again(state, self._embedder.encode_pictures, pictures)
            torch.autograd.backward(
                [tokens.layers[n] for n in gradients], [parts[number] for parts in gradients.values()]
            )
        for _ in range(self._idle_pictures):
            tokens = self._run(self._embedder.encode_pictures, smallest_pictures(self._embedder.base))
            torch.autograd.backward(list(tokens.layers), [torch.zeros_like(layer) for layer in tokens.layers])

    def _token_gradients(self, seen: VisualTokens) -> dict[int, tuple[Tensor, ...]]:
        """Number of a layer → the gradient on its tokens, for each group of pictures; in lockstep of every layer."""
        found = {n: layer.grad for n, layer in enumerate(seen.layers)}
        if self._lockstep:
            found = {n: torch.zeros_like(seen.layers[n]) if grad is None else grad for n, grad in found.items()}
        return {n: torch.split(grad, self._tokens) for n, grad in found.items() if grad is not None}

    def _first(self, states: "list[_RandomState]", call: Callable[..., _Made], *inputs: object) -> _Made:
        states.append(_RandomState.of(self._device))
        return self._run(call, *inputs)

    def _again(self, state: "_RandomState", call: Callable[..., _Made], *inputs: object) -> _Made:
        with state.restored():
            return self._run(call, *inputs)

    def _run(self, call: Callable[..., _Made], *inputs: object) -> _Made:
        # A context for each call: inside one, autocast would keep the weights that it cast without a graph.
        with self._autocast():
            return call(*inputs)


@dataclass(frozen=True)
class _RandomState:
    """State of the random generators used by a model on this device."""

    device: torch.device
    host: Tensor
    numbers: list[int]
    states: list[Tensor]

    @classmethod
    def of(cls, device: torch.device) -> "_RandomState":
        numbers, states = get_device_states(torch.empty(0, device=device))
        return cls(device, torch.get_rng_state(), numbers, states)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Draw the same numbers again, then restore the generators."""
        with torch.random.fork_rng(devices=self.numbers, device_type=self.device.type):
            torch.set_rng_state(self.host)
            set_device_states(self.numbers, self.states, device_type=self.device.type)
            yield
