"""The small shop with a model of random weights, embedded by one process."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes.ray_clusters import NO_RAY, TOKEN, Cluster
from tests.support.processes.ray_jobs import ITEMS
from training.backbones.backbone import load_backbone
from training.backbones.trained_model import TrainedModel
from training.backbones.vlm import VlmEmbedder, save_embedder
from training.config.run_config import load_config, to_toml
from training.data.dataset import Dataset, load_dataset
from training.embedding.distributed.shard_worker import ShardJob
from training.embedding.job import EncodeShards, embed_catalogue, pending_items
from training.embedding.plan import EmbeddingPlan

SIZES = {"shard_items": 4, "batch_items": 3}
SHARDS = 8  # of 30 items


@pytest.fixture(scope="session")
def embedded_home(shop: Dataset, backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `run` with its embeddings, and `empty` with the same model and none; never write into it."""
    home = tmp_path_factory.mktemp("embedded")
    shutil.copytree(shop.directory, home / "data")
    backbone = load_backbone(backbone_directory)
    save_embedder(
        home / "empty" / "train" / "model", VlmEmbedder(backbone.model), backbone,
        source=None, revision=None, max_text_tokens=6, max_history=4,
    )  # fmt: skip
    config = load_config(overrides={f"embed.{size}": number for size, number in SIZES.items()})
    (home / "empty" / "config.toml").write_text(to_toml(config))
    shutil.copytree(home / "empty", home / "run")
    embed(home, "run")
    return home


@pytest.fixture
def home(embedded_home: Path, tmp_path: Path) -> Path:
    """A copy in which nothing is embedded yet."""
    shutil.copytree(embedded_home / "data", tmp_path / "data")
    shutil.copytree(embedded_home / "empty", tmp_path / "run")
    return tmp_path


@pytest.fixture
def expected(embedded_home: Path) -> dict[str, bytes]:
    """The vectors that one process made, by name of the file."""
    return vectors(embedded_home)


def vectors(home: Path) -> dict[str, bytes]:
    """The bytes of the vectors of a run."""
    return {path.name: path.read_bytes() for path in (home / "run" / "embeddings").glob("*.npy")}


def embed(home: Path, run: str = "run", encode_shards: EncodeShards | None = None) -> int:
    """Embed the shop; how many items were encoded in this call."""
    dataset, model = load_dataset(home / "data"), TrainedModel.of(home / run)
    pending = pending_items(dataset, model.provenance, model.embeddings)
    done = embed_catalogue(dataset, pending, model.load, model.embeddings, encode_shards=encode_shards, **SIZES)
    return done.encoded


@pytest.fixture
def job_of() -> Callable[[Path, EmbeddingPlan], ShardJob]:
    def make(home: Path, plan: EmbeddingPlan) -> ShardJob:
        provenance = TrainedModel.of(home / "run").provenance
        return ShardJob(home / "data", home / "run", plan.directory, provenance, plan.batch_items, 1)

    return make


@pytest.fixture
def prompt_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as nice as Ray makes them wait for minutes on a busy machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def large(home: Path) -> Path:
    """The shop eight times, embedded item by item, so that a job takes a while."""
    items = home / "data" / "items.csv"
    header, *rows = items.read_text().splitlines()
    copies = [f"c{copy}{row}" for copy in range(ITEMS // len(rows)) for row in rows]
    items.write_text("\n".join([header, *copies]) + "\n")
    (home / "data" / "interactions.csv").write_text("user_id,item_id,timestamp\nu0,c0i00,1\n")
    sizes = {"embed.shard_items": 2, "embed.batch_items": 1}
    (home / "run" / "config.toml").write_text(to_toml(load_config(overrides=sizes)))
    shutil.copytree(home / "run", home / "alone")
    return home


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    made = Cluster()
    yield made
    made.end()
