"""Writes the prompts that a vision-language model reads of an item or a history, one modality at a time."""

# Published (arXiv 2603.17450): one prompt over the texts of a history and one over its pictures, encoded separately
# and fused outside the model, and an item prompt for the next item; the last token is pooled. The wording and the
# limit on an item's text are our reading.
#
# Every item ends with the same mark (a line break, or the end of a picture), the last token of the prompt so far. As
# attention is causal, one pass over a history gives, at its marks, the vectors of all its prefixes, each exactly as
# if it had been encoded alone. A prompt is assembled from token ids, so a text is tokenised once however often its
# item occurs.

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|endoftext|>"
PAD = "<|endoftext|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
PLAIN_TEXT = {"<|": "< ", "|>": " >"}
"""What :func:`plain_text` replaces, in this order."""
SPECIAL_TOKENS = (END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
_VERSION = 1


@dataclass(frozen=True)
class Template:
    """A prompt: ``before``, then ``lead``, the item's text or picture, and ``mark`` for every item."""

    before: str
    lead: str
    mark: str


SEQUENCE_OF_TEXTS = Template("Items:\n", "- ", "\n")
SEQUENCE_OF_PICTURES = Template("Pictures:\n", VISION_START, VISION_END)
ITEM_TEXT = Template("Item:\n", "- ", "\n")
ITEM_PICTURE = Template("Picture:\n", VISION_START, VISION_END)
TEMPLATES = {
    "sequence_text": SEQUENCE_OF_TEXTS,
    "sequence_image": SEQUENCE_OF_PICTURES,
    "item_text": ITEM_TEXT,
    "item_image": ITEM_PICTURE,
}


def prompt_hash() -> str:
    """16 hex digits over the version, every template and the special tokens; stored with everything made by them."""
    parts = {"version": _VERSION, "special": SPECIAL_TOKENS, **{name: asdict(t) for name, t in TEMPLATES.items()}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def wording() -> list[str]:
    """Every fixed piece of text, for a tokenizer that is trained from scratch."""
    return [piece for t in TEMPLATES.values() for piece in (t.before, t.lead, t.mark) if piece]


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids.

    Attributes:
        ids: token ids.
        marks: position of the mark after each item; the last one is the last token.
    """

    ids: list[int]
    marks: list[int]


class PromptWriter:
    """Writes prompts as token ids of one tokenizer.

    Attributes:
        pad: id of the padding token.
        image_pad: id of the token that one visual token replaces.

    Raises:
        BackboneError: the tokenizer lacks a special token of the Qwen-VL family.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (END, VISION_START, VISION_END, IMAGE_PAD) if token not in vocabulary]
        if missing:
            raise BackboneError(
                f"the tokenizer must have the special tokens of the Qwen-VL family, it lacks {', '.join(missing)}; "
                "use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model"
            )
        self._tokenizer = tokenizer
        self._pieces = {
            name: (self._ids(t.before), self._ids(t.lead), self._ids(t.mark)) for name, t in TEMPLATES.items()
        }
        self.pad: int = vocabulary[PAD]
        self.image_pad: int = vocabulary[IMAGE_PAD]

    def tokenise(self, texts: Sequence[str | None], limit: int) -> list[NDArray[np.int32] | None]:
        """Token ids of item texts.

        Args:
            texts: one text an item; None stays None.
            limit: at most so many tokens of a text are kept.

        Returns:
            (length,) int32 per text; None also for a text without any token.
        """
        present = [row for row, text in enumerate(texts) if text is not None]
        tokens: list[NDArray[np.int32] | None] = [None] * len(texts)
        # A special token inside a text is plain text: no title may start a picture.
        clean = [plain_text(texts[row] or "") for row in present]
        if present:
            for row, ids in zip(present, self._tokenizer(clean, add_special_tokens=False)["input_ids"], strict=True):
                tokens[row] = np.asarray(ids[:limit], dtype=np.int32) if ids else None
        return tokens

    def texts(self, name: str, items: Sequence[NDArray[np.int32]]) -> Prompt:
        """A prompt over item texts.

        Args:
            name: ``sequence_text`` or ``item_text``.
            items: token ids of each text, oldest first.
        """
        return self._write(name, [tokens.tolist() for tokens in items])

    def pictures(self, name: str, sizes: Sequence[int]) -> Prompt:
        """A prompt over pictures; ``image_pad`` stands where the visual tokens go.

        Args:
            name: ``sequence_image`` or ``item_image``.
            sizes: number of visual tokens of each picture, oldest first.
        """
        return self._write(name, [[self.image_pad] * size for size in sizes])

    def _write(self, name: str, items: Sequence[Sequence[int]]) -> Prompt:
        before, lead, mark = self._pieces[name]
        ids, marks = list(before), []
        for item in items:
            ids += [*lead, *item, *mark]
            marks.append(len(ids) - 1)
        return Prompt(ids, marks)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids


def plain_text(text: str) -> str:
    """The text for the tokenizer, with the bars of anything that looks like a special token removed."""
    for bar, plain in PLAIN_TEXT.items():
        text = text.replace(bar, plain)
    return text
