"""Token layouts and pictures against the processors that transformers has for the published models."""

# Neither torchvision nor torchaudio is installed, so the processors get no video and no audio part. Everything else is
# transformers' own: where a picture's tokens go, how many there are, and how the prompt around them is tokenised.

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EmbeddingGemma2Processor, Qwen3VLProcessor, Siglip2Processor, SiglipProcessor
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from tests.support.backbones.item_models import BEGIN, END, SHOWN, TEXTS, pictures, word_tokenizer
from training.backbones.backbone import load_backbone
from training.backbones.items.dual_encoder import DualEncoder
from training.backbones.items.gemma_embedding import GemmaEmbedding
from training.backbones.items.qwen_embedding import QwenEmbedding

LONG = "Red shoe of the blue hat a a a a"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A processor without the parts that are None."""

    def make(kind: type[Any], **parts: Any) -> Any:
        monkeypatch.setattr(kind, "check_argument_for_proper_class", lambda *_: None)
        return kind(**parts)

    return make


def dual(directory: Path) -> DualEncoder:
    return DualEncoder.load(directory, revision=None, dtype="float32", attention="sdpa", max_text_tokens=64)


def read_parts(encoder: Any) -> dict[str, Any]:
    return {"image_processor": encoder.image_processor, "tokenizer": encoder.tokenizer}


def check_equal(found: dict[str, Any], expected: Any) -> None:
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].to(value.dtype), atol=0, rtol=0, msg=name)


def test_siglip(dual_directory: Callable[[str], Path]) -> None:
    encoder = dual(dual_directory("siglip"))
    own = SiglipProcessor(**read_parts(encoder))
    texts = [*TEXTS, LONG]
    lower = [text.lower() for text in texts]  # the published tokenizer does so itself
    expected = own(
        text=lower, images=pictures(), padding="max_length", truncation=True, max_length=8, return_tensors="pt"
    )
    check_equal(encoder.prepare_texts(texts), expected)
    check_equal(encoder.prepare_pictures(pictures()), expected)
    assert expected["input_ids"][3, -1] == 3  # a long text keeps its last token


def test_siglip2(dual_directory: Callable[[str], Path]) -> None:
    directory = dual_directory("siglip2")
    letters = sorted({*"".join(TEXTS).lower(), "▁"} - {" "})
    vocabulary = {
        token: number for number, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters])
    }
    Siglip2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(directory)
    encoder = dual(directory)
    own = Siglip2Processor(**read_parts(encoder))
    expected = own(
        text=list(TEXTS), images=pictures(), max_length=8, padding_side="right", patch_size=8, max_num_patches=16,
        return_tensors="pt",
    )  # fmt: skip
    check_equal(encoder.prepare_texts(TEXTS), expected)
    check_equal(encoder.prepare_pictures(pictures()), expected)
    assert len(expected["input_ids"][0].unique()) > 4


def test_qwen3_vl_embedding(chat_directory: Path, processor: Callable[..., Any]) -> None:
    backbone = load_backbone(chat_directory)
    encoder = QwenEmbedding(backbone, max_text_tokens=64, length=None)
    own = processor(
        Qwen3VLProcessor,
        image_processor=backbone.image_processor,
        tokenizer=backbone.tokenizer,
        video_processor=None,
    )
    before = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n"
    after = "<|im_end|>\n<|im_start|>assistant\n"
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    seen = own(text=[f"{before}<|vision_start|><|image_pad|><|vision_end|>{after}"] * 3, images=pictures(), **options)
    inputs = encoder.prepare_pictures(pictures())
    check_equal(inputs, seen)
    assert set(inputs) == set(seen)
    said = own(text=[f"{before}{text}{after}" for text in TEXTS], **options)
    check_equal(encoder.prepare_texts(TEXTS), said)


def test_embeddinggemma2(gemma_directory: Path, processor: Callable[..., Any]) -> None:
    added = {"boi_token": "<begin>", "eoi_token": "<end>", "image_token": "<picture>"}
    tokenizer = word_tokenizer(extra_special_tokens=added)
    tokenizer.save_pretrained(gemma_directory)
    assert [tokenizer.convert_tokens_to_ids(token) for token in added.values()] == [BEGIN, END, SHOWN]
    encoder = GemmaEmbedding.load(
        gemma_directory, revision=None, dtype="float32", attention="sdpa", max_text_tokens=64, length=None
    )
    own = processor(
        EmbeddingGemma2Processor,
        feature_extractor=None,
        video_processor=None,
        **read_parts(encoder),
    )
    seen = own(images=[[picture] for picture in pictures()], padding_side="right", return_tensors="pt")
    check_equal(encoder.prepare_pictures(pictures()), seen)
    said = own(text=[f"title: none | text: {text}" for text in TEXTS], return_tensors="pt")
    check_equal(encoder.prepare_texts(TEXTS), said)
