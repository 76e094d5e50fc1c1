"""Defines the ``[encoder]`` section of a configuration file."""

from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from training.config.types import Count
from training.config.vlm_config import Section

LARGE_CATALOGUE: Final = 250_000
"""Items above which ``list_neighbours = "auto"`` takes the smaller number."""
_NEIGHBOURS, _NEIGHBOURS_OF_LARGE = 50, 20


class EncoderConfig(Section):
    """How the slots and the sequence encoder are trained (docs/method.md, "From VLM vectors to an online encoder").

    Attributes:
        slots: slots of the stored vectors, in order; a modality without embeddings is skipped. ``["behaviour"]`` is
            SASRec on ids.
        text_dim: length of the ``text`` slot.
        image_dim: length of the ``image`` slot.
        behaviour_dim: length of the ``behaviour`` slot.
        components: principal components of a modality's vectors that its projection may use.
        whiten: 0 keeps the spread of the components, 1 makes it equal.
        min_events: training events from which an item has a behaviour vector.
        behaviour_shrinkage: training events at which the own part of a behaviour vector, beside the part that is mapped
            from text and picture, counts half; 0 leaves that part out.
        max_history: longest history; the encoder reads the newest items.
        width: features inside the transformer.
        layers: transformer blocks; 0 makes the encoder a learned recency-weighted mean.
        heads: attention heads; must divide ``width``.
        dropout: inside the transformer.
        input_dropout: share of the items of a history that are masked.
        slot_dropout: share of the windows in which some slots are dropped on both sides.
        cold_dropout: share of the items without their behaviour vector in a step, as new items have none of their own.
        reversed_share: share of the training windows in reversed order.
        temperature: divides the scores in the softmax.
        sampled_above: catalogues with more items use sampled negatives instead of the full softmax.
        negatives: sampled negatives of a step, when they are used.
        unseen_negatives: whether items without training events are negatives too. If false, the encoder does not learn
            that new items are wrong answers.
        impression_negatives: impressions before an event, not followed by a positive event of the item within a day,
            that are extra negatives of that event; at most so many, the newest. 0: none.
        learning_rate: of AdamW, reached after ``warmup_steps``, then falling along a cosine to a tenth at the end.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW, on the matrices.
        averaging: decay of the moving average of the weights; the average is evaluated and saved.
        batch_size: training windows of a step on average; steps of short windows have more. 0 = the power of two that
            gives an epoch about 160 steps, between 128 and 1,024; down to 32 where an epoch had fewer than about 64.
        epochs: largest number of epochs; training ends earlier when validation NDCG@10 of what is served, slots and
            item-to-item lists together, stops rising.
        patience: epochs without a better one after which training ends.
        validation_users: largest number of users ranked after an epoch.
        cold_items: share of the items held out of training to measure new items; 0 for a run that serves.
        exclude_seen: whether responses exclude the items of the user's history unless the request says otherwise; false
            for shops with repeat purchases. Validation and `evaluate` rank in the same way.
        impute_behaviour: whether items with too few events get a behaviour vector predicted from text and picture.
        list_neighbours: entries of an item in each item-to-item list; 0 makes no lists. ``"auto"``: 50, and 20 in
            catalogues of more than 250,000 items (docs/experiments/lists.md, "Neighbours").
        list_history: newest items of a history whose lists add to a score.
        refit: whether the encoder that serves is fitted again on every event, by the recipe that validation chose;
            figures stay those of the encoder fitted without the held-out events. Never with ``cold_items`` above 0.
        precision: dtype of the stored vectors.
        seed: of initialisation, order and dropout.
    """

    slots: tuple[Literal["text", "image", "behaviour"], ...] = ("text", "image", "behaviour")
    text_dim: int = Field(default=64, ge=1, le=1024)
    image_dim: int = Field(default=64, ge=1, le=1024)
    behaviour_dim: int = Field(default=64, ge=1, le=1024)
    components: int = Field(default=256, ge=1, le=4096)
    whiten: float = Field(default=0.0, ge=0, le=1)
    min_events: Count = Field(default=1, ge=1)
    behaviour_shrinkage: float = Field(default=5.0, ge=0)
    max_history: int = Field(default=10, ge=1, le=512)
    width: int = Field(default=64, ge=8, le=2048)
    layers: int = Field(default=2, ge=0, le=24)
    heads: int = Field(default=2, ge=1, le=64)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    input_dropout: float = Field(default=0.0, ge=0, lt=1)
    slot_dropout: float = Field(default=0.3, ge=0, lt=1)
    cold_dropout: float = Field(default=0.1, ge=0, lt=1)
    reversed_share: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=0.05, gt=0, le=10)
    sampled_above: Count = Field(default=1_000, ge=0)
    negatives: Count = Field(default=512, ge=1)
    unseen_negatives: bool = False
    impression_negatives: int = Field(default=0, ge=0, le=64)
    learning_rate: float = Field(default=4e-3, gt=0, le=1)
    warmup_steps: Count = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    averaging: float = Field(default=0.995, ge=0, lt=1)
    batch_size: Count = Field(default=0, ge=0)
    epochs: int = Field(default=30, ge=1, le=10_000)
    patience: Count = Field(default=5, ge=1)
    validation_users: Count = Field(default=5_000, ge=1)
    cold_items: float = Field(default=0.0, ge=0, lt=1)
    exclude_seen: bool = True
    impute_behaviour: bool = True
    list_neighbours: int | Literal["auto"] = "auto"
    list_history: int = Field(default=10, ge=1, le=512)
    refit: bool = True
    precision: Literal["float16", "float32"] = "float16"
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("list_neighbours", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000):
            raise ValueError('must be a whole number, 0 to 1,000, or "auto"')
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderConfig":
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got heads {self.heads} and width {self.width}")
        if not self.slots or len(set(self.slots)) != len(self.slots):
            raise ValueError(f"slots must name text, image or behaviour, each at most once, got {list(self.slots)}")
        return self

    def for_catalogue(self, items: int) -> "EncoderConfig":
        """The same with numbers in place of ``"auto"``.

        Args:
            items: size of the catalogue.
        """
        return self.model_copy(update={"list_neighbours": self.neighbours(items)})

    def neighbours(self, items: int) -> int:
        """Entries of an item in each item-to-item list of a catalogue of that size."""
        if self.list_neighbours == "auto":
            return _NEIGHBOURS if items <= LARGE_CATALOGUE else _NEIGHBOURS_OF_LARGE
        return self.list_neighbours
