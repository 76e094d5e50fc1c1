"""Trains SASRec or eSASRec on item ids, fast enough for two CPU cores, and ranks with it on our split.

`python -m bench.method.shared_negatives_sasrec DATA --out ranks.parquet`, then `vlm2rec evaluate … --ranks`. Layers and
settings are those published with arXiv 2508.06450 (:data:`bench.method.sasrec.PUBLISHED`), but the uniform negatives
are 1,024 for each batch, not 256 for each position, and padding has no loss. RecTools' run of the published settings
computes 256 negatives for each of 50 positions of every window, most of which are padding.

`--layers ligr` makes it eSASRec: gated residuals, SwiGLU without biases, `--feed` times as wide as the vectors, and no
norm at the end, as in RecTools' `LiGRLayers`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench.method.sasrec import GivenVectors, windows
from training.data.dataset import load_dataset
from training.data.sequences import Targets, evenly_spaced
from training.encoder.job import split_dataset
from training.evaluation.evaluate import TargetSet, rank_sets, target_sets
from training.ranking.saved_ranks import save_ranks

NAMES = {"sasrec": "SASRec on IDs (shared negatives)", "ligr": "eSASRec on IDs (shared negatives)"}
"""Row label of each kind of layers."""

_BATCH = 128
_VALIDATION_USERS = 5_000
_CUT = 10


class SasrecBlock(nn.Module):
    """Attention of layer-normed queries to vectors as they are, then a feed-forward part (arXiv 1808.09781)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(B, h, width) of (B, h, width); ``mask`` (B · heads, h, h) is true where a position is not seen."""
        queries = self.before(vectors)
        vectors = queries + self.attention(queries, vectors, vectors, attn_mask=mask, need_weights=False)[0]
        vectors = self.between(vectors)
        return vectors + cast("Tensor", self.feed(vectors))


class SwiGlu(nn.Module):
    """W₃ (silu(W₁ x) ⊙ W₂ x), ``width`` × ``factor`` wide inside."""

    def __init__(self, width: int, factor: int, dropout: float) -> None:
        super().__init__()
        wide = factor * width
        self.gate, self.value = nn.Linear(width, wide, bias=False), nn.Linear(width, wide, bias=False)
        self.out, self.dropout = nn.Linear(wide, width, bias=False), nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """(…, width) of (…, width)."""
        return cast("Tensor", self.out(self.dropout(functional.silu(self.gate(vectors)) * self.value(vectors))))


class LigrBlock(nn.Module):
    """x + σ(W x) ⊙ f(norm(x)) for attention and for SwiGLU, as in eSASRec (arXiv 2508.06450)."""

    def __init__(self, width: int, heads: int, dropout: float, factor: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.feed, self.dropout = SwiGlu(width, factor, dropout), nn.Dropout(dropout)
        self.attention_gate, self.feed_gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(B, h, width) of (B, h, width); ``mask`` (B · heads, h, h) is true where a position is not seen."""
        read = self.before(vectors)
        found = self.attention(read, read, read, attn_mask=mask, need_weights=False)[0]
        vectors = vectors + self.dropout(found) * torch.sigmoid(self.attention_gate(vectors))
        found = self.feed(self.between(vectors))
        return vectors + self.dropout(found) * torch.sigmoid(self.feed_gate(vectors))


class Sasrec(nn.Module):
    """SASRec or eSASRec: causal blocks over item and position embeddings, one vector for each position.

    Args:
        items: of the catalogue; the row ``items`` is padding.
        width: of every vector.
        history: most items of a history; positions count from its newest item.
        blocks: of attention and feed-forward.
        heads: of attention.
        dropout: of embeddings, attention and feed-forward.
        factor: None for the blocks of SASRec, else those of eSASRec: width of SwiGLU, × ``width``.
    """

    def __init__(
        self,
        items: int,
        *,
        width: int,
        history: int,
        blocks: int,
        heads: int,
        dropout: float,
        factor: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.history = history
        self.items = nn.Embedding(items + 1, width, padding_idx=items)
        self.positions = nn.Embedding(history, width)
        nn.init.xavier_normal_(self.items.weight.data[:items])
        nn.init.xavier_normal_(self.positions.weight.data)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            SasrecBlock(width, heads, dropout) if factor is None else LigrBlock(width, heads, dropout, factor)
            for _ in range(blocks)
        )
        self.after = nn.LayerNorm(width) if factor is None else nn.Identity()

    def forward(self, rows: Tensor) -> Tensor:
        """(B, h, width) vectors of (B, h) rows, oldest first, padded on the left."""
        padding = rows == self.items.padding_idx
        length = rows.shape[1]
        vectors = self.items(rows) + self.positions.weight[self.history - length :]
        vectors = self.dropout(vectors).masked_fill(padding[:, :, None], 0)
        own = torch.eye(length, dtype=torch.bool)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        # A padded position sees itself, or its softmax would be over nothing.
        hidden = (later | padding[:, None, :]) & ~own
        mask = hidden.repeat_interleave(self.heads, dim=0)
        for block in self.blocks:
            vectors = block(vectors, mask).masked_fill(padding[:, :, None], 0)
        encoded: Tensor = self.after(vectors)
        return encoded


