"""A text encoder beside an image model, against transformers' own outputs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.support.backbones.item_models import TEXTS, check_vectors, pictures, unit
from training.backbones.efficientnet_lite import EfficientNetLite0, EfficientNetLiteTower
from training.backbones.items.pooling import TextPooling
from training.backbones.items.towers import TextTower, Towers, TowerSource, load_image_tower, load_text_tower
from training.errors import BackboneError


def text_tower(directory: Path, pooling: TextPooling = "mean", tokens: int = 64) -> TextTower:
    source = TowerSource(str(directory), None)
    return load_text_tower(source, dtype="float32", attention="sdpa", pooling=pooling, max_text_tokens=tokens)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_texts_are_pooled_as_if_each_were_encoded_alone(pooling: TextPooling, text_directory: Path) -> None:
    tower = text_tower(text_directory, pooling)
    model = AutoModel.from_pretrained(text_directory, attn_implementation="eager").eval()
    choose = {"mean": lambda h: h.mean(dim=1), "cls": lambda h: h[:, 0], "last": lambda h: h[:, -1]}[pooling]
    with torch.inference_mode():
        alone = [choose(model(input_ids=tower.prepare([text])["input_ids"]).last_hidden_state) for text in TEXTS]
        torch.testing.assert_close(tower.encode(tower.prepare(TEXTS)), torch.cat(alone), atol=1e-5, rtol=0)


def test_a_text_is_cut_before_its_last_token(text_directory: Path) -> None:
    assert text_tower(text_directory, tokens=4).prepare([TEXTS[1]])["input_ids"].tolist() == [[2, 10, 8, 3]]


@pytest.mark.parametrize(("name", "pooler"), [("vit", True), ("vit", False), ("resnet", True)])
def test_a_picture_model_is_read_by_its_pooler_or_first_token(
    name: str, pooler: bool, image_directory: Callable[..., Path]
) -> None:
    directory = image_directory(name, pooler=pooler)
    tower = load_image_tower(TowerSource(str(directory), None), dtype="float32")
    inputs = tower.prepare(pictures())
    model = AutoModel.from_pretrained(directory, attn_implementation="eager" if name == "vit" else None).eval()
    with torch.inference_mode():
        output = model(**inputs)
        expected = output.pooler_output.flatten(1) if pooler else output.last_hidden_state[:, 0]
        torch.testing.assert_close(tower.encode(inputs), expected, atol=1e-5, rtol=0)
    assert tower.dim == expected.shape[1]


def test_both_towers_give_unit_vectors_of_their_own_length(
    text_directory: Path, image_directory: Callable[..., Path]
) -> None:
    source = TowerSource(str(image_directory("resnet")), None)
    encoder = Towers(text_tower(text_directory), load_image_tower(source, dtype="float32"))
    assert encoder.dims == {"text": 16, "image": 12}
    with torch.inference_mode():
        for modality, inputs in (
            ("text", encoder.prepare_texts(TEXTS)),
            ("image", encoder.prepare_pictures(pictures())),
        ):
            made = encoder.encode(modality, inputs)
            check_vectors(made, unit(made))
            assert made.shape == (3, encoder.dims[modality])


def test_missing_weights_other_than_a_pooler_are_refused(text_directory: Path) -> None:
    path = text_directory / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "layer.1.output.dense.weight" not in name}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(BackboneError, match="1 of the model's weights are in none of its files"):
        text_tower(text_directory)


def test_an_image_model_is_no_text_encoder(image_directory: Callable[..., Path]) -> None:
    with pytest.raises(BackboneError, match="cannot be loaded"):
        text_tower(image_directory("resnet"))


# --- EfficientNet-Lite0


def lite_directory(directory: Path) -> tuple[Path, EfficientNetLite0]:
    torch.manual_seed(6)
    model = EfficientNetLite0().eval()
    directory.mkdir()
    classifier = {"_fc.weight": torch.zeros(2, 1_280), "_fc.bias": torch.zeros(2)}
    save_file({**model.state_dict(), **classifier}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "efficientnet-lite0"}))
    return directory, model


def test_efficientnet_lite_is_read_without_its_classifier(tmp_path: Path) -> None:
    directory, model = lite_directory(tmp_path / "lite")
    tower = load_image_tower(TowerSource(str(directory), None), dtype="float32")
    inputs = tower.prepare(pictures())
    with torch.inference_mode():
        assert torch.equal(tower.encode(inputs), model(inputs["pixel_values"]))
    assert tower.dim == 1_280


def test_pictures_are_squashed_whole_and_scaled() -> None:
    picture = Image.fromarray(np.dstack([np.full((448, 100), level, np.uint8) for level in (255, 127, 0)]))
    found = EfficientNetLiteTower(EfficientNetLite0()).prepare([picture])["pixel_values"]
    assert found.shape == (1, 3, 224, 224)
    assert found[0].amin(dim=(1, 2)).tolist() == found[0].amax(dim=(1, 2)).tolist() == [1.0, 0.0, -127 / 128]


@pytest.mark.parametrize("side", [224, 225, 96])
def test_strides_pad_as_tensorflow_does(side: int) -> None:
    """Side ⌈n/2⌉ after each of five strides; the odd pixel of padding is at the end."""
    model = EfficientNetLite0().eval()
    pixels = torch.zeros(1, 3, side, side)
    pixels[0, :, 0, 0] = 1
    with torch.inference_mode():
        stem = model._conv_stem(pixels)
        weights = model._conv_stem.weight.sum(dim=1)
    assert stem.shape[-1] == -(-side // 2)
    # An even side needs one pixel of padding, which is at the end, so the kernel starts at pixel 0.
    first = weights[:, 0, 0] if side % 2 == 0 else weights[:, 1, 1]
    torch.testing.assert_close(stem[0, :, 0, 0], first)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    directory, _ = lite_directory(tmp_path / "lite")
    save_file({"_conv_stem.weight": torch.zeros(1)}, directory / "model.safetensors")
    with pytest.raises(BackboneError, match="EfficientNet-Lite0 cannot be read"):
        load_image_tower(TowerSource(str(directory), None), dtype="float32")
