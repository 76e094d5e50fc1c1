"""Last layers of a text encoder: as the whole encoder before training, and the only ones that learn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, RobertaConfig, RobertaModel

from tests.support.backbones.item_models import TEXTS, WORDS, check_vectors, word_tokenizer, write_image_model
from training.backbones.items.dual_encoder import DualEncoder
from training.backbones.items.last_layers import LAYERS_FILE, last_text_layers, restore_text_layers
from training.backbones.items.pooling import TextPooling
from training.backbones.items.text_blocks import TextBlocks
from training.backbones.items.towers import Towers, TowerSource, load_image_tower, load_text_tower
from training.errors import BackboneError

CATALOGUE = [TEXTS[0], None, TEXTS[1], TEXTS[2]]
ROWS = [0, 2, 3]


def towers(directory: Path, images: Path, pooling: TextPooling = "mean") -> Towers:
    source = TowerSource(str(directory), None)
    text = load_text_tower(source, dtype="float32", attention="sdpa", pooling=pooling, max_text_tokens=12)
    return Towers(text, load_image_tower(TowerSource(str(images), None), dtype="float32"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_image_model(tmp_path / "resnet")


def frozen(encoder: Towers) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.encode("text", encoder.prepare_texts(TEXTS))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_before_training_they_give_the_vectors_of_the_whole_encoder(
    count: int, pooling: TextPooling, text_directory: Path, images: Path
) -> None:
    encoder = towers(text_directory, images, pooling)
    expected = frozen(encoder)
    made = last_text_layers(encoder, count, CATALOGUE, ROWS, None).eval()
    order = [2, 0, 1]
    with torch.inference_mode():
        found = made(torch.tensor([ROWS[place] for place in order]), torch.zeros(3, 16))
    torch.testing.assert_close(found, expected[order], atol=2e-3, rtol=0)
    assert torch.equal(frozen(encoder), expected)


def test_a_roberta_has_such_layers_too(tmp_path: Path, images: Path) -> None:
    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = RobertaConfig(**size, vocab_size=len(WORDS), max_position_embeddings=16, pad_token_id=0)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "roberta")
    word_tokenizer(model_max_length=12).save_pretrained(tmp_path / "roberta")
    encoder = towers(tmp_path / "roberta", images)
    with torch.inference_mode():
        found = last_text_layers(encoder, 2, CATALOGUE, ROWS, None).eval()(torch.tensor(ROWS), torch.zeros(3, 16))
    torch.testing.assert_close(found, frozen(encoder), atol=2e-3, rtol=0)


def test_beside_tf_idf_only_the_encoders_block_is_replaced(text_directory: Path, images: Path) -> None:
    encoder = towers(text_directory, images)
    vectors = np.zeros((4, 16), dtype=np.float32)
    vectors[ROWS] = frozen(encoder).numpy()
    blocks = TextBlocks.fit(CATALOGUE, vectors, 3, share=0.5)
    assert blocks is not None
    joined = torch.from_numpy(blocks.join(vectors, CATALOGUE)[ROWS])
    made = last_text_layers(encoder, 1, CATALOGUE, ROWS, blocks).eval()
    with torch.inference_mode():
        found = made(torch.tensor(ROWS), torch.cat([torch.full((3, 16), 9.0), joined[:, 16:]], dim=1))
    scale = float(blocks.scales[0])
    torch.testing.assert_close(found, joined, atol=2e-3 * scale, rtol=0)
    assert torch.equal(found[:, 16:], joined[:, 16:])


def test_trained_layers_replace_those_of_the_encoder_and_no_others(
    text_directory: Path, images: Path, tmp_path: Path
) -> None:
    encoder = towers(text_directory, images)
    made = last_text_layers(encoder, 1, CATALOGUE, ROWS, None).eval()
    before = frozen(encoder)
    made(torch.tensor(ROWS), torch.zeros(3, 16))[:, 0].sum().backward()
    assert all(weight.grad is not None for weight in made.parameters())
    with torch.no_grad():
        for weight in made.parameters():
            weight.sub_(0.5 * torch.as_tensor(weight.grad))
        trained = made(torch.tensor(ROWS), torch.zeros(3, 16))
    assert (trained - before).abs().max() > 0.01
    assert torch.equal(frozen(encoder), before)
    made.save(tmp_path)
    restore_text_layers(encoder, 1, tmp_path)
    check_vectors(frozen(encoder), frozen(encoder))
    torch.testing.assert_close(frozen(encoder), trained, atol=2e-3, rtol=0)
    original = AutoModel.from_pretrained(text_directory, add_pooling_layer=False).state_dict()
    own = encoder.text.model.state_dict()
    changed = {name for name, value in original.items() if not torch.equal(value, own[name])}
    assert changed
    assert all(name.startswith("encoder.layer.1.") for name in changed)


def test_what_cannot_be_trained_is_refused(text_directory: Path, images: Path, tmp_path: Path) -> None:
    encoder = towers(text_directory, images)
    with pytest.raises(BackboneError, match=r"trained_text_layers must be at most 2 for this text encoder, got 3"):
        last_text_layers(encoder, 3, CATALOGUE, ROWS, None)
    with pytest.raises(BackboneError, match=r"text_layers\.safetensors: .*train the model again"):
        restore_text_layers(encoder, 1, tmp_path)
    (tmp_path / LAYERS_FILE).write_bytes(b"garbage")
    with pytest.raises(BackboneError, match=r"text_layers\.safetensors: .*train the model again"):
        restore_text_layers(encoder, 1, tmp_path)
    encoder.text.config.model_type = "mpnet"
    with pytest.raises(BackboneError, match=r"of the type bert, roberta, xlm-roberta, got 'mpnet'; set it to 0"):
        last_text_layers(encoder, 1, CATALOGUE, ROWS, None)


def test_another_family_is_refused(dual_directory: Callable[[str], Path]) -> None:
    directory = dual_directory("clip")
    encoder = DualEncoder.load(directory, revision=None, dtype="float32", attention="sdpa", max_text_tokens=8)
    with pytest.raises(BackboneError, match=r'is for vlm\.family = "towers"'):
        last_text_layers(encoder, 1, CATALOGUE, ROWS, None)
