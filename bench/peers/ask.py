"""Defines the request and the answer of the peers, a subset of those of `vlm2rec serve`."""

from pydantic import BaseModel, Field


class Ask(BaseModel):
    """A request: the user and the number of items."""

    user_id: str = Field(min_length=1, max_length=256)
    k: int = Field(20, ge=1, le=1000)


class Item(BaseModel):
    """One item of an answer."""

    item_id: str
    score: float


class Answer(BaseModel):
    """Items, best first."""

    items: list[Item]
