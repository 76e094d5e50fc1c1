"""EmbeddingGemma 2: its prompt, and vectors against transformers' own forward pass, one item at a time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, EmbeddingGemma2Config, EmbeddingGemma2Model, Gemma4VisionConfig
from transformers.models.embedding_gemma2.configuration_embedding_gemma2 import EmbeddingGemma2TextConfig
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from tests.support.backbones.item_models import TEXTS, WORDS, check_vectors, pictures, unit, word_tokenizer
from training.backbones.items.gemma_embedding import GemmaEmbedding
from training.errors import BackboneError

BEGIN, END, SHOWN = (len(WORDS) + number for number in range(3))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny EmbeddingGemma 2 without an audio tower."""
    torch.manual_seed(7)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = EmbeddingGemma2TextConfig(
        **size, vocab_size=SHOWN + 3, num_key_value_heads=1, head_dim=8, global_head_dim=8, embedding_dim=12,
        hidden_size_per_layer_input=4, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    vision = Gemma4VisionConfig(
        **size, num_key_value_heads=2, head_dim=8, patch_size=4, pooling_kernel_size=3, position_embedding_size=64
    )
    config = EmbeddingGemma2Config(
        text_config=text, vision_config=vision, audio_config=None, boi_token_id=BEGIN, eoi_token_id=END,
        image_token_id=SHOWN, video_token_id=SHOWN + 1, audio_token_id=SHOWN + 2,
    )  # fmt: skip
    EmbeddingGemma2Model(config).save_pretrained(tmp_path / "gemma")
    word_tokenizer().save_pretrained(tmp_path / "gemma")
    Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3).save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def encoder(directory: Path, *, length: int | None = None, dtype: str = "float32") -> GemmaEmbedding:
    return GemmaEmbedding.load(
        directory, revision=None, dtype=dtype, attention="sdpa", max_text_tokens=64, length=length
    )


def test_texts_are_documents_and_averaged_over_their_tokens(directory: Path) -> None:
    made = encoder(directory)
    inputs = made.prepare_texts(TEXTS)
    # [CLS] title: none | text: Red shoe [SEP]; the words of the prompt are unknown to this vocabulary
    assert inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist() == [2, 1, 1, 1, 1, 9, 7, 3]
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = [model(**made.prepare_texts([text])).last_hidden_state.mean(dim=1) for text in TEXTS]
        check_vectors(made.encode("text", inputs), unit(torch.cat(alone)))


def test_pictures_are_encoded_as_if_each_were_alone(directory: Path) -> None:
    made = encoder(directory)
    inputs = made.prepare_pictures(pictures())
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = [model(**made.prepare_pictures([picture])).last_hidden_state.mean(dim=1) for picture in pictures()]
        check_vectors(made.encode("image", inputs), unit(torch.cat(alone)))
    one = made.prepare_pictures(pictures()[:1])["input_ids"][0].tolist()
    assert one == [2, BEGIN, *[SHOWN] * one.count(SHOWN), END, 3]  # between [CLS] and [SEP]
    assert SHOWN in one


def test_a_vector_is_cut_before_it_is_normalised_and_float16_is_refused(directory: Path) -> None:
    whole, cut = encoder(directory), encoder(directory, length=8)
    with torch.inference_mode():
        inputs = whole.prepare_texts(TEXTS)
        check_vectors(cut.encode("text", inputs), unit(whole.encode("text", inputs)[:, :8]))
    with pytest.raises(BackboneError, match="overflows in float16"):
        encoder(directory, dtype="float16")
    with pytest.raises(BackboneError, match="at most 12 for this model, got 13"):
        encoder(directory, length=13)


def test_another_model_is_refused(text_directory: Path) -> None:
    with pytest.raises(BackboneError, match=r"must be embedding_gemma2 .*got 'bert'"):
        encoder(text_directory)
