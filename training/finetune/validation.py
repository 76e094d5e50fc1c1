"""Validates a model while it trains: ranks held-out events by the model's own vectors of histories and items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.backbones.batches import Collator, ModelInputs, spread
from training.backbones.gradient_cache import Autocast, Embedder, encode
from training.backbones.items.feature_batches import FeatureCollator
from training.config.types import Fusion
from training.data.sequences import Targets, evenly_spaced
from training.finetune.distributed import ProcessGroup
from training.ranking import metrics
from training.ranking.fused_scores import Vectors, fused_scores

METRIC = "ndcg@10"
_CUT = 10
_ENCODED_AT_A_TIME = 256
_SCORES_PER_BLOCK = 1 << 22


@dataclass(frozen=True)
class ValidationEvents:
    """A fixed part of the held-out events and the items ranked for them; equal arguments choose equal parts.

    Attributes:
        histories: for each event the int64 item rows before it.
        targets: (n,) int64 item row of each event.
        items: (m,) int64 item rows to rank, ascending, including every target.
    """

    histories: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def choose(cls, targets: Targets, catalogue: int, *, users: int, items: int, seed: int) -> "ValidationEvents":
        """Choose events and items.

        Args:
            targets: held-out events; evenly spaced ones if there are more than ``users``.
            catalogue: number of items.
            users: most events.
            items: most items to rank; those beside the targets are drawn at random.
            seed: of the random draw.
        """
        chosen = evenly_spaced(targets, users)
        rows = chosen.targets
        order = np.random.default_rng(seed).permutation(catalogue)
        others = order[~np.isin(order, rows)]
        competing = np.union1d(rows, others[: max(0, items - len(np.unique(rows)))])
        return cls(list(chosen.histories), rows, competing)

    def same_as(self, other: "ValidationEvents") -> bool:
        """Whether the same events are ranked among the same items."""
        return (
            len(self.histories) == len(other.histories)
            and np.array_equal(self.targets, other.targets)
            and np.array_equal(self.items, other.items)
            and all(np.array_equal(own, its) for own, its in zip(self.histories, other.histories, strict=True))
        )


class DirectRanking:
    """Measures a model on held-out events by the protocol of docs/method.md: ranked as served.

    All items are ranked or, where the catalogue is too large to be encoded repeatedly, a fixed random part of it that
    contains every target.

    Args:
        collator: makes the model's input.
        processes: all processes of the run; each encodes its part.
        targets: held-out events; evenly spaced ones if there are more than ``users``.
        catalogue: number of items.
        users: most events.
        items: most items to rank; those beside the targets are drawn at random.
        fusion: how the two modalities are combined into one score.
        seed: of the random draw.
        exclude_seen: exclude the items of the history as in serving; a target in its own history is then a miss.
        sharded: each process holds a part of the weights, so that all must encode equally many groups.
    """

    def __init__(
        self,
        collator: Collator | FeatureCollator,
        processes: ProcessGroup,
        targets: Targets,
        catalogue: int,
        *,
        users: int,
        items: int,
        fusion: Fusion,
        seed: int,
        exclude_seen: bool = True,
        sharded: bool = False,
    ) -> None:
        self._sharded = sharded
        self._collator, self._processes, self._fusion = collator, processes, fusion
        chosen = ValidationEvents.choose(targets, catalogue, users=users, items=items, seed=seed)
        self._histories, self._items = chosen.histories, chosen.items
        self._targets = np.searchsorted(self._items, chosen.targets)
        position = {row: number for number, row in enumerate(self._items.tolist())}
        seen = self._histories if exclude_seen else [np.zeros(0, dtype=np.int64)] * len(self._histories)
        self._seen = [np.array([position[r] for r in h.tolist() if r in position], np.int64) for h in seen]

    def measure(self, embedder: Embedder, autocast: Autocast) -> dict[str, float]:
        """NDCG@10 of the fused score and, for a model of both modalities, of each alone.

        Args:
            embedder: in training mode, as it is afterwards.
            autocast: entered around every call of the model.

        Returns:
            Metric name → mean over the users, higher is better.

        Raises:
            EvaluationError: a score is not finite.
        """
        embedder.eval()
        items = self._encoded(embedder, autocast, self._collator.items, self._items)
        numbers = np.arange(len(self._histories))
        histories = self._encoded(
            embedder, autocast, lambda part: self._collator.sequences([self._histories[n] for n in part]), numbers
        )
        embedder.train()
        measured = {METRIC: self._gain(histories, items)}
        if len(items) > 1:
            measured |= {f"{METRIC} {name}": self._gain({name: histories[name]}, {name: items[name]}) for name in items}
        return self._processes.agreed(measured)

    def _encoded(
        self,
        embedder: Embedder,
        autocast: Autocast,
        collate: Callable[[NDArray[np.int64]], tuple[ModelInputs, dict[str, Tensor]]],
        numbers: NDArray[np.int64],
    ) -> Vectors:
        """Vectors in the order of the numbers; each process encodes its part."""
        own = self._processes.share(numbers)
        device = embedder.device
        parts: dict[str, list[Tensor]] = {name: [torch.zeros(0, embedder.dim, device=device)] for name in self._names}
        longest = -(-len(numbers) // self._processes.count) if self._sharded else len(own)
        # FSDP2 keeps what it gathers for the next step, which tensors of inference mode cannot serve.
        with torch.inference_mode(not self._sharded), torch.no_grad():
            for start in range(0, longest, _ENCODED_AT_A_TIME):
                prompts, positions = collate(own[start : start + _ENCODED_AT_A_TIME])
                outputs = self._outputs(embedder, autocast, prompts.to(device))
                for name, rows in positions.items():
                    parts[name].append(spread(outputs, rows.to(device)))
            return {name: self._processes.gathered(torch.cat(blocks)).cpu().numpy() for name, blocks in parts.items()}

    def _outputs(self, embedder: Embedder, autocast: Autocast, prompts: ModelInputs) -> Tensor:
        if self._sharded:
            return encode(embedder, prompts, autocast=autocast, cached=True, lockstep=self._processes).outputs.detach()
        with autocast():
            return cast("Tensor", embedder(prompts))

    @property
    def _names(self) -> Sequence[str]:
        return self._collator.modalities

    def _gain(self, histories: Vectors, items: Vectors) -> float:
        """Mean NDCG@10; a target that cannot be compared is a miss."""
        ranks = direct_ranks(histories, items, self._seen, self._targets, self._fusion)
        return float(metrics.gains(ranks, _CUT).mean())


def direct_ranks(
    histories: Vectors,
    items: Vectors,
    seen: Sequence[NDArray[np.int64]],
    targets: NDArray[np.int64],
    fusion: Fusion,
) -> metrics.Ranks:
    """Rank of each history's target among the items that were not seen.

    Args:
        histories: vectors of the histories, of one modality or both.
        items: vectors of the items, of the same modalities.
        seen: for each history the positions of the excluded items; they may include the target.
        targets: (B,) int64 positions of the targets among the items.
        fusion: how two modalities make one score.

    Returns:
        B ranks, infinite where history and target share no modality, or the target is excluded.

    Raises:
        EvaluationError: a score is not finite.
    """
    ranks = []
    block = max(1, _SCORES_PER_BLOCK // len(next(iter(items.values()))))
    for start in range(0, len(targets), block):
        users = slice(start, start + block)
        scores, comparable = fused_scores({name: rows[users] for name, rows in histories.items()}, items, fusion)
        rows = targets[users]
        for candidates, excluded in zip(comparable, seen[users], strict=True):
            candidates[excluded] = False
        reachable = comparable[np.arange(len(rows)), rows]
        ranks.append(metrics.ranks(scores, rows, comparable).missed(~reachable))
    return metrics.Ranks.joined(ranks)
