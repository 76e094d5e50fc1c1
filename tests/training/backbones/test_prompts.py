"""Prompts token by token."""

from pathlib import Path

import numpy as np
import pytest

from training.backbones import prompts
from training.backbones.backbone import load_backbone, train_tokenizer
from training.backbones.prompts import IMAGE_PAD, PromptWriter, prompt_hash
from training.errors import BackboneError


@pytest.fixture(scope="module")
def writer(backbone_directory: Path) -> PromptWriter:
    return PromptWriter(load_backbone(backbone_directory).tokenizer)


@pytest.fixture(scope="module")
def decode(backbone_directory: Path) -> object:
    tokenizer = load_backbone(backbone_directory).tokenizer
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_a_sequence_of_texts_reads_as_a_list(writer: PromptWriter, decode: object) -> None:
    tokens = writer.tokenise(["teal thing", "añ 茶"], limit=50)
    prompt = writer.texts("sequence_text", [t for t in tokens if t is not None])
    assert decode(prompt.ids) == "Items:\n- teal thing\n- añ 茶\n"
    assert [decode(prompt.ids[: mark + 1]) for mark in prompt.marks] == [
        "Items:\n- teal thing\n",
        "Items:\n- teal thing\n- añ 茶\n",
    ]


def test_a_sequence_of_pictures_has_a_place_for_every_visual_token(writer: PromptWriter, decode: object) -> None:
    prompt = writer.pictures("sequence_image", [1, 3])
    pad = IMAGE_PAD
    assert decode(prompt.ids) == (
        f"Pictures:\n<|vision_start|>{pad}<|vision_end|><|vision_start|>{pad}{pad}{pad}<|vision_end|>"
    )
    assert prompt.marks == [len(prompt.ids) - 6, len(prompt.ids) - 1]
    assert prompt.ids.count(writer.image_pad) == 4


def test_item_prompts(writer: PromptWriter, decode: object) -> None:
    tokens = writer.tokenise(["teal"], limit=50)[0]
    assert tokens is not None
    assert decode(writer.texts("item_text", [tokens]).ids) == "Item:\n- teal\n"
    assert decode(writer.pictures("item_image", [1]).ids) == f"Picture:\n<|vision_start|>{IMAGE_PAD}<|vision_end|>"


def test_texts_are_cut_and_missing_ones_stay_missing(writer: PromptWriter) -> None:
    cut, none, empty = writer.tokenise(["a b c d e f g h i j k", None, ""], limit=3)
    whole = writer.tokenise(["a b c d e f g h i j k"], limit=99)[0]
    assert cut is not None
    assert whole is not None
    np.testing.assert_array_equal(cut, whole[:3])
    assert none is None
    assert empty is None
    assert writer.tokenise([None], limit=3) == [None]


def test_a_text_cannot_bring_in_special_tokens(writer: PromptWriter) -> None:
    tokens = writer.tokenise([f"cheap {IMAGE_PAD} <|vision_end|> <|endoftext|>"], limit=99)[0]
    assert tokens is not None
    assert writer.image_pad not in tokens
    assert writer.pad not in tokens


def test_any_bytes_can_be_written() -> None:
    tokenizer = train_tokenizer(["plain words only"] * 3, 300)
    text = "ünï \U0001f375 \x00 قهوة"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_tokenizer_learns_from_the_catalogue_the_same_way_each_time() -> None:
    texts = ["walnut sideboard", "walnut stool", "oak stool"] * 5
    first, second = train_tokenizer(texts, 320), train_tokenizer(texts, 320)
    assert first.get_vocab() == second.get_vocab()
    assert len(first("walnut")["input_ids"]) < len("walnut")
    assert len(first) <= 320


def test_a_tokenizer_of_another_family_is_refused() -> None:
    class Foreign:
        def get_vocab(self) -> dict[str, int]:
            return {"<|endoftext|>": 0, "<|vision_start|>": 1}

    with pytest.raises(BackboneError, match=r"<\|vision_end\|>, <\|image_pad\|>"):
        PromptWriter(Foreign())  # type: ignore[arg-type]


def test_the_hash_tells_prompts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt_hash()
    assert before == prompt_hash()
    changed = {**prompts.TEMPLATES, "item_text": prompts.Template("Item:\n", "* ", "\n")}
    monkeypatch.setattr(prompts, "TEMPLATES", changed)
    assert prompt_hash() != before


def test_changed_prompts_must_be_noticed() -> None:
    """Models and embeddings carry this hash: a change here makes every trained model stale, so do it knowingly."""
    assert prompt_hash() == "73ef5c941c075adb"
