"""Towers exported to ONNX: run as somebody without vlm2rec would, they give the vectors that `embed` stores."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from transformers import AutoImageProcessor, AutoTokenizer
from typer.testing import CliRunner

from cli.app import app
from cli.main import main
from index.errors import EncoderError
from index.search.encoder import OnnxModel
from tests.support.backbones.item_models import write_dual, write_gemma, write_image_model, write_text_encoder
from training.backbones.efficientnet_lite import EfficientNetLite0
from training.backbones.export import job, onnx_program, parity
from training.backbones.export.job import MANIFEST_FILE, export_towers
from training.backbones.export.parity import check_tower
from training.backbones.items.trained_heads import load_heads
from training.backbones.trained_model import TrainedModel
from training.config.run_config import CONFIG_FILE, load_config, to_toml
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut
from training.embedding.item_rows import ItemRowEncoder
from training.errors import ExportError
from training.finetune.trainer import train_vlm

Train = Callable[..., Path]
WITH_TEXT, WITH_PICTURE = [0, 1, 2, 4, 5, 7], [0, 1, 2, 3, 7, 8]


@pytest.fixture
def train(shop: Dataset, shop_parts: LeaveOneOut, smallest: dict[str, Any], tmp_path: Path) -> Train:
    """A run of a few steps on a model."""
    return lambda **changes: trained(tmp_path, shop, shop_parts, smallest, **changes)


@pytest.fixture
def towers(train: Train, tmp_path: Path) -> Train:
    """A run on a tiny BERT beside an image model."""
    return lambda **changes: train(**tower_files(tmp_path) | changes)


@pytest.fixture(scope="module")
def exported(
    shop: Dataset, shop_parts: LeaveOneOut, smallest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """A run on towers, the directory of its export, and what the command printed."""
    directory = tmp_path_factory.mktemp("exported")
    run, out = trained(directory, shop, shop_parts, smallest, **tower_files(directory)), directory / "out"
    (directory / ".out.part").mkdir()  # of a killed export
    result = CliRunner().invoke(app, words(run, out), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return run, out, result.output


def trained(directory: Path, shop: Dataset, parts: LeaveOneOut, smallest: dict[str, Any], **changes: Any) -> Path:
    run = directory / "run"
    own = {key.replace("__", "."): value for key, value in changes.items()}
    given = {"vlm.heads.length": 8, "vlm.max_text_tokens": 12, "train.steps": 3}
    config = load_config(overrides=smallest | given | own)
    run.mkdir()
    (run / CONFIG_FILE).write_text(to_toml(config))
    train_vlm(shop, parts.train, run / "train", config)
    return run


def tower_files(directory: Path) -> dict[str, str]:
    return {
        "vlm__family": "towers",
        "vlm__towers__text_model": str(write_text_encoder(directory / "bert")),
        "vlm__towers__image_model": str(write_image_model(directory / "resnet")),
    }


def words(run: Path, out: Path) -> list[str]:
    return ["export-towers", "--run", str(run), "--out", str(out), "--threads", "1"]


def stored(run: Path, shop: Dataset, rows: list[int]) -> dict[str, NDArray[np.float32]]:
    """What `embed` stores."""
    encoder = ItemRowEncoder(load_heads(run / "train" / "model", run / "none"), shop)
    return encoder.items(np.array(rows))


def session(out: Path, manifest: dict[str, Any], modality: str, inputs: dict[str, Any]) -> NDArray[np.float32]:
    described = manifest["modalities"][modality]
    assert set(inputs) == set(described["inputs"])
    loaded = ort.InferenceSession(out / described["file"], providers=["CPUExecutionProvider"])
    (vectors,) = loaded.run([described["output"]["name"]], inputs)
    return vectors


def by_text_file(out: Path, manifest: dict[str, Any], texts: list[str]) -> NDArray[np.float32]:
    """The vectors of texts by the steps of the manifest, with transformers and scikit-learn alone."""
    steps = manifest["modalities"]["text"]["preparation"]
    tokenizer = AutoTokenizer.from_pretrained(out / steps["tokenizer"])
    tokenizer.padding_side = steps["padding_side"]
    read = texts
    for old, new in steps["replace"].items():
        read = [text.replace(old, new) for text in read]
    read = [text.lower() for text in read] if steps["lower_case"] else read
    ids = tokenizer(read, truncation=True, max_length=steps["max_tokens"])
    whole = {} if steps["pad_to"] == "longest" else {"padding": "max_length", "max_length": steps["pad_to"]}
    made = tokenizer.pad({"input_ids": ids["input_ids"]}, return_tensors="np", **whole)
    wanted = manifest["modalities"]["text"]["inputs"]
    inputs = {name: made[name].astype(np.int64) for name in wanted if name in made}
    if "terms" in steps:
        inputs["terms"] = terms(out / steps["terms"]["file"], texts)
    return session(out, manifest, "text", inputs)


def terms(path: Path, texts: list[str]) -> NDArray[np.float32]:
    """As docs/training.md describes it."""
    blocks = load_file(path)
    counts = HashingVectorizer(
        n_features=2**17, ngram_range=(1, 2), token_pattern=r"(?u)\w+", alternate_sign=False, norm=None
    ).transform(texts)[:, blocks["buckets"]]
    counts.data = (1 + np.log(counts.data)) * blocks["weights"][counts.indices]
    return normalize(normalize(counts) @ blocks["directions"].astype(np.float32)).astype(np.float32)


def by_image_file(out: Path, manifest: dict[str, Any], pictures: list[Image.Image]) -> NDArray[np.float32]:
    steps = manifest["modalities"]["image"]["preparation"]
    if "image_processor" in steps:
        made = AutoImageProcessor.from_pretrained(out / steps["image_processor"], use_fast=False)
        pixels = made(images=pictures, return_tensors="np")["pixel_values"]
    else:
        size = (steps["resize"]["width"], steps["resize"]["height"])
        squashed = [np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures]
        pixels = (np.stack(squashed).transpose(0, 3, 1, 2).astype(np.float32) - steps["subtract"]) / steps["divide"]
    return session(out, manifest, "image", {"pixel_values": pixels.astype(np.float32)})


def check(run: Path, out: Path, shop: Dataset) -> dict[str, Any]:
    """Export, and compare what the files give with what `embed` stores."""
    exported = export_towers(TrainedModel.of(run), out)
    manifest: dict[str, Any] = json.loads((out / MANIFEST_FILE).read_text())
    texts = [str(shop.texts()[row]) for row in WITH_TEXT]
    found = by_text_file(out, manifest, texts)
    np.testing.assert_allclose(found, stored(run, shop, WITH_TEXT)["text"], atol=3e-4)
    np.testing.assert_allclose(by_text_file(out, manifest, texts[:1]), found[:1], atol=3e-4)
    check_pictures(run, out, manifest, shop)
    for tower in exported.values():
        assert tower.parity.cases >= 7
        assert tower.parity.difference <= 2e-4
        assert tower.parity.cosine > 0.9999
    return manifest


def check_pictures(run: Path, out: Path, manifest: dict[str, Any], shop: Dataset) -> None:
    pictures = [Image.open(str(shop.image_path(row))).convert("RGB") for row in WITH_PICTURE]
    found = by_image_file(out, manifest, pictures)
    np.testing.assert_allclose(found, stored(run, shop, WITH_PICTURE)["image"], atol=3e-4)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_a_dual_encoder(name: str, train: Train, shop: Dataset, tmp_path: Path) -> None:
    run = train(vlm__family="dual-encoder", vlm__model=str(write_dual(tmp_path / name, name)))
    out = tmp_path / "out"
    manifest = check(run, out, shop)
    shapes = {key: value["shape"] for key, value in manifest["modalities"]["text"]["inputs"].items()}
    padded = {"input_ids": ["batch", 8]}
    assert shapes == (
        padded if name == "siglip" else {key: ["batch", "tokens"] for key in ("attention_mask", "input_ids")}
    )
    assert manifest["modalities"]["image"]["inputs"]["pixel_values"]["shape"] == ["batch", 3, 32, 32]
    weights = {modality: onnx.load(out / f"{modality}.onnx").graph.initializer for modality in ("text", "image")}
    assert not [value.name for value in weights["text"] if "vision_model" in value.name]
    assert not [value.name for value in weights["image"] if "text_model" in value.name]


def test_towers_with_names_and_a_trained_layer(towers: Train, shop: Dataset, tmp_path: Path) -> None:
    run = towers(vlm__towers__trained_text_layers=1, vlm__heads__text_terms=6, train__text_layers_rate=1.0)
    manifest = check(run, tmp_path / "out", shop)
    assert manifest["modalities"]["text"]["inputs"]["terms"]["shape"] == ["batch", 6]
    assert manifest["modalities"]["text"]["output"]["shape"] == ["batch", 8]
    assert manifest["modalities"]["text"]["preparation"]["lower_case"] is False


def test_a_vision_transformer_and_the_first_token(towers: Train, shop: Dataset, tmp_path: Path) -> None:
    vit = write_image_model(tmp_path / "vit", "vit", pooler=False)
    run = towers(vlm__towers__image_model=str(vit), vlm__towers__text_pooling="cls")
    check(run, tmp_path / "out", shop)


def test_the_last_token_of_a_model_in_bfloat16(
    towers: Train, shop: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MODALITIES", ("text",))
    run = towers(vlm__towers__text_pooling="last", vlm__dtype="bfloat16")
    export_towers(TrainedModel.of(run), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert manifest["model"]["dtype"] == "bfloat16"
    assert list(manifest["modalities"]) == ["text"]
    texts = [str(shop.texts()[row]) for row in WITH_TEXT]
    found = by_text_file(tmp_path / "out", manifest, texts)
    encoder = load_heads(run / "train" / "model", run / "none")
    encoder.encoder.model.float()
    expected = ItemRowEncoder(encoder, shop).items(np.array(WITH_TEXT))["text"]
    np.testing.assert_allclose(found, expected, atol=3e-4)


def test_efficientnet(towers: Train, shop: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    directory = tmp_path / "efficientnet"
    directory.mkdir()
    save_file(EfficientNetLite0().state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text('{"model_type": "efficientnet-lite0"}')
    run = towers(vlm__towers__image_model=str(directory))
    monkeypatch.setattr(job, "MODALITIES", ("image",))
    export_towers(TrainedModel.of(run), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    resize = {"height": 224, "width": 224, "resampling": "bicubic"}
    assert manifest["modalities"]["image"]["preparation"]["resize"] == resize
    check_pictures(run, tmp_path / "out", manifest, shop)


def test_the_command_says_what_it_did(exported: tuple[Path, Path, str]) -> None:
    _, out, said = exported
    assert "licence of the pretrained model: not stated" in said
    assert "text: text.onnx, " in said
    assert "largest difference" in said
    assert f"exported: {out}" in said
    assert not (out.parent / ".out.part").exists()


def test_an_export_is_never_overwritten(
    exported: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, _ = exported
    before = (out / MANIFEST_FILE).read_bytes()
    monkeypatch.setattr("sys.argv", ["vlm2rec", *words(run, out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "exists already; choose another --out" in capsys.readouterr().err
    assert (out / MANIFEST_FILE).read_bytes() == before


def test_an_empty_directory_exists_already_too(
    exported: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path):
        with pytest.raises(ExportError, match="exists already; choose another --out"):
            export_towers(TrainedModel.of(exported[0]), out)


def test_the_manifest_names_every_file_the_licences_and_no_path(exported: tuple[Path, Path, str]) -> None:
    run, out, _ = exported
    manifest = json.loads((out / MANIFEST_FILE).read_text())
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    del files[MANIFEST_FILE]
    expected = {"text.onnx", "image.onnx", "tokenizer/tokenizer.json", "image_processor/preprocessor_config.json"}
    assert expected <= set(files)
    assert manifest["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert manifest["licences"] == ["not stated"]
    assert manifest["model"]["weights"] == TrainedModel.of(run).provenance["weights"]
    for path in (out / MANIFEST_FILE, *files.values()):
        content = path.read_bytes()
        assert str(out.parent).encode() not in content, path
        assert b"training/backbones" not in content, path


def test_what_is_not_finite_or_cannot_be_run_is_refused(
    exported: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out, _ = exported
    embedding = load_heads(run / "train" / "model", run / "none")
    (tmp_path / "text.onnx").write_bytes(b"garbage")
    with pytest.raises(ExportError, match="ONNX Runtime does not run the exported model"):
        check_tower(tmp_path / "text.onnx", embedding, "text")
    assert embedding.heads is not None
    with torch.no_grad():
        embedding.heads.heads["text"].projection.weight[0, 0] += 0.3
    with pytest.raises(ExportError, match=r"ONNX Runtime and PyTorch differ by .* at most 0\.001 is allowed"):
        check_tower(out / "text.onnx", embedding, "text")
    monkeypatch.setattr(parity, "by_torch", lambda *_: np.full((1, 8), np.nan, dtype=np.float32))
    with pytest.raises(ExportError, match=r"must be \(1, 8\)|differ by nan|must be"):
        check_tower(out / "text.onnx", embedding, "text")


def test_a_refused_export_leaves_nothing(
    exported: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "trace", lambda *_args, **_options: "program")
    monkeypatch.setattr(job, "write", lambda _program, path, _metadata: path.write_bytes(b"garbage"))
    with pytest.raises(ExportError, match="ONNX Runtime does not run the exported model"):
        export_towers(TrainedModel.of(exported[0]), tmp_path / "out")
    monkeypatch.setattr(job, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("no such operator\nmore")))
    with pytest.raises(ExportError, match=r"the text tower cannot be exported \(no such operator\)"):
        export_towers(TrainedModel.of(exported[0]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_many_weights_lie_beside_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_program, "_MOST_BYTES", 0)
    module, rows = torch.nn.Linear(40, 50), torch.randn(2, 40)
    shapes = {"input": {0: torch.export.Dim("batch")}}
    program = onnx_program.trace(module, (rows,), inputs=["rows"], output="vectors", dynamic_shapes=shapes)
    onnx_program.write(program, tmp_path / "text.onnx", {"format": "1"})
    assert (tmp_path / "text.onnx.data").stat().st_size >= 40 * 50 * 4
    (found,) = OnnxModel(tmp_path / "text.onnx").run({"rows": rows[:1].numpy()})
    np.testing.assert_allclose(found, module(rows[:1]).detach().numpy(), atol=1e-6)
    with pytest.raises(EncoderError, match=r"the model failed on rows \(1, 3\)"):
        OnnxModel(tmp_path / "text.onnx").run({"rows": np.zeros((1, 3), dtype=np.float32)})


def test_models_without_towers_are_refused(train: Train, tmp_path: Path) -> None:
    run = train(vlm__family="embeddinggemma-2", vlm__model=str(write_gemma(tmp_path / "gemma")))
    with pytest.raises(ExportError, match=r'vlm\.family = "embeddinggemma-2" reads texts and pictures with one model'):
        export_towers(TrainedModel.of(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vision_language_model_from_scratch_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r'vlm\.family = "qwen-vl" .* it is for dual-encoder and towers'):
        export_towers(TrainedModel.of(train()), tmp_path / "out")


def test_pictures_of_several_resolutions_are_refused(train: Train, tmp_path: Path) -> None:
    run = train(vlm__family="dual-encoder", vlm__model=str(write_dual(tmp_path / "siglip2", "siglip2")))
    with pytest.raises(ExportError, match=r"several resolutions \(siglip2\)"):
        export_towers(TrainedModel.of(run), tmp_path / "out")
