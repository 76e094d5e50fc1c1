"""Measures the memory that jobs need for a large catalogue before they load a model.

    python -m bench.capacity.catalogue_memory --items 10000000 --encoder-dim 64

Writes a made catalogue as Parquet files in Hive partitions, kept in the work directory. Each stage is a process of its
own, whose peak of resident memory is compared with the size of the files and of the table in memory. Anonymous memory
counts: pages of mapped files are dropped when memory is short. Writes JSON to bench/results/catalogue-N.json.

Stages: `check` is `vlm2rec data check`; `load` reads what `train`, `embed`, `evaluate` and `reindex` read first;
`embed` is all of `vlm2rec embed` but the model: made vectors of 32 dimensions take its place; `encode` is the same with
an encoder of items in this process, whose text vectors are made; `evaluate` splits the histories.

Disk meanwhile: 570 bytes an item for the table that is mapped, and the vectors. Shards and the new set lie beside each
other, so that a killed job loses nothing: 16 bytes an item and dimension, 12 GB for a million items of 768 dimensions.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import polars as pl

from bench.measurements import commit, machine
from bench.resident_memory import peak_memory
from training.data.dataset import ITEM_ID, Dataset, load_dataset

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from training.embedding.plan import EmbeddingPlan

_FILE_ROWS: Final = 50_000
_PARTITIONS: Final = 20
_PHRASES: Final = 20_000
_TEXT_PHRASES: Final = 6
_EVENTS: Final = 1_000_000
_OF_USER: Final = 10
_SIZES: Final = "sizes.json"
_SHARD_ITEMS: Final = 4_096
_DIM: Final = 32


@dataclass(frozen=True)
class LargeCatalogue:
    """A made data set.

    Attributes:
        directory: of the data set.
        encoder_dim: length of the vectors of the encoder of items.
    """

    directory: Path
    encoder_dim: int


def write_catalogue(directory: Path, items: int) -> dict[str, int]:
    """Write items in Hive partitions and a million events; what is there already is kept.

    Args:
        directory: of the data set.
        items: number of items.

    Returns:
        Number of files, and bytes of the files and of the table in memory.
    """
    record = directory / _SIZES
    if record.is_file():
        found: dict[str, int] = json.loads(record.read_text())
        return found
    shutil.rmtree(directory, ignore_errors=True)
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghiklmnoprstuvw"), rng.integers(3, 10))) for _ in range(5_000)])
    phrases = pl.Series([" ".join(words[rng.integers(0, len(words), 12)]) for _ in range(_PHRASES)])
    sizes = {"files": 0, "files_bytes": 0, "table_bytes": 0}
    for start in range(0, items, _FILE_ROWS):
        part = _some_items(range(start, min(items, start + _FILE_ROWS)), phrases, rng)
        path = directory / "items" / f"category={sizes['files'] % _PARTITIONS}" / f"{start:09d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(path)
        sizes["files"] += 1
        sizes["files_bytes"] += path.stat().st_size
        sizes["table_bytes"] += int(part.estimated_size())
    _some_events(items, rng).write_parquet(directory / "interactions.parquet")
    record.write_text(json.dumps(sizes))
    return sizes


def _some_items(rows: range, phrases: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    chosen = [phrases.gather(rng.integers(0, len(phrases), len(rows))) for _ in range(_TEXT_PHRASES)]
    columns = pl.DataFrame({f"p{place}": column for place, column in enumerate(chosen)})
    return columns.select(
        pl.Series(ITEM_ID, [f"item-{row:08d}" for row in rows]),
        pl.col("p0").str.head(40).alias("title"),
        pl.concat_str("^p.*$", separator=". ").alias("text"),
        pl.Series("brand", rng.integers(0, 5_000, len(rows))).cast(pl.String).alias("brand"),
        pl.Series("price", rng.integers(100, 100_000, len(rows)) / 100),
    )


def _some_events(items: int, rng: np.random.Generator) -> pl.DataFrame:
    events = min(_EVENTS, 10 * items)
    rows = (items * rng.random(events) ** 2).astype(np.int64)
    return pl.DataFrame(
        {
            "user_id": [f"user-{number // _OF_USER:07d}" for number in range(events)],
            ITEM_ID: [f"item-{row:08d}" for row in rows.tolist()],
            "timestamp": 1_700_000_000 + 60 * np.arange(events),
        }
    )


def _check(catalogue: LargeCatalogue) -> None:
    from training.data_check.check import check_dataset

    report = check_dataset(catalogue.directory)
    if not report.ok:
        raise SystemExit(str(report.defects))


def _load(catalogue: LargeCatalogue) -> Dataset:
    return load_dataset(catalogue.directory)


def _embed(catalogue: LargeCatalogue) -> object:
    from training.embedding.job import embed_catalogue, pending_items

    dataset, embeddings = load_dataset(catalogue.directory), catalogue.directory.parent / "embeddings"
    shutil.rmtree(embeddings, ignore_errors=True)
    pending = pending_items(dataset, {}, embeddings)
    made = embed_catalogue(
        dataset, pending, _no_model, embeddings, shard_items=_SHARD_ITEMS, batch_items=16, encode_shards=_made_shards
    )
    shutil.rmtree(embeddings)
    return made


def _no_model() -> NoReturn:
    raise SystemExit("made vectors take the place of a model")


def _made_shards(
    plan: "EmbeddingPlan", numbers: Sequence[int], finished: Callable[[int], None], _stopped: Callable[[], bool]
) -> None:
    rng = np.random.default_rng(1)
    for number in numbers:
        made = rng.random((len(plan.item_ids(number)), _DIM), dtype=np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        plan.write(number, {"text": made, "image": made[::-1]}, {})
        finished(number)


class _MadeEncoder:
    """Stands for an encoder of items: rotates one random vector by the length of a text."""

    def __init__(self, dim: int) -> None:
        import torch

        self.model = torch.nn.Identity()
        self.dims = {"text": dim, "image": dim}
        self.picture_pixels = 64
        self._vector = torch.nn.functional.normalize(torch.rand(dim), dim=0)

    def prepare_texts(self, texts: Sequence[str]) -> "dict[str, Tensor]":
        import torch

        return {"lengths": torch.tensor([len(text) for text in texts])}

    def prepare_pictures(self, _pictures: "Sequence[Image.Image]") -> "dict[str, Tensor]":
        raise SystemExit("the made catalogue has no pictures")

    def encode(self, _modality: str, inputs: "dict[str, Tensor]") -> "Tensor":
        import torch

        return torch.stack([self._vector.roll(length) for length in inputs["lengths"].tolist()])


def _encode(catalogue: LargeCatalogue) -> object:
    from training.backbones.items.source import ItemSource
    from training.backbones.items.trained_heads import ItemEmbedding
    from training.config.run_config import RunConfig
    from training.embedding.job import embed_catalogue, pending_items

    dataset, embeddings = load_dataset(catalogue.directory), catalogue.directory.parent / "embeddings"
    shutil.rmtree(embeddings, ignore_errors=True)
    pending = pending_items(dataset, {}, embeddings)
    encoder = _MadeEncoder(catalogue.encoder_dim)
    embedding = ItemEmbedding(ItemSource.of(RunConfig().vlm), encoder, None, embeddings, {})
    made = embed_catalogue(dataset, pending, lambda: embedding, embeddings, shard_items=_SHARD_ITEMS, batch_items=16)
    shutil.rmtree(embeddings)
    return made


def _evaluate(catalogue: LargeCatalogue) -> None:
    from training.data.sequences import Sequences, leave_one_out

    dataset = load_dataset(catalogue.directory)
    split = leave_one_out(Sequences.from_interactions(dataset.interactions, dataset.item_ids()))
    if not len(split.test):
        raise SystemExit("there is nothing to evaluate")


STAGES: Final[Mapping[str, Callable[[LargeCatalogue], object]]] = {
    "check": _check,
    "load": _load,
    "embed": _embed,
    "encode": _encode,
    "evaluate": _evaluate,
}
"""Name of a stage → what it does with the data set."""


def measured(stage: str, catalogue: LargeCatalogue) -> dict[str, Any]:
    """Seconds and peak of memory of a stage in this process; ``before`` is the memory with its modules loaded."""
    import training.data_check.check
    import training.embedding.job  # noqa: F401

    with peak_memory() as before:
        time.sleep(0.2)
    started, processor_started = time.perf_counter(), time.process_time()
    with peak_memory() as peak:
        held = STAGES[stage](catalogue)
        time.sleep(0.2)
    del held
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor_started, 1),
        "before": before,
        "peak": peak,
    }


def main() -> None:
    """Measure the stages, each in a process of its own, and write the results; those of other stages are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, help="kept between runs; .bench/catalogue-N if not given")
    parser.add_argument("--out", type=Path, help="bench/results/catalogue-N.json if not given")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="all if not given")
    parser.add_argument("--encoder-dim", type=int, default=768, help="length of the vectors of `encode`; %(default)s")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work or Path(f".bench/catalogue-{options.items}")
    if options.stage is not None:  # in a process of its own, so that its memory is its own
        print(json.dumps(measured(options.stage, LargeCatalogue(work / "data", options.encoder_dim))))
        return
    out = options.out or Path(f"bench/results/catalogue-{options.items}.json")
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() and options.stages != list(STAGES) else {}
    found |= {"items": options.items, "sizes": write_catalogue(work / "data", options.items)}
    for stage in options.stages:
        command = [sys.executable, "-m", "bench.capacity.catalogue_memory", "--stage", stage]
        command += ["--items", str(options.items), "--work", str(work), "--encoder-dim", str(options.encoder_dim)]
        found[stage] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if stage == "encode":
            found[stage]["dimensions"] = options.encoder_dim
        print(stage, found[stage], file=sys.stderr, flush=True)
    found |= {"commit": commit(), "machine": machine(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
