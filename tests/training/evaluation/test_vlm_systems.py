"""Direct ranking in the evaluation: the same figures as direct ranking while training, which is tested by a loop."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.backbones.batches import Collator
from training.backbones.trained_model import TrainedModel
from training.config.run_config import RunConfig, to_toml
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.data.sequences import LeaveOneOut, Targets
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.embedding.job import embed_catalogue, pending_items
from training.encoder.job import split_dataset
from training.errors import BackboneError
from training.evaluation.evaluate import evaluate_targets
from training.evaluation.vlm_ranker import distinct_histories
from training.evaluation.vlm_systems import FROZEN, TRAINED, direct_models, direct_systems, trained_on
from training.finetune.distributed import ProcessGroup
from training.finetune.trainer import train_vlm
from training.finetune.validation import DirectRanking


class OneProcess:
    """What `ProcessGroup` needs of accelerate where there is one process."""

    num_processes = 1
    process_index = 0
    is_main_process = True
    is_local_main_process = True


@pytest.fixture(scope="module")
def trained(shop: Dataset, smallest: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model of a few steps; never write into it."""
    from training.config.run_config import load_config

    run = tmp_path_factory.mktemp("trained")
    config = load_config(overrides={**smallest, "train.steps": 4, "train.learning_rate": 0.01})
    (run / "config.toml").write_text(to_toml(config))
    parts = split_dataset(shop, 0.0).parts
    train_vlm(shop, parts.train, run / "train", config, validation=parts.validation)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def while_training(shop: Dataset, name: str, run: Path, targets: Targets) -> dict[str, float]:
    (model,) = [model for model in direct_models(TrainedModel.of(run)) if model.name == name]
    embedding = model.load()
    pictures = PictureStore(shop.image_path, embedding.backbone.image_processor, memory_bytes=10**8)
    collator = Collator(
        embedding.backbone.tokenizer, shop.texts(), pictures, max_text_tokens=6, max_history=4, chunk_tokens=512
    )
    ranking = DirectRanking(
        collator, ProcessGroup(OneProcess()), targets, len(shop), users=99, items=99, fusion="concat", seed=0
    )
    return ranking.measure(embedding.embedder, contextlib.nullcontext)


def test_the_rows_are_those_of_direct_ranking_before_and_after_training(
    run: Path, shop: Dataset, shop_parts: LeaveOneOut
) -> None:
    targets = shop_parts.test
    systems = direct_systems(TrainedModel.of(run), shop, targets.histories)
    table = evaluate_targets("test", systems, targets)
    for model in (TRAINED, FROZEN):
        expected = while_training(shop, model, run, targets)
        for row, metric in ((model, ""), (f"{model}, text only", " text"), (f"{model}, image only", " image")):
            assert table.row(row).values["ndcg@10"] == pytest.approx(expected[f"ndcg@10{metric}"], abs=1e-9), row
    assert len(table.rows) == 6
    assert table.row(TRAINED).values["ndcg@10"] != table.row(FROZEN).values["ndcg@10"]


def test_an_item_that_shares_nothing_with_the_history_comes_last(run: Path, shop: Dataset) -> None:
    """Item 3 has no text, item 4 no picture, item 6 neither."""
    histories = [np.array([3]), np.array([4]), np.array([3, 4]), np.array([6])]
    systems = direct_systems(TrainedModel.of(run), shop, histories)
    ranker, findable = systems[TRAINED]
    assert np.flatnonzero(~findable).tolist() == [6]
    picture, text, both, nothing = ranker.scores(histories)
    assert picture[4] == text[3] == picture[6] == text[6] == -2
    assert np.delete(picture, [4, 5, 6]).min() >= -1  # item 5's picture is broken
    assert both[[3, 4]].min() >= -1
    assert set(nothing.tolist()) == {-2}
    assert np.flatnonzero(~systems[f"{TRAINED}, text only"][1]).tolist() == [3, 6]


def test_histories_are_read_as_far_as_the_model_reads() -> None:
    histories = [np.array([9, 1, 2]), np.array([2, 1]), np.array([1, 2]), np.array([2]), np.array([3, 1, 2])]
    assert [known.tolist() for known in distinct_histories(histories, 2)] == [[2], [1, 2], [2, 1]]
    assert [known.tolist() for known in distinct_histories(histories, 3)] == [
        [2], [1, 2], [2, 1], [3, 1, 2], [9, 1, 2],
    ]  # fmt: skip


