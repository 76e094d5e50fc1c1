"""EmbeddingGemma 2: its prompt, and vectors against transformers' own forward pass, one item at a time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tests.support.backbones.item_models import BEGIN, END, SHOWN, TEXTS, check_vectors, pictures, unit
from training.backbones.items.gemma_embedding import GemmaEmbedding
from training.errors import BackboneError


def encoder(directory: Path, *, length: int | None = None, dtype: str = "float32") -> GemmaEmbedding:
    return GemmaEmbedding.load(
        directory, revision=None, dtype=dtype, attention="sdpa", max_text_tokens=64, length=length
    )


def test_texts_are_documents_and_averaged_over_their_tokens(gemma_directory: Path) -> None:
    made = encoder(gemma_directory)
    inputs = made.prepare_texts(TEXTS)
    # [CLS] title: none | text: Red shoe [SEP]; the words of the prompt are unknown to this vocabulary
    assert inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist() == [2, 1, 1, 1, 1, 9, 7, 3]
    model = AutoModel.from_pretrained(gemma_directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = [model(**made.prepare_texts([text])).last_hidden_state.mean(dim=1) for text in TEXTS]
        check_vectors(made.encode("text", inputs), unit(torch.cat(alone)))


def test_pictures_are_encoded_as_if_each_were_alone(gemma_directory: Path) -> None:
    made = encoder(gemma_directory)
    inputs = made.prepare_pictures(pictures())
    model = AutoModel.from_pretrained(gemma_directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = [model(**made.prepare_pictures([picture])).last_hidden_state.mean(dim=1) for picture in pictures()]
        check_vectors(made.encode("image", inputs), unit(torch.cat(alone)))
    one = made.prepare_pictures(pictures()[:1])["input_ids"][0].tolist()
    assert one == [2, BEGIN, *[SHOWN] * one.count(SHOWN), END, 3]  # between [CLS] and [SEP]
    assert SHOWN in one


def test_a_vector_is_cut_before_it_is_normalised_and_float16_is_refused(gemma_directory: Path) -> None:
    whole, cut = encoder(gemma_directory), encoder(gemma_directory, length=8)
    with torch.inference_mode():
        inputs = whole.prepare_texts(TEXTS)
        check_vectors(cut.encode("text", inputs), unit(whole.encode("text", inputs)[:, :8]))
    with pytest.raises(BackboneError, match="overflows in float16"):
        encoder(gemma_directory, dtype="float16")
    with pytest.raises(BackboneError, match="at most 12 for this model, got 13"):
        encoder(gemma_directory, length=13)


def test_another_model_is_refused(text_directory: Path) -> None:
    with pytest.raises(BackboneError, match=r"must be embedding_gemma2 .*got 'bert'"):
        encoder(text_directory)
