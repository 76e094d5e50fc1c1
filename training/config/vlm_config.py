"""Section ``[vlm]`` of a configuration: the pretrained models, and how they are adapted."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from training.config.types import Count


class Section(BaseModel):
    """A section of a configuration; unknown keys are refused, and ``true`` is not the number 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        numbers = {int, float}
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation in numbers:
            raise ValueError("must be a number")
        return value


class ScratchConfig(Section):
    """Shape of a Qwen2.5-VL made from scratch; read only if ``vlm.model`` is not set.

    Attributes:
        vocabulary: most tokens of the byte-level BPE that is trained on the catalogue.
        hidden_size: width of the language model and of the embeddings.
        layers: decoder layers.
        heads: attention heads; ``hidden_size`` must be a multiple of 2 · heads.
        intermediate_size: width of its MLPs.
        vision_hidden_size: width of the vision tower.
        vision_layers: its blocks.
        vision_heads: its heads; ``vision_hidden_size`` must be a multiple of 4 · heads.
        vision_intermediate_size: width of its MLPs.
        patch_size: pixels of a patch's side; 2 × 2 patches become one visual token.
        initializer_range: standard deviation of the initial weights.
    """

    vocabulary: int = Field(default=4_096, ge=300, le=200_000)
    hidden_size: int = Field(default=64, ge=16, le=8_192)
    layers: int = Field(default=2, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    intermediate_size: int = Field(default=128, ge=16, le=32_768)
    vision_hidden_size: int = Field(default=64, ge=16, le=8_192)
    vision_layers: int = Field(default=2, ge=1, le=64)
    vision_heads: int = Field(default=4, ge=1, le=64)
    vision_intermediate_size: int = Field(default=128, ge=16, le=32_768)
    patch_size: int = Field(default=14, ge=2, le=64)
    initializer_range: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "ScratchConfig":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 · heads, got {self.hidden_size} and {self.heads}")
        if self.vision_hidden_size % (4 * self.vision_heads):
            raise ValueError(
                "vision_hidden_size must be a multiple of 4 · vision_heads, got "
                f"{self.vision_hidden_size} and {self.vision_heads}"
            )
        return self


class LoraConfig(Section):
    """LoRA adapters on a pretrained model; read only with ``vlm.model``, of a dual encoder with ``vlm.adapters``.

    Attributes:
        rank: 0 trains every weight instead, which a dual encoder does not offer.
        alpha: scale of the adapters, α / rank.
        dropout: inside the adapters.
        targets: linear layers that get an adapter, in the language model and in the vision tower.
    """

    rank: int = Field(default=16, ge=0, le=1_024)
    alpha: Count = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv")


class TowersConfig(Section):
    """A text encoder beside an image model; read only with ``vlm.family = "towers"``.

    Attributes:
        text_model: directory, hub id, or ``package:NAME`` of a text encoder.
        text_revision: commit of a hub model.
        text_pooling: mean over a text's tokens, its first or its last token.
        trained_text_layers: last layers of the text encoder that are trained with the heads, at the rate of
            ``train.text_layers_rate``; 0 keeps it frozen. For BERT and RoBERTa.
        image_model: directory, hub id, or ``package:NAME`` of an image model.
        image_revision: commit of a hub model.
    """

    text_model: str | None = None
    text_revision: str | None = None
    text_pooling: Literal["mean", "cls", "last"] = "mean"
    trained_text_layers: int = Field(default=0, ge=0, le=64)
    image_model: str | None = None
    image_revision: str | None = None


class HeadsConfig(Section):
    """Heads on the vectors of a frozen encoder; not read with ``vlm.family = "qwen-vl"``.

    Attributes:
        length: of their vectors.
        text_terms: length of a block of TF-IDF (hashed words and word pairs, reduced) that the text head reads beside
            the encoder's vector; 0 for none.
        text_terms_share: spread of that block, with a spread of 1 of the encoder's vectors.
    """

    length: int = Field(default=256, ge=8, le=8_192)
    text_terms: int = Field(default=0, ge=0, le=2_048)
    text_terms_share: float = Field(default=1.0, gt=0, le=100)


class VlmConfig(Section):
    """The pretrained model or models.

    Attributes:
        family: ``qwen-vl`` is fine-tuned and reads histories as prompts. The others encode items, are frozen, and get
            heads: ``dual-encoder`` (SigLIP, SigLIP 2, CLIP), ``towers``, ``qwen3-vl-embedding``, ``embeddinggemma-2``.
        model: directory or hub id of a model of the family; if not set, a Qwen2.5-VL is made from scratch by
            ``vlm.scratch``.
        revision: commit of a hub model, 40 hexadecimal digits; a hub model must be pinned.
        dtype: dtype of the weights.
        attention: implementation of attention in transformers.
        activation_checkpointing: recompute activations in the backward pass to save memory.
        min_picture_pixels: smaller pictures are enlarged to at least this many pixels.
        max_picture_pixels: larger pictures are shrunk to at most this many pixels.
        max_text_tokens: most tokens of an item's text.
        licence: of the pretrained model, if it is not stated where it was taken from; it goes into the bundle.
        vector_length: first coordinates to keep of a vector, for ``qwen3-vl-embedding`` and ``embeddinggemma-2``.
        adapters: train LoRA adapters (``vlm.lora``) in both towers of a dual encoder beside its heads, at the rate of
            ``train.adapters_rate``.
    """

    family: Literal["qwen-vl", "dual-encoder", "towers", "qwen3-vl-embedding", "embeddinggemma-2"] = "qwen-vl"
    model: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    activation_checkpointing: bool = False
    min_picture_pixels: Count = Field(default=784, ge=16)
    max_picture_pixels: Count = Field(default=784, ge=16)
    max_text_tokens: int = Field(default=24, ge=1, le=4_096)
    licence: str | None = Field(default=None, min_length=1, max_length=100)
    vector_length: int | None = Field(default=None, ge=8, le=8_192)
    adapters: bool = False
    scratch: ScratchConfig = ScratchConfig()
    lora: LoraConfig = LoraConfig()
    towers: TowersConfig = TowersConfig()
    heads: HeadsConfig = HeadsConfig()

    @property
    def encodes_items(self) -> bool:
        """Whether the model is frozen, encodes items, and gets heads."""
        return self.family != "qwen-vl"

    @model_validator(mode="after")
    def _named_models(self) -> "VlmConfig":
        if self.family == "towers" and not (self.towers.text_model and self.towers.image_model):
            raise ValueError('family = "towers" needs towers.text_model and towers.image_model')
        if self.encodes_items and self.family != "towers" and not self.model:
            raise ValueError(f'family = "{self.family}" needs model, a directory or hub id')
        if self.towers.trained_text_layers and self.family != "towers":
            raise ValueError(f'towers.trained_text_layers is for family = "towers", got "{self.family}"; set it to 0')
        if self.adapters and self.family != "dual-encoder":
            raise ValueError(f'adapters is for family = "dual-encoder", got "{self.family}"; set it to false')
        if self.adapters and not self.lora.rank:
            raise ValueError("adapters = true needs a lora.rank of at least 1, got 0; raise it")
        return self

    @model_validator(mode="after")
    def _ordered_pixels(self) -> "VlmConfig":
        if self.min_picture_pixels > self.max_picture_pixels:
            raise ValueError(
                "min_picture_pixels must not exceed max_picture_pixels, got "
                f"{self.min_picture_pixels} and {self.max_picture_pixels}"
            )
        return self
