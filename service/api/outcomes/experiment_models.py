"""Defines the JSON of experiments."""

import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator

from service.api.requests.request_models import BUNDLE_ID, Filter, Received, SlotWeight, broken_rule

MOST_ARMS: Final = 4
NAME: Final = r"^[a-z0-9][a-z0-9-]{0,31}$"
ARM_NAME: Final = r"^[a-z0-9][a-z0-9-]{0,15}$"
_MOST_SLOTS: Final = 64
_ROUNDING: Final = 1e-9
_INTERLEAVED_SHARES: Final = [0.5, 0.5]


class ArmDefaults(Received):
    """Fields of `POST /recommend` for requests that do not set them; null: the request's own default."""

    slot_weights: dict[str, SlotWeight] | None = None
    diversity: float | None = Field(None, ge=0, le=1)
    fresh_share: float | None = Field(None, ge=0, le=1)
    filter: Filter | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are set; null sets none."""
        found = ((name, getattr(self, name)) for name in self.model_fields_set)
        return {name: value for name, value in found if value is not None}

    def as_json(self) -> dict[str, Any]:
        """The fields that are set, as they are stored."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, include=set(self.given))

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        weights = self.slot_weights
        if weights is not None and (len(weights) > _MOST_SLOTS or not any(weights.values())):
            raise broken_rule("slot_weights", weights, f"must name at most {_MOST_SLOTS} slots and not all be 0")
        return self


class ArmRequest(Received):
    """One way to answer."""

    name: Annotated[str, Field(pattern=ARM_NAME)]
    share: float = Field(gt=0, lt=1, description="Of the users; all shares sum to 1.")
    bundle: Annotated[str, Field(pattern=BUNDLE_ID)] | None = Field(
        None, description="Null in all arms: the active bundle, whichever it is. Null in some: the one active now."
    )
    defaults: ArmDefaults | None = None


class ExperimentRequest(Received):
    """Arms among which users are divided; the first is the control."""

    salt: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")] | None = Field(
        None, description="Key of the hash that divides the users; missing: a random one."
    )
    arms: Annotated[list[ArmRequest], Field(min_length=2, max_length=MOST_ARMS)]
    interleave: bool = Field(
        False, description="Every answer has items of both arms, of which there are two with a share of 0.5 each."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise broken_rule("arms", names, "must have a name of its own each")
        total = math.fsum(arm.share for arm in self.arms)
        if abs(total - 1.0) > _ROUNDING:
            raise broken_rule("arms", total, "must have shares that sum to 1")
        shares = [arm.share for arm in self.arms]
        if self.interleave and shares != _INTERLEAVED_SHARES:
            raise broken_rule("arms", shares, "must be two with a share of 0.5 each where interleave is true")
        return self


class ExperimentArm(BaseModel):
    """One way to answer."""

    name: str
    share: float
    bundle: str | None
    defaults: dict[str, Any]


class ExperimentAnswer(BaseModel):
    """An experiment and whether it runs."""

    name: str
    salt: str
    arms: list[ExperimentArm]
    interleave: bool = Field(False, description="Left out where it is false.")
    state: Literal["running", "paused", "ended"] = Field(
        description="paused: on this replica a bundle of an arm is not in memory, so users are in no arm."
    )
    reason: str | None = Field(description="Why it is paused.")


class GroupCounts(BaseModel):
    """What was counted in one arm and one of 256 groups of users; a count of 0 is left out."""

    arm: str
    group: int
    answers: int = 0
    users: int = Field(0, description="Users and sessions with an answer, each counted once; not with interleave.")
    visits: int = Field(0, description="Answers to users without an earlier one in the window.")
    impressions: int = 0
    clicks: int = 0
    conversions: int = 0
    revenue: float = 0.0
    wins: int = Field(0, description="With interleave: answers in which this arm has more clicked items.")
    ties: int = Field(0, description="With interleave: answers in which both arms have as many, at least one each.")
    conversion_wins: int = Field(0, description="The same by bought items.")
    conversion_ties: int = 0
    shown: int = Field(0, description="With interleave: items of this arm.")
    degraded: int = Field(0, description="Answers that were degraded; with interleave: this arm's part of them.")
    latency_us: int = Field(0, description="Sum of the microseconds of the answers.")


class ExperimentGroupsAnswer(BaseModel):
    """What was counted for an experiment, for `vlm2rec experiments report`."""

    experiment: ExperimentAnswer
    groups: list[GroupCounts]


EXPERIMENT_REQUESTS: Final[tuple[type[BaseModel], ...]] = (ExperimentRequest,)
EXPERIMENT_RESPONSES: Final[tuple[type[BaseModel], ...]] = (ExperimentAnswer, ExperimentGroupsAnswer)
