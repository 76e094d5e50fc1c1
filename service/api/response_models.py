"""Defines the JSON of all responses, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import RefusalReason

MissingReason = Literal["absent", "unreadable", "cold", "not_found"]


class RecommendedItem(BaseModel):
    """One item of an answer."""

    item_id: str
    score: float = Field(description="Inner product with the query; under popular the share of events, 0 to 1.")
    missing: dict[str, MissingReason] = Field(description="Slots that the item lacks and why; empty if it is whole.")
    imputed: bool = Field(
        False, description="true: the behaviour vector is predicted from text and picture; left out where it is not."
    )
    contributions: dict[str, float] | None = Field(
        None, description="With explain: parts of the score by slot, summing to it; null under popular."
    )
    list_contributions: dict[str, float] | None = Field(
        None,
        description="With explain full: what each item-to-item list adds, within the contribution of its slot; null "
        "under popular.",
    )
    nearest_history_item: str | None = Field(
        None, description="With explain: the positive item of the history nearest to this one; null under popular."
    )
    fields: dict[str, Any] | None = Field(None, description="With fields: the metadata asked for.")
    arm: str | None = Field(
        None, description="Of an interleaved answer: experiment and arm that gave the item; else left out."
    )


class InterleavedArm(BaseModel):
    """One arm of an interleaved answer."""

    arm: str = Field(description="Experiment and arm, as in `prices/control`.")
    bundle: str = Field(description="Which scored the items of this arm.")
    strategy: Literal["sequence", "similar", "popular"]
    history_used: int
    unknown_items: list[str]


class RecommendAnswer(BaseModel):
    """Recommendations, best first."""

    request_id: str
    bundle: str = Field(description="The bundle that answered.")
    strategy: Literal["sequence", "similar", "popular"]
    degraded: Literal["history_unavailable", "retrieval_unavailable", "deadline", "overload"] | None = Field(
        description="Why the answer is less than it could be; the first reason met."
    )
    history_used: int = Field(description="Items that shaped the query.")
    unknown_items: list[str] = Field(
        description="Items of the history, stored or given, that the bundle does not have."
    )
    items: list[RecommendedItem]
    arm: str | None = Field(
        None,
        description="Experiment and arm, as in `prices/control`, or both arms, as in `prices/control+new`; left out "
        "where the user is in none.",
    )
    interleaved: list[InterleavedArm] | None = Field(
        None,
        description="Of an answer with items of both arms: each arm, the control first, whose values the answer has "
        "too; else left out.",
    )


class StoredAnswer(BaseModel):
    """How many events were stored."""

    stored: int = Field(description="Events that were new and are stored now.")
    duplicates: int = Field(description="Events whose event_id this user had sent before.")
    without_consent: int = Field(description="Events without consent, which are not stored.")


class HistoryStep(BaseModel):
    """One step of a history."""

    item_id: str
    timestamp: float = Field(description="Seconds since 1970, UTC.")
    type: str | None


class HistoryAnswer(BaseModel):
    """A user's stored history or impressions, newest last; empty for an unknown user."""

    user_id: str
    items: list[HistoryStep]


class MergedAnswer(BaseModel):
    """An anonymous session that is the user's now."""

    user_id: str
    session_id: str
    moved: int = Field(description="Entries of its history that were moved; 0 if it was merged before.")


class ProfileAnswer(BaseModel):
    """How visual and how textual a user is, by the items that followed in the history."""

    user_id: str
    bundle: str = Field(description="The bundle that computed it.")
    steps: int = Field(description="Steps of the history that count, the newest ones.")
    shares: dict[str, float] | None = Field(description="Share by slot, summing to 1; null: the history is too short.")


class NamedItem(BaseModel):
    """An item with its title."""

    item_id: str
    title: str | None


class SampleUser(BaseModel):
    """A held-out history of an anonymous user."""

    history: list[NamedItem] = Field(description="Oldest first.")
    target: NamedItem = Field(description="The item that followed.")


class SamplesAnswer(BaseModel):
    """A few users to try things with."""

    bundle: str
    samples: list[SampleUser]


class ItemAnswer(BaseModel):
    """One item of the current bundle."""

    item_id: str
    fields: dict[str, Any]
    slots: list[str] = Field(description="The slots that this item has; without any it can only be popular.")
    missing: dict[str, MissingReason] = Field(description="The slots that it lacks and why.")
    imputed: bool = Field(description="Whether its behaviour vector is predicted from text and picture.")
    popularity: float = Field(description="Its share of training events, 0 to 1.")
    picture: bool = Field(description="Whether there is a picture of it under its path and /image.")
    available: bool = Field(description="false: hidden by an operator, never answered.")


class ItemsAnswer(BaseModel):
    """One page of the catalogue."""

    bundle: str
    items: list[ItemAnswer]
    next: str | None = Field(
        description="`cursor` of the next page, of this bundle alone; null at the end. A page may be short before that."
    )


class ShadowSide(BaseModel):
    """What one bundle answered in the comparison."""

    bundle: str
    answered: float = Field(description="Share of the histories answered, 0 to 1.")
    coverage: float = Field(description="Different items over all answers by the most there could be, 0 to 1.")
    slot_shares: dict[str, float]


class ShadowComparison(BaseModel):
    """The bundle that answers beside the one before it, on the same histories."""

    histories: int
    source: Literal["recent", "probes"] = Field(
        description="Recent requests; without any the bundle's evaluation queries."
    )
    k: int
    overlap: float | None = Field(description="Mean share of the old top k that is in the new one, 0 to 1.")
    old: ShadowSide | None
    new: ShadowSide


class RefusedBundle(BaseModel):
    """A bundle that may not serve; the log has the whole reason."""

    bundle: str
    reason: RefusalReason
    at: float = Field(description="Seconds since 1970, UTC.")


