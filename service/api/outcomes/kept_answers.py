"""Hands answers to the outcomes, with what they are counted by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from index.bundle.bundle import Bundle
from service.api.requests import request_models
from service.outcomes.outcomes import Outcomes
from service.outcomes.sent_answers import SecondPart, SentAnswer
from service.recommend.contributions import Contributions
from service.recommend.query import Recommendations
from service.request_trace import Trace
from service.stores.outcomes.answer_records import MOST_ITEMS, AnswerContext, SecondArm


@dataclass(frozen=True, slots=True, eq=False)
class ArmPart:
    """What one arm gives to an interleaved answer.

    Attributes:
        label: experiment and arm, as in ``prices/control``.
        bundle: of the arm.
        answer: its items, best first.
    """

    label: str
    bundle: Bundle
    answer: Recommendations


class KeptAnswers:
    """Decides which answers are kept, and keeps them.

    Args:
        outcomes: keeps answers; None: none are kept.
        require_consent: answers are kept without their user, as a request has no consent.
    """

    def __init__(self, outcomes: Outcomes | None, *, require_consent: bool) -> None:
        self._outcomes = outcomes
        self._require_consent = require_consent

    def wanted(self, params: request_models.RetrievalRequest, trace: Trace) -> bool:
        """Whether the answer to a request is kept; its query then needs the contributions later."""
        return self._outcomes is not None and self._outcomes.samples(self._user(params), trace.request_id)

    def keep(
        self,
        bundle: Bundle,
        params: request_models.RetrievalRequest,
        answer: Recommendations,
        body: dict[str, Any],
        trace: Trace,
        *,
        wanted: bool,
        apart: Mapping[str, bool] | None = None,
    ) -> None:
        """Keep an answer that is wanted, and count one that is not; returns at once.

        Args:
            bundle: the one that answered.
            params: the request.
            answer: rows and contributions.
            body: of the response.
            trace: of the request.
            wanted: as :meth:`wanted` said before the answer.
            apart: of an answer that should have been interleaved: by arm, whether its part was degraded or refused.
        """
        if self._outcomes is None:
            return
        if not wanted:
            self._outcomes.not_sampled()
            return
        context = AnswerContext(bundle.id, answer.strategy, body.get("arm", ""))
        self._outcomes.answered(self._sent(bundle, params, answer, body, trace, context=context, apart=apart))

    def keep_interleaved(
        self,
        parts: Sequence[ArmPart],
        params: request_models.RetrievalRequest,
        gave: Sequence[bool],
        body: dict[str, Any],
        trace: Trace,
        *,
        wanted: bool,
    ) -> None:
        """Keep an interleaved answer; further arguments as for :meth:`keep`.

        Args:
            parts: the items of each arm.
            params: the request.
            gave: whether the second arm gave each item.
            body: of the response.
            trace: of the request.
            wanted: as :meth:`wanted` said before the answer.
        """
        if self._outcomes is None:
            return
        if not wanted:
            self._outcomes.not_sampled()
            return
        first, second = ((part, AnswerContext(part.bundle.id, part.answer.strategy, part.label)) for part in parts)
        part, context = second
        of_second = SecondPart(SecondArm(context, gave), part.bundle.layout.names, _of_stored(part.answer))
        part, context = first
        sent = self._sent(part.bundle, params, part.answer, body, trace, context=context, second=of_second)
        self._outcomes.answered(sent)

    def _sent(
        self,
        bundle: Bundle,
        params: request_models.RetrievalRequest,
        answer: Recommendations,
        body: dict[str, Any],
        trace: Trace,
        **more: Any,  # noqa: ANN401 - further fields of the answer
    ) -> SentAnswer:
        return SentAnswer(
            user_id=self._user(params),
            request_id=trace.request_id,
            offset=params.offset,
            item_ids=[item["item_id"] for item in body["items"]],
            slots=bundle.layout.names,
            contributions=_of_stored(answer),
            degraded=answer.degraded is not None,
            latency_us=round(trace.elapsed_ms * 1000.0),
            **more,
        )

    def _user(self, params: request_models.RetrievalRequest) -> str | None:
        """The user whose answer may be kept by name; None where the request asks that nothing is stored of anyone."""
        if self._require_consent or not isinstance(params, request_models.RecommendRequest):
            return None
        return None if params.history == "ignore" else params.owner


def _of_stored(answer: Recommendations) -> Contributions | None:
    """The contributions to the scores of the items that are stored."""
    return None if answer.later is None else answer.later.of(slice(MOST_ITEMS))
