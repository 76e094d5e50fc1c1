"""SigLIP, SigLIP 2 and CLIP against transformers' own towers, one item at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from tests.support.backbones.item_models import TEXTS, check_vectors, pictures, unit
from training.backbones.items.dual_encoder import DualEncoder
from training.errors import BackboneError

DualDirectory = Callable[[str], Path]
NAMES = ("siglip", "siglip2", "clip")


def load(directory: Path, max_text_tokens: int = 64) -> DualEncoder:
    return DualEncoder.load(
        directory, revision=None, dtype="float32", attention="sdpa", max_text_tokens=max_text_tokens
    )


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_siglip_reads_lower_case_padded_to_the_full_length_without_a_mask(
    name: str, dual_directory: DualDirectory
) -> None:
    directory = dual_directory(name)
    encoder = load(directory)
    inputs = encoder.prepare_texts(TEXTS)
    assert list(inputs) == ["input_ids"]
    assert inputs["input_ids"].shape == (3, 8)
    assert inputs["input_ids"][:, -1].tolist() == [0, 0, 0]
    assert torch.equal(encoder.prepare_texts(["red SHOE"])["input_ids"], inputs["input_ids"][:1])
    if name == "siglip":  # [CLS] red shoe [SEP] and [PAD]: "Red" is a word of the vocabulary, too
        assert inputs["input_ids"][0].tolist() == [2, 4, 7, 3, 0, 0, 0, 0]
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = torch.cat([model.text_model(input_ids=row[None]).pooler_output for row in inputs["input_ids"]])
        check_vectors(encoder.encode("text", inputs), unit(expected))


def test_a_shorter_limit_keeps_the_padding_of_the_training(dual_directory: DualDirectory) -> None:
    inputs = load(dual_directory("siglip"), max_text_tokens=4).prepare_texts([TEXTS[1]])
    assert inputs["input_ids"].tolist() == [[2, 10, 8, 3, 0, 0, 0, 0]]


def test_clip_reads_the_case_and_does_not_read_padding(dual_directory: DualDirectory) -> None:
    directory = dual_directory("clip")
    encoder = load(directory)
    inputs = encoder.prepare_texts(TEXTS)
    assert inputs["input_ids"][0, :4].tolist() == [2, 9, 7, 3]
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = []
        for text in TEXTS:
            ids = encoder.prepare_texts([text])["input_ids"]
            alone.append(model.text_projection(model.text_model(input_ids=ids).pooler_output))
        check_vectors(encoder.encode("text", inputs), unit(torch.cat(alone)))


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_pictures_are_encoded_as_by_the_vision_tower(name: str, dual_directory: DualDirectory) -> None:
    directory = dual_directory(name)
    encoder = load(directory)
    inputs = encoder.prepare_pictures(pictures())
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
        expected = model.visual_projection(expected) if name == "clip" else expected
        check_vectors(encoder.encode("image", inputs), unit(expected))


def test_siglip_squashes_a_picture_and_normalises_by_its_processor(dual_directory: DualDirectory) -> None:
    picture = pictures()[0]
    found = load(dual_directory("siglip")).prepare_pictures([picture])["pixel_values"][0]
    squashed = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), squashed / 127.5 - 1, atol=1e-5)


def test_siglip2_of_variable_resolution_does_not_read_missing_patches(dual_directory: DualDirectory) -> None:
    encoder = load(dual_directory("siglip2"))
    together = encoder.prepare_pictures(pictures())
    assert set(together) == {"pixel_values", "pixel_attention_mask", "spatial_shapes"}
    with torch.inference_mode():
        alone = [encoder.encode("image", encoder.prepare_pictures([picture])) for picture in pictures()]
        check_vectors(encoder.encode("image", together), torch.cat(alone))


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_known_before_anything_is_encoded(name: str, dual_directory: DualDirectory) -> None:
    encoder = load(dual_directory(name))
    with torch.inference_mode():
        assert encoder.dims == {
            "text": encoder.encode("text", encoder.prepare_texts(TEXTS)).shape[1],
            "image": encoder.encode("image", encoder.prepare_pictures(pictures())).shape[1],
        }
    assert encoder.picture_pixels == 32 * 32


def test_another_model_is_refused(text_directory: Path) -> None:
    with pytest.raises(BackboneError, match="one of siglip, siglip2, clip, got 'bert'"):
        load(text_directory)
