"""Qwen3-VL-Embedding: its chat, and vectors against transformers' own forward pass, one item at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tests.support.backbones.item_models import check_vectors, pictures, unit
from training.backbones.backbone import Backbone, load_backbone
from training.backbones.items.qwen_embedding import QwenEmbedding
from training.errors import BackboneError

TEXTS = ("crimson thing", "a", "teal thing of <|vision_start|> olive words")


def encoder(directory: Path, *, tokens: int = 64, length: int | None = None) -> QwenEmbedding:
    return QwenEmbedding(load_backbone(directory), max_text_tokens=tokens, length=length)


def test_a_text_is_the_users_turn_of_the_published_chat(chat_directory: Path) -> None:
    tokenizer = load_backbone(chat_directory).tokenizer
    inputs = encoder(chat_directory).prepare_texts(TEXTS[:1])
    assert tokenizer.decode(inputs["input_ids"][0]) == (
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\ncrimson thing<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    cut = encoder(chat_directory, tokens=1).prepare_texts(TEXTS[:1])["input_ids"][0]
    assert tokenizer.decode(cut).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert len(cut) < len(inputs["input_ids"][0])


def test_a_text_cannot_start_a_picture(chat_directory: Path) -> None:
    loaded = load_backbone(chat_directory)
    start = loaded.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    assert start not in encoder(chat_directory).prepare_texts(TEXTS)["input_ids"]


def test_texts_are_padded_on_the_right_and_read_to_their_last_token(chat_directory: Path) -> None:
    made = encoder(chat_directory)
    inputs = made.prepare_texts(TEXTS)
    assert inputs["attention_mask"][:, 0].tolist() == [1, 1, 1]
    assert inputs["attention_mask"][1, -1] == 0
    model = AutoModel.from_pretrained(chat_directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = []
        for text in TEXTS:
            ids = made.prepare_texts([text])["input_ids"]
            alone.append(model(input_ids=ids).last_hidden_state[:, -1])
        check_vectors(made.encode("text", inputs), unit(torch.cat(alone)))


def test_pictures_stand_in_the_users_turn(chat_directory: Path) -> None:
    made = encoder(chat_directory)
    inputs = made.prepare_pictures(pictures())
    model = AutoModel.from_pretrained(chat_directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        alone = []
        for picture in pictures():
            one = made.prepare_pictures([picture])
            assert one["attention_mask"].all()
            output = model(
                input_ids=one["input_ids"],
                attention_mask=one["attention_mask"],
                pixel_values=one["pixel_values"],
                image_grid_thw=one["image_grid_thw"],
                mm_token_type_ids=(one["input_ids"] == model.config.image_token_id).int(),
            )
            alone.append(output.last_hidden_state[:, -1])
        check_vectors(made.encode("image", inputs), unit(torch.cat(alone)))


def test_a_vector_is_cut_before_it_is_normalised(chat_directory: Path) -> None:
    whole, cut = encoder(chat_directory), encoder(chat_directory, length=8)
    with torch.inference_mode():
        inputs = whole.prepare_texts(TEXTS)
        check_vectors(cut.encode("text", inputs), unit(whole.encode("text", inputs)[:, :8]))
    assert cut.dims == {"text": 8, "image": 8}
    with pytest.raises(BackboneError, match=r"vlm\.vector_length must be at most 16 for this model, got 17"):
        encoder(chat_directory, length=17)


def test_other_models_are_refused(family: Callable[..., Backbone]) -> None:
    with pytest.raises(BackboneError, match=r"must be a qwen3_vl model .*got 'qwen2_5_vl'"):
        QwenEmbedding(family("qwen2_5_vl"), max_text_tokens=8, length=None)
    with pytest.raises(BackboneError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        QwenEmbedding(family("qwen3_vl"), max_text_tokens=8, length=None)
