"""Compares lists of words by TF-IDF with lists by a text encoder's vectors: NDCG@10 on validation.

    vlm2rec embed DATA --run RUN --no-vlm && vlm2rec fit-encoder DATA --run RUN
    python -m bench.method.word_vectors DATA --run RUN --work .bench/words --out word-vectors.json

The vectors are those of the text encoder of `--preset towers-minilm` (the extra `towers`), made once and kept in WORK.
Each row replaces the list of words of a run and weighs all lists anew, as `fit-encoder` does; without a fitted encoder
only the lists alone are weighed. Test is not read.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.measurements import commit
from bench.method.heads import PRESET
from index.items.slots import IMAGE, TEXT
from index.lists.item_lists import CO, LOOK, WORDS, ItemList
from training.backbones.items.source import ItemSource
from training.backbones.items.text_blocks import TextBlocks
from training.backbones.prompts import plain_text
from training.backbones.trained_model import EMBEDDINGS_DIRECTORY
from training.config.encoder_config import EncoderConfig
from training.config.run_config import load_config, load_run_config
from training.config.vlm_config import VlmConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import Targets, evenly_spaced
from training.embedding.store import Embeddings
from training.encoder.encoder_files import ENCODER_DIRECTORY, FIT_FILE
from training.encoder.job import split_dataset
from training.evaluation.fitted_run import FittedRun
from training.lists.build import co_occurrence_list, look_list, words_list
from training.lists.validation_pool import ValidationPool
from training.lists.weights import best_figures, choose_weights
from training.ranking.slot_ranker import SlotRanker

_BATCH: Final = 64
_TERMS: Final = 256
_SHRINKAGE: Final = 10.0
"""As in `training.lists.fit_lists`."""


def encoded_texts(dataset: Dataset, vlm: VlmConfig, work: Path) -> NDArray[np.float32]:
    """Vectors (n, D) of the texts, rows of zeros where there is none; made once.

    Args:
        dataset: the catalogue.
        vlm: names the encoder.
        work: where they are kept.
    """
    source, texts = ItemSource.of(vlm), dataset.texts()
    inputs_of_all = json.dumps([source.provenance(), dataset.item_ids(), list(texts)], sort_keys=True)
    kept = work / f"texts-{hashlib.sha256(inputs_of_all.encode()).hexdigest()[:16]}.npy"
    if kept.is_file():
        return np.asarray(np.load(kept), dtype=np.float32)
    encoder = source.load()
    vectors = np.zeros((len(texts), encoder.dims[TEXT]), dtype=np.float32)
    rows = [row for row, text in enumerate(texts) if text is not None]
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            inputs = encoder.prepare_texts([plain_text(texts[row] or "") for row in part])
            vectors[part] = encoder.encode(TEXT, inputs).numpy()
    work.mkdir(parents=True, exist_ok=True)
    np.save(kept, vectors)
    return vectors


def word_lists(
    texts: Sequence[str | None], vectors: NDArray[np.float32], neighbours: int
) -> dict[str, ItemList | None]:
    """What is compared → the list of words; None for no such list.

    Args:
        texts: of the catalogue.
        vectors: (n, D) of a text encoder.
        neighbours: most entries of an item.
    """
    blocks = TextBlocks.fit(texts, vectors, _TERMS, share=1.0)
    made = {
        "vectors": vectors,
        "vectors, centred": _centred(vectors),
        "vectors beside TF-IDF": None if blocks is None else blocks.join(vectors, texts),
    }
    lists = {name: _as_words(look_list(block, neighbours)) for name, block in made.items() if block is not None}
    return {"no list": None, "TF-IDF": words_list(texts, neighbours), **lists}


def _vectors(dataset: Dataset, directory: Path, modality: str) -> NDArray[np.float32]:
    """Stored vectors, in the order of the catalogue."""
    found = Embeddings.load(directory, check=False)
    if found.item_ids != dataset.item_ids():
        raise SystemExit(f"{directory}: its vectors are of another catalogue; train and embed again")
    return found.vectors[modality]


def _centred(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors less their mean; an item without text stays without one."""
    present = vectors.any(axis=1, keepdims=True)
    return np.where(present, vectors - vectors[present[:, 0]].mean(axis=0), np.float32(0))


