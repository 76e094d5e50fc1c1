"""Adapters in both towers of a dual encoder: as the frozen encoder before training, and the only weights that learn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.backbones.item_models import TEXTS, pictures
from training.backbones.items.adapted_towers import AdaptedTowers, dual_encoder
from training.backbones.items.dual_encoder import DualEncoder
from training.backbones.items.text_blocks import TextBlocks
from training.config.vlm_config import LoraConfig
from training.errors import BackboneError

CATALOGUE = [TEXTS[0], None, TEXTS[1], TEXTS[2]]
WITH_TEXT, WITH_PICTURE = [0, 2, 3], [0, 1, 2]
Files = Callable[[int], Path | None]
DualDirectory = Callable[[str], Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Pictures of the first three items."""
    for row, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{row}.png")
    return lambda row: tmp_path / f"{row}.png" if row in WITH_PICTURE else None


def load(directory: Path) -> DualEncoder:
    return DualEncoder.load(directory, revision=None, dtype="float32", attention="sdpa", max_text_tokens=8)


def adapted(
    directory: Path,
    files: Files,
    *,
    blocks: TextBlocks | None = None,
    picture_bytes: int = 2**20,
    recompute: bool = False,
    dropout: float = 0.0,
) -> AdaptedTowers:
    torch.manual_seed(0)
    lora = LoraConfig(rank=2, alpha=4, dropout=dropout)
    return AdaptedTowers(
        load(directory), lora, texts=CATALOGUE, image_path=files, blocks=blocks, picture_bytes=picture_bytes,
        recompute=recompute,
    )  # fmt: skip


def frozen(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        text = encoder.encode("text", encoder.prepare_texts(TEXTS))
        return text, encoder.encode("image", encoder.prepare_pictures(pictures()))


@pytest.mark.parametrize("name", ["siglip", "siglip2", "clip"])
def test_before_training_they_give_the_vectors_of_the_frozen_encoder(
    name: str, dual_directory: DualDirectory, files: Files
) -> None:
    directory = dual_directory(name)
    text, image = frozen(load(directory))
    towers = adapted(directory, files, dropout=0.5).eval()
    order = [2, 0, 1]
    with torch.inference_mode():
        found = towers("text", torch.tensor(WITH_TEXT)[order], torch.zeros(3, text.shape[1]))
        torch.testing.assert_close(found, text[order], atol=1e-6, rtol=0)
        for _ in range(2):  # the second time the pictures are kept
            found = towers("image", torch.tensor(WITH_PICTURE)[order], torch.zeros(3, image.shape[1]))
            torch.testing.assert_close(found, image[order], atol=1e-6, rtol=0)
        assert towers("image", torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5)).shape == (0, 5)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_only_the_adapters_of_both_towers_learn(name: str, dual_directory: DualDirectory, files: Files) -> None:
    towers = adapted(dual_directory(name), files).train()
    trained = {key: value for key, value in towers.named_parameters() if value.requires_grad}
    assert all("lora_" in key for key in trained)
    for modality, rows, tower in (("text", WITH_TEXT, ".text_model."), ("image", WITH_PICTURE, ".vision_model.")):
        size = towers._encoder.dims[modality]
        towers.zero_grad()
        towers(modality, torch.tensor(rows), torch.zeros(3, size))[:, 0].sum().backward()
        reached = {key for key, value in trained.items() if value.grad is not None and value.grad.any()}
        assert reached
        assert all(tower in key for key in reached)


def test_recomputed_activations_give_the_same_gradient_also_with_dropout(
    dual_directory: DualDirectory, files: Files
) -> None:
    directory, gradients = dual_directory("clip"), []
    for recompute in (False, True):
        towers = adapted(directory, files, recompute=recompute, dropout=0.4).train()
        torch.manual_seed(7)
        towers("image", torch.tensor(WITH_PICTURE), torch.zeros(3, 10))[:, 0].sum().backward()
        gradients.append({key: value.grad for key, value in towers.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


def test_beside_tf_idf_only_the_encoders_part_is_replaced(dual_directory: DualDirectory, files: Files) -> None:
    directory = dual_directory("siglip")
    vectors = np.zeros((4, 16), dtype=np.float32)
    vectors[WITH_TEXT] = frozen(load(directory))[0].numpy()
    blocks = TextBlocks.fit(CATALOGUE, vectors, 3, share=0.5)
    assert blocks is not None
    joined = torch.from_numpy(blocks.join(vectors, CATALOGUE)[WITH_TEXT])
    towers = adapted(directory, files, blocks=blocks).eval()
    given = torch.cat([torch.full((3, 16), 9.0), joined[:, 16:]], dim=1)
    with torch.inference_mode():
        found = towers("text", torch.tensor(WITH_TEXT), given)
    torch.testing.assert_close(found, joined, atol=1e-5 * float(blocks.scales[0]), rtol=0)


def test_pictures_without_room_are_read_again(dual_directory: DualDirectory, files: Files, tmp_path: Path) -> None:
    directory = dual_directory("clip")
    kept, read = adapted(directory, files), adapted(directory, files, picture_bytes=0)
    rows = torch.tensor(WITH_PICTURE)
    for towers in (kept, read):
        towers("image", rows, torch.zeros(3, 10))
    (tmp_path / "1.png").write_bytes(b"damaged")
    kept("image", rows, torch.zeros(3, 10))
    with pytest.raises(BackboneError, match=r"the picture of item row 1 cannot be read any more .*--resume"):
        read("image", rows, torch.zeros(3, 10))
    with pytest.raises(BackboneError, match=r"the picture of item row 3 cannot be read any more"):
        read("image", torch.tensor([3]), torch.zeros(1, 10))


def test_another_family_and_other_layers_are_refused(dual_directory: DualDirectory, files: Files) -> None:
    with pytest.raises(BackboneError, match=r'is for vlm\.family = "dual-encoder"'):
        dual_encoder(object())
    lora = LoraConfig(rank=2, targets=("nowhere",))
    with pytest.raises(BackboneError, match=r"vlm\.lora\.targets \['nowhere'\] fit no layer"):
        AdaptedTowers(
            load(dual_directory("clip")), lora, texts=CATALOGUE, image_path=files, blocks=None, picture_bytes=0,
            recompute=False,
        )  # fmt: skip
