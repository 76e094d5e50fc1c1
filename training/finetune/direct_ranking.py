"""Direct ranking: a model's own vectors of histories against those of items, on held-out events, while it trains.

The protocol is that of docs/method.md (ranked as it is served, a tie counts half), over the whole catalogue or, if
that is too large to be encoded again and again, over a fixed random part of it that holds every target.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.backbones.batches import Collator, PromptBatch, spread
from training.backbones.gradient_cache import Autocast
from training.backbones.vlm import VlmEmbedder
from training.config.types import Fusion
from training.data.sequences import Targets
from training.finetune.distributed import ProcessGroup
from training.finetune.validation_events import ValidationEvents
from training.ranking import metrics
from training.ranking.fused_scores import Vectors, fused_scores

METRIC = "ndcg@10"
_CUT = 10
_ENCODED_AT_A_TIME = 256
_SCORES_PER_BLOCK = 1 << 22


class DirectRanking:
    """Measures a model on held-out events.

    Args:
        collator: writes the prompts.
        ranks: all processes of the run; each encodes its part.
        targets: held-out events; evenly spaced ones where there are more than ``users``.
        catalogue: number of items.
        users: at most so many events.
        items: at most so many items compete, drawn at random beside the targets.
        fusion: how the two modalities make one score.
        seed: of the drawing.
        exclude_seen: leave out what is in the history, so that a target which is in it is a miss, as it is served.
    """

    def __init__(
        self,
        collator: Collator,
        ranks: ProcessGroup,
        targets: Targets,
        catalogue: int,
        *,
        users: int,
        items: int,
        fusion: Fusion,
        seed: int,
        exclude_seen: bool = True,
    ) -> None:
        self._collator, self._ranks, self._fusion = collator, ranks, fusion
        chosen = ValidationEvents.choose(targets, catalogue, users=users, items=items, seed=seed)
        self._histories, self._items = chosen.histories, chosen.items
        self._targets = np.searchsorted(self._items, chosen.targets)
        place = {row: number for number, row in enumerate(self._items.tolist())}
        seen = self._histories if exclude_seen else [np.zeros(0, dtype=np.int64)] * len(self._histories)
        self._seen = [np.array([place[r] for r in h.tolist() if r in place], np.int64) for h in seen]

    def measure(self, embedder: VlmEmbedder, autocast: Autocast) -> dict[str, float]:
        """NDCG@10 of the fused score and, of a model of both, of each modality alone.

        Args:
            embedder: left in training mode.
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
        found = {METRIC: self._gain(histories, items)}
        if len(items) > 1:
            found |= {f"{METRIC} {name}": self._gain({name: histories[name]}, {name: items[name]}) for name in items}
        return self._ranks.agreed(found)

    @torch.inference_mode()
    def _encoded(
        self,
        embedder: VlmEmbedder,
        autocast: Autocast,
        collate: Callable[[NDArray[np.int64]], tuple[PromptBatch, dict[str, Tensor]]],
        numbers: NDArray[np.int64],
    ) -> Vectors:
        """Vectors in the order of the numbers, each rank's part encoded by it."""
        own = self._ranks.share(numbers)
        device = embedder.base.device
        parts: dict[str, list[Tensor]] = {name: [torch.zeros(0, embedder.dim, device=device)] for name in self._names}
        for start in range(0, len(own), _ENCODED_AT_A_TIME):
            prompts, places = collate(own[start : start + _ENCODED_AT_A_TIME])
            with autocast():
                outputs = embedder(prompts.to(device))
            for name, found in places.items():
                parts[name].append(spread(outputs, found.to(device)))
        return {name: self._ranks.gathered(torch.cat(blocks)).cpu().numpy() for name, blocks in parts.items()}

    @property
    def _names(self) -> Sequence[str]:
        return self._collator.modalities

    def _gain(self, histories: Vectors, items: Vectors) -> float:
        """Mean NDCG@10; a target that cannot be compared is never found."""
        ranks = direct_ranks(histories, items, self._seen, self._targets, self._fusion)
        return float(metrics.gains(ranks, _CUT).mean())


def direct_ranks(
    histories: Vectors,
    items: Vectors,
    seen: Sequence[NDArray[np.int64]],
    targets: NDArray[np.int64],
    fusion: Fusion,
) -> NDArray[np.float64]:
    """Rank of each history's target among the items, what was seen left out; a tie counts half.

    Args:
        histories: vectors of the histories, of one modality or both.
        items: vectors of the items, of the same modalities.
        seen: for each history the places of the items that are not answered, the target among them or not.
        targets: (B,) int64 places of the targets among the items.
        fusion: how two modalities make one score.

    Returns:
        (B,) float64, 0 = best; infinite where history and target share no modality, or the target is left out.

    Raises:
        EvaluationError: a score is not finite.
    """
    found = [np.zeros(0)]
    block = max(1, _SCORES_PER_BLOCK // len(next(iter(items.values()))))
    for start in range(0, len(targets), block):
        users = slice(start, start + block)
        scores, comparable = fused_scores({name: rows[users] for name, rows in histories.items()}, items, fusion)
        wanted = targets[users]
        for candidates, rows in zip(comparable, seen[users], strict=True):
            candidates[rows] = False
        reachable = comparable[np.arange(len(wanted)), wanted]
        found.append(np.where(reachable, metrics.ranks(scores, wanted, comparable), np.inf))
    return np.concatenate(found)
