"""A small shop with a model, embeddings and a fitted encoder, for repeated re-index jobs."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.app import app
from index.bundle.bundle import Bundle
from index.bundle.registry import Registry
from index.lists.item_lists import ItemLists, ListWeights
from tests.support.processes.forked_commands import exit_code, start_command
from tests.support.table_content import Rows, edit_items, set_item
from training.backbones.backbone import load_backbone
from training.backbones.trained_model import TrainedModel
from training.backbones.vlm import VlmEmbedder, save_embedder
from training.config.encoder_config import EncoderConfig
from training.config.run_config import load_config, to_toml
from training.data.dataset import Dataset, load_dataset
from training.embedding.job import embed_catalogue, pending_items
from training.encoder.job import fit_run
from training.encoder.onnx_export import ExportParity

Run = tuple[Path, dict[str, Any]]


@dataclass
class Shop:
    """A shop's data set, run directory and registry, all of them the test's own."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def registry(self) -> Registry:
        return Registry(self.home / "bundles")

    def words(self, *more: object) -> list[str]:
        """The command line of the nightly job."""
        where = ("--run", self.run, "--registry", self.home / "bundles", "--threads", 1)
        return [str(word) for word in ("reindex", self.data, *where, *more)]

    def invoke(self, *more: object) -> Result:
        """Run the job in this process."""
        return CliRunner().invoke(app, self.words(*more))

    def reindex(self, *more: object, code: int = 0) -> dict[str, Any]:
        """Run the job in this process, and give its summary."""
        summary = self.home / "summary.json"
        result = self.invoke("--json", summary, *more)
        assert result.exit_code == code, result.output
        found: dict[str, Any] = json.loads(summary.read_text())
        assert found["exit_code"] == code
        summary.unlink()
        return found

    def run_through(self, *more: object) -> int | None:
        """Run the job in a process of its own, and give its exit code."""
        return exit_code(self.start(*more))

    def start(self, *more: object, before: str = "") -> ForkServerProcess:
        """Start the job in a process of its own, after some code."""
        return start_command(self.words(*more), before)

    def killed_after(self, seconds: float) -> bool:
        """Start the job and kill it; whether the kill came before its own end."""
        process = self.start()
        process.join(seconds)
        process.kill()
        code = exit_code(process)
        assert code in {-signal.SIGKILL, 0}
        return code != 0

    def edit(self, change: Callable[[Rows], Rows]) -> None:
        """Change the rows of items.csv."""
        edit_items(self.data, change)

    def set(self, row: int, **values: str) -> None:
        """Change one row of items.csv."""
        set_item(self.data, row, **values)

    def bundle(self) -> Bundle:
        """The current bundle."""
        return Bundle.load(self.registry.path(str(self.registry.current())), verify="full")

    def lists(self) -> dict[str, bytes]:
        """The files of the item-to-item lists of the current bundle."""
        directory = self.registry.path(str(self.registry.current())) / "lists"
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}

    def rows(self) -> dict[str, bytes]:
        """The bytes of every stored vector of the current bundle."""
        bundle = self.bundle()
        vectors = np.load(bundle.path / "vectors.npy")
        return {bundle.ids.id(row): vectors[row].tobytes() for row in range(len(bundle))}

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Every file and directory with its content and time of change."""
        return {
            str(path.relative_to(self.home)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
            for path in self.home.rglob("*")
        }


@pytest.fixture(autouse=True)
def few_timed_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job builds a bundle and times 200 searches for each kind of query; no test here needs that many."""
    monkeypatch.setattr("index.evaluation.measure._TIMED_QUERIES", 5)


@pytest.fixture(scope="session")
def make_run(ring_run: Run, small_config: EncoderConfig) -> Callable[..., None]:
    """Makes a run for a data set: a model with random weights, embeddings and a fitted encoder."""

    def use_the_ring_s(_encoder: object, _layout: object, path: Path, *, seed: int) -> ExportParity:
        """Exporting takes seconds; the ring's encoder stands in for any of the same shape."""
        shutil.copyfile(ring_run[0] / "encoder" / "encoder.onnx", path)
        return ExportParity(seed, 0.0)

    def make(data: Path, run: Path, backbone_directory: Path, shard_items: int, batch_items: int) -> None:
        backbone, dataset = load_backbone(backbone_directory), load_dataset(data)
        save_embedder(
            run / "train" / "model", VlmEmbedder(backbone.model), backbone,
            source=None, revision=None, max_text_tokens=6, max_history=4,
        )  # fmt: skip
        sizes = {"shard_items": shard_items, "batch_items": batch_items}
        overrides = {f"embed.{name}": size for name, size in sizes.items()}
        (run / "config.toml").write_text(to_toml(load_config(overrides=overrides)))
        model = TrainedModel.of(run)
        pending = pending_items(dataset, model.provenance, model.embeddings)
        made = embed_catalogue(dataset, pending, model.load, model.embeddings, **sizes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.encoder.encoder_files.export_encoder", use_the_ring_s)
            fit_run(dataset, made.embeddings, small_config.model_copy(update={"epochs": 2}), run / "encoder")

    return make


@pytest.fixture(scope="session")
def shop_home(
    shop: Dataset, backbone_directory: Path, make_run: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The shop before its first job, embedded in shards of 8 and batches of 3; never write into it."""
    home = tmp_path_factory.mktemp("nightly")
    shutil.copytree(shop.directory, home / "data")
    make_run(home / "data", home / "run", backbone_directory, 8, 3)
    directory = home / "run" / "encoder" / "lists"
    lists = ItemLists.load(directory, len(shop))  # 30 items give no weight to all three, and each is kept differently
    lists.weighed(ListWeights(lists.weights.recency, {"co": 0.6, "words": 0.2, "look": 0.1})).save(directory)
    return home


@pytest.fixture(scope="session")
def shop_at() -> type[Shop]:
    """A shop in a directory that a test has made itself."""
    return Shop


@pytest.fixture
def own(shop_home: Path, tmp_path: Path) -> Shop:
    """A copy of the shop before its first job; nothing is published."""
    return Shop(Path(shutil.copytree(shop_home, tmp_path / "home")))


@pytest.fixture(scope="session")
def published_home(shop_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop after its first job; never write into it."""
    home = tmp_path_factory.mktemp("published") / "home"
    shutil.copytree(shop_home, home)
    Shop(home).reindex()
    return home


@pytest.fixture
def nightly(published_home: Path, tmp_path: Path) -> Shop:
    """A copy of the shop after its first job."""
    return Shop(Path(shutil.copytree(published_home, tmp_path / "home")))