class SwapState(BaseModel):
    """What this replica does about bundles."""

    pin: str | None = Field(description="The bundle that all replicas serve whatever the pointer says.")
    wanted: str | None = Field(description="The bundle that should answer; null before the first look.")
    loading: str | None = Field(description="The bundle that is validated now.")
    previous: str | None = Field(description="The bundle before, while it is in memory for a rollback without loading.")
    verified: bool = Field(description="Whether every file of the active bundle was hashed.")
    comparison: ShadowComparison | None
    refused: list[RefusedBundle]
    last_look_seconds: float = Field(description="Since the watcher last looked.")
    waiting: str | None = Field(
        None, description="Why a published bundle waits for the end of an experiment; left out where none does."
    )
    downloading: str | None = Field(
        None, description="The bundle that arrives from an object store; left out where none does."
    )


class SwapAnswer(BaseModel):
    """The result of a reload or a rollback."""

    bundle: str = Field(description="The bundle that answers now.")
    swapped: bool = Field(description="false: it answered before, too.")
    pin: str | None = Field(description="The bundle that all replicas serve whatever the pointer says.")


class BundleAnswer(BaseModel):
    """The current bundle."""

    bundle: str
    age_seconds: float = Field(description="Since it was built.")
    items: int
    slots: dict[str, int] = Field(description="Dimension per slot.")
    max_history: int
    warnings: list[str] = Field(description="Modalities that most items have but that hardly count, and what to do.")
    licences: list[str] = Field(description="Of the pretrained models; `not stated` where a model states none.")
    manifest: dict[str, Any]
    report: dict[str, Any] | None
    swap: SwapState


class Health(BaseModel):
    """Whether the process is up, or ready."""

    status: Literal["up", "ready"]
    bundle: str | None = None
    redis: Literal["up", "down"] | None = Field(None, description="down: ready, but histories are missing.")
    redis_troubles: dict[str, str] | None = Field(
        None,
        description="Last error of `reads`, `writes`, `outcomes`, `rates` and `directives` that no success followed; "
        "else absent.",
    )


class Violation(BaseModel):
    """One broken rule."""

    field: str
    received: str
    rule: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[Violation] | None = None
    stored: list[int] | None = Field(
        None, description="On a Redis Cluster, of a bulk that was not stored whole: positions of the stored events."
    )
    not_stored: list[int] | None = Field(
        None, description="Positions of the others; send them again, each with the same `event_id`."
    )


class RefusedRequest(BaseModel):
    """One request of a batch that could not be answered."""

    problem: Problem


class BatchAnswer(BaseModel):
    """One answer a request, in the order of the requests, all of them from one bundle."""

    request_id: str
    bundle: str = Field(description="The bundle that answered.")
    answers: list[RecommendAnswer | RefusedRequest]


class AdminChange(BaseModel):
    """A change that an administrator made, or tried to make."""

    at: float = Field(description="Seconds since 1970, UTC.")
    key: str = Field(description="First eight hexadecimal digits of the SHA-256 of the admin key.")
    name: str | None = Field(
        None, description="Name of the key at that time; null: it had none. Missing in entries of earlier versions."
    )
    action: str = Field(description="As in `hide item`, `roll back`, `run experiment`.")
    target: str | None = Field(description="The bundle, item or experiment that was named; null where none was.")
    request_id: str


class AuditAnswer(BaseModel):
    """What administrators changed, newest first; the newest 1000."""

    changes: list[AdminChange]


class OutcomeCount(BaseModel):
    """What the answers of one value of a dimension brought."""

    value: str = Field(description="Of the dimension, as in `3`, `none` or the id of a bundle.")
    answers: int = Field(description="Kept answers; 0 by position and slot, which an answer has many of.")
    shown: int = Field(description="Items in them.")
    impressions: int
    clicks: int
    conversions: int
    revenue: float = Field(description="Sum of the values of the conversions.")
    click_rate: float | None = Field(description="Clicks per impression; without impressions per shown item.")
    conversion_rate: float | None = Field(description="Conversions, in the same way.")


class LeftOutAnswers(BaseModel):
    """How many answers of the period are not counted, by reason."""

    sampled: int = Field(description="Of users who are not in the sample.")
    dropped: int = Field(description="As 10,000 answers and events waited.")
    failed: int = Field(description="As Redis did not answer.")
    evicted: int = Field(
        description="Counted, but dropped before the window ended, as the memory was full or their user had 20 newer "
        "ones: what they brought after that is not counted."
    )


class LeftOutEvents(BaseModel):
    """How many events of the period are not counted, by reason."""

    dropped: int = Field(description="As 10,000 answers and events waited.")
    failed: int = Field(description="As Redis did not answer.")


class LeftOut(BaseModel):
    """What is not counted."""

    answers: LeftOutAnswers
    events: LeftOutEvents


class OutcomesAnswer(BaseModel):
    """What the answers of a period brought."""

    model_config = ConfigDict(populate_by_name=True)

    from_: int = Field(alias="from", description="Seconds since 1970 at the beginning of the first hour.")
    to: int = Field(description="At the end of the last hour.")
    by: Literal["position", "bundle", "arm", "strategy", "slot"]
    outcomes: list[OutcomeCount]
    left_out: LeftOut


RESPONSES: tuple[type[BaseModel], ...] = (
    RecommendAnswer,
    BatchAnswer,
    StoredAnswer,
    HistoryAnswer,
    MergedAnswer,
    ProfileAnswer,
    SamplesAnswer,
    ItemAnswer,
    ItemsAnswer,
    BundleAnswer,
    SwapAnswer,
    OutcomesAnswer,
    AuditAnswer,
    Health,
    Problem,
)
