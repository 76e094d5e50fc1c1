"""Workers without a shared disk get the stored vectors that they read, no others, and make the bytes of one process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from tests.support.backbones.item_models import write_dual, write_image_model, write_text_encoder
from tests.support.processes.inline_workers import Cluster, inline_cluster
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import URL, upload
from training.config.run_config import CONFIG_FILE, RunConfig, to_toml
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import LeaveOneOut
from training.embedding.content_hashes import ContentHashes, read_contents
from training.embedding.distributed.read_features import features_read
from training.embedding.plan import EmbeddingPlan
from training.embedding.store import Embeddings
from training.finetune.trainer import train_vlm

Small = Callable[..., RunConfig]
TextLayers = Callable[[RunConfig], RunConfig]
NO_TEXT, NOTHING = 3, 6


@pytest.fixture
def towers(small: Small, tmp_path: Path) -> RunConfig:
    return small(
        vlm__family="towers", vlm__towers__text_model=str(write_text_encoder(tmp_path / "bert")),
        vlm__towers__image_model=str(write_image_model(tmp_path / "resnet")), vlm__heads__length=8,
        vlm__heads__text_terms=6, train__steps=2, embed__shard_items=8, embed__batch_items=3,
    )  # fmt: skip


def train(shop: Dataset, parts: LeaveOneOut, run: Path, config: RunConfig) -> Path:
    run.mkdir()
    (run / CONFIG_FILE).write_text(to_toml(config))
    train_vlm(shop, parts.train, run / "train", config, validation=parts.validation)
    return run


def plan_of(run: Path, contents: ContentHashes) -> EmbeddingPlan:
    return EmbeddingPlan.open(run / "embeddings", contents, {}, shard_items=8, batch_items=3)


def some(shop: Dataset, *rows: int) -> ContentHashes:
    return ContentHashes(read_contents(shop).frame[list(rows)])


def vectors(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "embeddings").glob("*.npy")}


def test_only_rows_of_the_plan_are_read(
    shop: Dataset, shop_parts: LeaveOneOut, towers: RunConfig, own_shop: Path, tmp_path: Path
) -> None:
    run = train(shop, shop_parts, tmp_path / "run", towers)
    stored = Embeddings.load(run / "train" / "features")
    assert features_read(run, plan_of(run, read_contents(shop))) == run / "train" / "features"
    (own_shop / "items.csv").write_text((own_shop / "items.csv").read_text().replace(" thing", " unheard of"))
    for picture in (own_shop / "images").iterdir():
        picture.write_bytes(picture.read_bytes() + b"\0")
    assert features_read(run, plan_of(run, read_contents(load_dataset(own_shop)))) is None
    plan = plan_of(run, some(shop, 0, NO_TEXT, NOTHING, 20))
    sent, bytes_of = features_read(run, plan), list[dict[str, bytes]]()
    assert sent == plan.directory / "features"
    found = Embeddings.load(sent)
    assert found.item_ids == ["i00", "i03", "i20"]
    for name, block in found.vectors.items():
        assert block.tobytes() == stored.vectors[name][[0, NO_TEXT, 20]].tobytes()
    for _ in range(2):
        bytes_of.append({path.name: path.read_bytes() for path in sent.iterdir()})
        assert features_read(run, plan) == sent
    assert bytes_of[0] == bytes_of[1]  # else a job that goes on would send them again


def test_vectors_of_trained_layers_and_adapters_are_not_read(
    shop: Dataset, shop_parts: LeaveOneOut, towers: RunConfig, small: Small, tmp_path: Path
) -> None:
    layers = towers.vlm.towers.model_copy(update={"trained_text_layers": 1})
    config = towers.model_copy(update={"vlm": towers.vlm.model_copy(update={"towers": layers})})
    run = train(shop, shop_parts, tmp_path / "layers", config)
    sent = features_read(run, plan_of(run, read_contents(shop)))
    assert sent is not None
    assert list(Embeddings.load(sent).vectors) == ["image"]
    adapted = small(
        vlm__family="dual-encoder", vlm__model=str(write_dual(tmp_path / "clip", "clip")), vlm__adapters=True,
        vlm__lora__rank=2, vlm__heads__length=8, train__steps=2,
    )  # fmt: skip
    run = train(shop, shop_parts, tmp_path / "adapted", adapted)
    assert (run / "train" / "features" / "embeddings.json").is_file()
    assert features_read(run, plan_of(run, read_contents(shop))) is None


def test_workers_make_the_bytes_of_one_process(
    shop: Dataset, shop_parts: LeaveOneOut, towers: RunConfig, own_shop: Path, s3: S3Server, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cluster: Cluster = inline_cluster(monkeypatch)
    cluster.shares_no_disk = True
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    run, alone = train(shop, shop_parts, tmp_path / "run", towers), tmp_path / "alone"
    shutil.copytree(run, alone)
    lines = (own_shop / "items.csv").read_text().replace("crimson thing 0,crimson thing 0", "new red,new red")
    (own_shop / "items.csv").write_text(lines)
    upload(s3, own_shop)
    words = ["--threads", "1", "--engine", "ray", "--ray-storage", "s3://shop/jobs"]
    for command in (["embed", URL, "--run", str(run), *words], ["embed", URL, "--run", str(alone), "--threads", "1"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert len(cluster.encoded) == 4
    assert vectors(run) == vectors(alone)
    assert s3.asked("PUT", "features/embeddings.json") == 1
