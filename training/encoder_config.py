"""EncoderConfig: the ``[encoder]`` section of a configuration file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EncoderConfig(BaseModel):
    """How the slots and the sequence encoder are trained (docs/method.md, "From VLM vectors to an online encoder").

    Attributes:
        text_dim: length of the ``text`` slot.
        image_dim: length of the ``image`` slot.
        behaviour_dim: length of the ``behaviour`` slot; 0 leaves the slot out.
        min_events: training events from which an item has a behaviour vector.
        max_history: items of a history that the encoder reads, the newest ones.
        width: width of the transformer.
        layers: transformer blocks; 0 makes the encoder a learned weighted mean.
        heads: attention heads; must divide ``width``.
        dropout: inside the transformer.
        input_dropout: on the vectors of the history, whole items at a time left in place but zeroed.
        slot_dropout: probability with which a training batch row loses a slot on both sides.
        temperature: divides the scores in the softmax.
        sampled_above: catalogues with more items use sampled negatives instead of the full softmax.
        negatives: sampled negatives per batch, when they are used.
        learning_rate: of AdamW, after warm-up, decaying along a cosine.
        weight_decay: of AdamW.
        batch_size: training windows per step.
        epochs: upper bound; training ends early when validation NDCG@10 stops rising.
        patience: epochs without a better validation NDCG@10 before training ends.
        validation_users: at most so many users are ranked after an epoch.
        cold_items: share of the items held out of training altogether to measure cold items; 0 for a run that serves.
        precision: dtype of the stored vectors.
        seed: of initialisation, order and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_dim: int = Field(64, ge=1, le=1024)
    image_dim: int = Field(64, ge=1, le=1024)
    behaviour_dim: int = Field(64, ge=0, le=1024)
    min_events: int = Field(5, ge=1)
    max_history: int = Field(10, ge=1, le=512)
    width: int = Field(128, ge=8, le=2048)
    layers: int = Field(2, ge=0, le=24)
    heads: int = Field(2, ge=1, le=64)
    dropout: float = Field(0.2, ge=0, lt=1)
    input_dropout: float = Field(0.1, ge=0, lt=1)
    slot_dropout: float = Field(0.2, ge=0, lt=1)
    temperature: float = Field(0.05, gt=0)
    sampled_above: int = Field(20_000, ge=0)
    negatives: int = Field(4_096, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    batch_size: int = Field(256, ge=1)
    epochs: int = Field(60, ge=1)
    patience: int = Field(5, ge=1)
    validation_users: int = Field(10_000, ge=1)
    cold_items: float = Field(0.0, ge=0, lt=1)
    precision: Literal["float16", "float32"] = "float16"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "EncoderConfig":
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got heads {self.heads} and width {self.width}")
        return self
