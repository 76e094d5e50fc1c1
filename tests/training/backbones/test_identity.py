"""The provenance of a model: computed from its files, and changed by every file that affects its vectors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.backbones.backbone import Backbone
from training.backbones.identity import ModelDescription, differences, other_space, provenance
from training.backbones.vlm import VlmEmbedder, adapt, load_embedder, save_embedder
from training.errors import BackboneError


def saved(backbone: Backbone, directory: Path, source: Path | None = None) -> Path:
    model = backbone.model
    if source is not None:
        model = adapt(backbone, rank=2, alpha=4, dropout=0.0, targets=["q_proj"])
    save_embedder(
        directory, VlmEmbedder(model), backbone,
        source=None if source is None else str(source), revision=None, max_text_tokens=6, max_history=4,
    )  # fmt: skip
    return directory


def known(directory: Path) -> dict[str, Any]:
    return provenance(directory, dtype="float32", attention="sdpa")


def add_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_it_is_that_of_the_loaded_model(backbone: Backbone, tmp_path: Path) -> None:
    directory = saved(backbone, tmp_path)
    assert load_embedder(directory).model == known(directory)
    assert known(directory)["id"] == "qwen2_5_vl from scratch"


def limit(directory: Path) -> None:
    path = directory / "vlm2rec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_text_tokens": 7}))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda directory: add_weight(directory / "model.safetensors"), ["weights"]),
        (lambda directory: (directory / "config.json").write_text('{"model_type": "qwen2_5_vl"}'), ["weights"]),
        (lambda directory: (directory / "tokenizer.json").write_text("{}"), ["preprocessing"]),
        (lambda directory: (directory / "preprocessor_config.json").write_text("{}"), ["preprocessing"]),
        (limit, ["preprocessing"]),
        (lambda directory: (directory / "README.md").write_text("words"), []),
    ],
)
def test_every_file_that_matters_counts(
    backbone: Backbone, tmp_path: Path, change: Callable[[Path], object], part: list[str]
) -> None:
    before = known(saved(backbone, tmp_path))
    change(tmp_path)
    assert differences(before, known(tmp_path)) == part
    assert other_space(before, known(tmp_path)) == part


def test_of_adapters_a_local_backbone_counts_too(backbone: Backbone, tmp_path: Path) -> None:
    base = saved(backbone, tmp_path / "base")
    directory = saved(backbone, tmp_path / "adapted", base)
    before = known(directory)
    assert before["id"] == str(base)
    add_weight(base / "model.safetensors")
    assert differences(before, known(directory)) == ["weights"]
    before = known(directory)
    add_weight(directory / "adapter" / "adapter_model.safetensors")
    assert differences(before, known(directory)) == ["weights"]


def test_dtype_and_attention_round_but_stay_in_the_space(backbone: Backbone, tmp_path: Path) -> None:
    before = known(saved(backbone, tmp_path)) | {"inputs": "of other items"}
    after = provenance(tmp_path, dtype="bfloat16", attention="eager")
    assert differences(before, after) == ["attention", "dtype"]
    assert other_space(before, after) == []


def test_a_snapshot_of_the_hub_is_known_by_its_commit(backbone: Backbone, tmp_path: Path) -> None:
    backbone.model.config._commit_hash = "0123abcd"  # what from_pretrained leaves there
    assert ModelDescription.read(saved(backbone, tmp_path)).revision == "0123abcd"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "JSON object"),
        ('{"format": 9}', "format 9"),
        (None, "vlm2rec train"),
    ],
)
def test_a_description_that_cannot_be_used(backbone: Backbone, tmp_path: Path, written: str | None, says: str) -> None:
    path = saved(backbone, tmp_path) / "vlm2rec.json"
    path.unlink() if written is None else path.write_text(written)
    with pytest.raises(BackboneError, match=says):
        known(tmp_path)


def test_a_description_without_its_limits(backbone: Backbone, tmp_path: Path) -> None:
    path = saved(backbone, tmp_path) / "vlm2rec.json"
    described = json.loads(path.read_text())
    del described["max_history"]
    path.write_text(json.dumps(described))
    with pytest.raises(BackboneError, match="max_history"):
        known(tmp_path)