def test_a_killed_evaluation_goes_on(
    run: Path, shop: Dataset, shop_parts: LeaveOneOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.vlm_systems._SHARD", 8)
    monkeypatch.setattr("training.evaluation.vlm_systems._BATCH", 8)
    seen: list[int] = []
    sequences = CatalogueEncoder.sequences

    def count(self: CatalogueEncoder, histories: list[np.ndarray]) -> object:
        if len(seen) == 2:
            seen.append(0)
            raise KeyboardInterrupt
        seen.append(len(histories))
        return sequences(self, histories)

    monkeypatch.setattr(CatalogueEncoder, "sequences", count)
    histories = shop_parts.test.histories
    distinct = len(distinct_histories(histories, 4))
    with pytest.raises(KeyboardInterrupt):
        direct_systems(TrainedModel.of(run), shop, histories)
    seen.append(-1)
    reported: list[tuple[str, int, int]] = []
    made = direct_systems(TrainedModel.of(run), shop, histories, progress=lambda *line: reported.append(line))
    assert (f"{TRAINED}: histories", 16, distinct) in reported
    assert sum(seen[4:]) == 2 * distinct - 16
    fresh = direct_systems(TrainedModel.of(shutil.copytree(run, run.with_name("fresh"))), shop, histories)
    for name, (ranker, _) in made.items():
        np.testing.assert_array_equal(ranker.scores(histories), fresh[name][0].scores(histories))


def test_the_catalogue_is_not_encoded_twice(
    run: Path, shop: Dataset, encoded: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TrainedModel.of(run)
    pending = pending_items(shop, model.provenance, model.embeddings)
    embed_catalogue(shop, pending, model.load, model.embeddings, shard_items=16, batch_items=16)
    encoded.clear()
    histories = [np.array([1, 2]), np.array([8, 9])]
    first = direct_systems(model, shop, histories)
    assert encoded == [list(range(len(shop)))]  # of the model before training
    encoded.clear()
    again = direct_systems(model, shop, histories)
    assert encoded == []
    for name, (ranker, _) in first.items():
        np.testing.assert_array_equal(ranker.scores(histories), again[name][0].scores(histories))


def test_vectors_of_another_model_or_catalogue_are_not_used(run: Path, shop: Dataset, encoded: list[list[int]]) -> None:
    histories = [np.array([1, 2])]
    direct_systems(TrainedModel.of(run), shop, histories)
    kept = {path.name for path in (run / "evaluation" / "vectors").iterdir()}
    assert len(kept) == 2
    encoded.clear()
    texts = shop.texts()
    swapped = type(shop)(shop.directory, shop.items.reverse(), shop.interactions)
    assert list(swapped.texts()) == texts[::-1]
    direct_systems(TrainedModel.of(run), swapped, histories)
    assert len(encoded) == 2
    assert not kept & {path.name for path in (run / "evaluation" / "vectors").iterdir()}


def test_without_the_start_there_is_no_frozen_row(run: Path, shop: Dataset) -> None:
    shutil.rmtree(run / "train" / "start")
    assert [model.name for model in direct_models(TrainedModel.of(run))] == [TRAINED]
    shutil.rmtree(run / "train" / "model")
    with pytest.raises(BackboneError, match="vlm2rec train"):
        TrainedModel.of(run)


def test_a_pretrained_model_is_frozen_without_its_adapters(
    shop: Dataset, shop_parts: LeaveOneOut, small: Callable[..., RunConfig], backbone_directory: Path, tmp_path: Path
) -> None:
    config = small(vlm__model=str(backbone_directory), train__steps=3, train__learning_rate=0.05)
    (tmp_path / "config.toml").write_text(to_toml(config))
    train_vlm(shop, shop_parts.train, tmp_path / "train", config)
    trained, frozen = direct_models(TrainedModel.of(tmp_path))
    rows = np.arange(4)
    bare = CatalogueEncoder(frozen.load(), shop).items(rows)
    assert not any("lora" in name for name, _ in frozen.load().embedder.named_parameters())
    adapted = CatalogueEncoder(trained.load(), shop).items(rows)
    assert np.abs(bare["text"] - adapted["text"]).max() > 1e-4


def test_a_model_of_one_modality_has_one_row(
    shop: Dataset, shop_parts: LeaveOneOut, small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = small(train__modalities=["text"], train__steps=1)
    (tmp_path / "config.toml").write_text(to_toml(config))
    train_vlm(shop, shop_parts.train, tmp_path / "train", config)
    systems = direct_systems(TrainedModel.of(tmp_path), shop, shop_parts.test.histories)
    assert list(systems) == [TRAINED, FROZEN]
    assert np.flatnonzero(~systems[TRAINED][1]).tolist() == [3, 6]


def test_a_model_that_may_have_seen_the_targets_is_reported(run: Path, shop: Dataset) -> None:
    model = TrainedModel.of(run)
    assert trained_on(model, shop, split_dataset(shop, 0.0))
    assert not trained_on(model, shop, split_dataset(shop, 0.3))
    (run / "train" / "fingerprint").unlink()
    assert not trained_on(model, shop, split_dataset(shop, 0.0))