def padded(histories: list[NDArray[np.int64]], padding: int) -> Tensor:
    """(B, longest) rows, padded on the left."""
    rows = np.full((len(histories), max(map(len, histories))), padding, dtype=np.int64)
    for line, history in zip(rows, histories, strict=True):
        line[len(line) - len(history) :] = history
    return torch.from_numpy(rows)


def batches(cut: list[NDArray[np.int64]], random: np.random.Generator) -> Iterator[list[NDArray[np.int64]]]:
    """All windows once, in random order."""
    order = random.permutation(len(cut))
    for start in range(0, len(order), _BATCH):
        yield [cut[number] for number in order[start : start + _BATCH].tolist()]


def batch_loss(model: Sasrec, some: list[NDArray[np.int64]], negatives: int, random: np.random.Generator) -> Tensor:
    """Softmax of each next item among itself and the negatives of the batch, its own target left out."""
    padding = model.items.num_embeddings - 1
    rows = padded(some, padding)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    real = inputs != padding
    vectors, wanted = model(inputs)[real], targets[real]
    drawn = torch.from_numpy(random.integers(0, padding, negatives))
    positive = (vectors * model.items(wanted)).sum(dim=1, keepdim=True)
    others = (vectors @ model.items(drawn).T).masked_fill(wanted[:, None] == drawn, -torch.inf)
    return functional.cross_entropy(torch.cat([positive, others], dim=1), torch.zeros(len(wanted), dtype=torch.long))


@torch.inference_mode()
def user_vectors(model: Sasrec, histories: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """(B, width) float32 of the newest items of histories."""
    model.eval()
    padding = model.items.num_embeddings - 1
    found = [
        model(padded([rows[-model.history :] for rows in histories[start : start + _BATCH]], padding))[:, -1]
        for start in range(0, len(histories), _BATCH)
    ]
    model.train()
    return torch.cat(found).numpy()


def validation_ndcg(model: Sasrec, targets: Targets, known: NDArray[np.bool_]) -> float:
    """Mean NDCG@10 over validation targets, histories masked."""
    items = model.items.weight.detach().numpy()[:-1]
    users, gains = user_vectors(model, targets.histories), 0.0
    for vector, history, target in zip(users, targets.histories, targets.targets.tolist(), strict=True):
        scores = np.where(known, items @ vector, -np.inf)
        own = scores[target]
        scores[history] = -np.inf
        scores[target] = -np.inf
        rank = int((scores >= own).sum())
        gains += 1 / np.log2(rank + 2) if rank < _CUT and known[target] else 0.0
    return gains / max(len(targets), 1)


def train(
    model: Sasrec,
    cut: list[NDArray[np.int64]],
    validation: Targets,
    known: NDArray[np.bool_],
    chosen: argparse.Namespace,
) -> int:
    """Train until validation does not rise; the model has the weights of the best epoch, which is returned."""
    optimiser = torch.optim.Adam(model.parameters(), lr=chosen.rate, betas=(0.9, 0.98))
    random = np.random.default_rng(chosen.seed)
    best, worse, best_epoch = -1.0, 0, 0
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for epoch in range(1, chosen.epochs + 1):
        for some in batches(cut, random):
            optimiser.zero_grad(set_to_none=True)
            batch_loss(model, some, chosen.negatives, random).backward()
            optimiser.step()
        if epoch % chosen.every:
            continue
        found = validation_ndcg(model, validation, known)
        print(json.dumps({"epoch": epoch, "validation ndcg@10": round(found, 5)}), flush=True)
        if found > best:
            best, worse, best_epoch = found, 0, epoch
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        else:
            worse += 1
            if worse == chosen.patience:
                break
    model.load_state_dict(kept)
    return best_epoch


def main() -> int:
    """Train, rank, and write the file of ranks."""
    chosen = _options()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    dataset = load_dataset(chosen.data, interactions=chosen.interactions)
    split = split_dataset(dataset, 0.0)
    part: TargetSet = target_sets(split, on_validation=False, most=chosen.targets)[0]
    cut = windows(split.parts.train, chosen.history)
    known = np.bincount(np.concatenate(cut), minlength=len(dataset)) > 0
    model = Sasrec(
        len(dataset),
        width=chosen.factors,
        history=chosen.history,
        blocks=chosen.blocks,
        heads=chosen.heads,
        dropout=chosen.dropout,
        factor=chosen.feed if chosen.layers == "ligr" else None,
    )
    epoch = train(model, cut, evenly_spaced(split.parts.validation, _VALIDATION_USERS), known, chosen)
    items = model.items.weight.detach().numpy()[:-1]
    name = NAMES[chosen.layers]
    ranked = rank_sets([part], {name: (GivenVectors(user_vectors(model, part.targets.histories), items), known)})
    save_ranks(chosen.out, ranked)
    row = ranked[0].measured().row(name)
    print(f"{name}, epoch {epoch}, {part.name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.values.items()))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--interactions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", type=int, help="at most so many, as for `vlm2rec evaluate`")
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--layers", choices=sorted(NAMES), default="sasrec")
    parser.add_argument("--feed", type=int, default=1, help="width of SwiGLU in ligr layers, × factors")
    parser.add_argument("--negatives", type=int, default=1_024, help="uniform negatives shared by a batch")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--every", type=int, default=3, help="epochs between two looks at validation")
    parser.add_argument("--patience", type=int, default=17, help="looks without a better one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