def _as_words(made: ItemList) -> ItemList:
    return replace(made, name=WORDS)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """NDCG@10 on validation of every list of words, of the lists alone and beside the slots."""
    dataset, run = load_dataset(options.data, interactions=options.interactions), options.run
    config = load_run_config(run).encoder
    parts, items = split_dataset(dataset, config.cold_items).parts, len(dataset)
    neighbours = config.neighbours(items)
    pictures = _vectors(dataset, run / EMBEDDINGS_DIRECTORY, IMAGE)
    others = {
        CO: co_occurrence_list(parts.train, items, neighbours, shrinkage=_SHRINKAGE),
        LOOK: look_list(pictures, neighbours),
    }
    validation = evenly_spaced(parts.validation, config.validation_users)
    fitted = FittedRun.load(run / ENCODER_DIRECTORY) if (run / ENCODER_DIRECTORY / FIT_FILE).is_file() else None
    weigh = partial(_weighed, validation=validation, config=config, items=items, recency=options.recency)
    rows = {}
    vectors = encoded_texts(dataset, load_config(preset=PRESET).vlm, options.work)
    for name, words in word_lists(dataset.texts(), vectors, neighbours).items():
        lists = {CO: others[CO], **({} if words is None else {WORDS: words}), LOOK: others[LOOK]}
        rows[name] = {"lists alone": weigh(None, lists)}
        if words is not None:
            rows[name]["words alone"] = weigh(None, {WORDS: words})
        if fitted is not None:
            table = np.asarray(fitted.table.vectors, dtype=np.float32)
            ranker = SlotRanker(table, fitted.encoder.encode, fitted.encoder.max_history)
            rows[name]["served"] = weigh(ranker, lists)
        _console.print(f"{name}: {json.dumps(rows[name])}", markup=False)
    return {"commit": commit(), "items": items, "validation_users": len(validation), "words": rows}


def _weighed(
    ranker: SlotRanker | None, lists: Mapping[str, ItemList], *, validation: Targets, config: EncoderConfig, items: int,
    recency: float | None,
) -> dict[str, Any]:  # fmt: skip
    """NDCG@10 with the best weights of these lists and its standard error; with all recencies the weights, too."""
    findable = np.ones(items, dtype=np.bool_) if ranker is None else ranker.findable
    pool = ValidationPool(ranker, validation, findable, lists, config.list_history, exclude_seen=config.exclude_seen)
    if recency is not None:
        figures = best_figures(pool, recency)
        return {
            "ndcg@10": round(figures["served_ndcg@10"], 5),
            "standard_error": round(figures["served_error"], 5),
            "recency": recency,
        }
    chosen = choose_weights(pool, config.list_history)
    recency = float(chosen.weights.recency[min(1, config.list_history - 1)])
    error = pool.scored(recency).standard_error(tuple(chosen.weights.weights.values()))
    return {
        "ndcg@10": round(chosen.ndcg, 5),
        "standard_error": round(error, 5),
        "weights": dict(chosen.weights.weights),
        "recency": recency,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the comparison."""
    columns = ("words alone", "lists alone", "served")
    table = Table("words by", *columns, title=f"NDCG@10, validation, {found['validation_users']} users")
    for name, row in found["words"].items():
        table.add_row(name, *(f"{row[column]['ndcg@10']:.4f}" if column in row else "–" for column in columns))
    _console.print(table)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data set")
    parser.add_argument("--run", type=Path, required=True, help="embedded, and fitted for the column of what is served")
    parser.add_argument("--work", type=Path, required=True, help="kept between runs")
    parser.add_argument("--recency", type=float, help="the only recency that is tried, in a seventh of the time")
    parser.add_argument("--interactions", type=Path, help="instead of those in DATA")
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    options = parser.parse_args(given)
    found = measure(options)
    show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


_console = Console(highlight=False, soft_wrap=True)

if __name__ == "__main__":
    main()
