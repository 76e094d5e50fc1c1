"""Answers requests with items of both arms of an experiment."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard

from starlette.responses import Response

from index.errors import FilterError
from service.api.outcomes.arms import InterleavedArms, RequestArm
from service.api.outcomes.kept_answers import ArmPart, KeptAnswers
from service.api.queries import check_fields, fresh_share_of, recommend_query
from service.api.rendering import ResponseBodies, json_response
from service.api.requests.request_models import RecommendRequest
from service.errors import RuleBroken
from service.experiments.team_draft import Pick, coins_of, team_draft
from service.recommend.batch_histories import BatchHistories
from service.recommend.new_items import is_new, places_for_new
from service.recommend.query import Query, Recommendations
from service.recommend.recommender import Recommender
from service.request_trace import Trace

_REFUSALS = (RuleBroken, FilterError)  # what a bundle can refuse: it lacks a field, a slot or an item

_Found = Recommendations | RuleBroken | FilterError


class InterleavedAnswers:
    """Computes the rankings of both arms from one reading of the history, and merges them by team draft.

    If the part of an arm is degraded or refused, the other arm answers alone, in no arm: such an answer says nothing
    about which ranking is better, but the failure is counted for its arm.

    Args:
        bodies: builds the bodies of the responses.
        kept: keeps answers for their outcomes.
    """

    def __init__(self, *, bodies: ResponseBodies, kept: KeptAnswers) -> None:
        self._bodies = bodies
        self._kept = kept

    async def recommend(
        self, both: InterleavedArms, params: RecommendRequest, recommender: Recommender, trace: Trace
    ) -> Response:
        """Answer one request.

        Args:
            both: the arms.
            params: the request.
            recommender: finds items.
            trace: of the request.

        Raises:
            RuleBroken, FilterError: both arms refuse the request; that of the control.
        """
        keeps = self._kept.wanted(params, trace)
        trace.lap("parse")
        found = await _rankings(both, params, recommender, trace, keeps=keeps)
        complete = [one for one in found if _complete(one)]
        if len(complete) == len(both.arms):
            return self._merged(both, params, complete, trace, keeps=keeps)
        return self._alone(both, params, found, trace, keeps=keeps)

    def _merged(
        self,
        both: InterleavedArms,
        params: RecommendRequest,
        rankings: Sequence[Recommendations],
        trace: Trace,
        *,
        keeps: bool,
    ) -> Response:
        picks = _drafted(both, params, rankings)[params.offset :]
        parts = [
            ArmPart(
                arm.label, arm.bundle, _page(arm, params, ranking, (pick.place for pick in picks if pick.team == team))
            )
            for team, (arm, ranking) in enumerate(zip(both.arms, rankings, strict=True))
        ]
        failure = next((part.answer.error for part in parts if part.answer.error is not None), None)
        body = self._bodies.head(parts[0].bundle, replace(parts[0].answer, error=failure), trace, wanted="sequence")
        body["items"] = self._items(parts, params, picks)
        body["arm"] = both.label
        body["interleaved"] = [_summary(part) for part in parts]
        response = json_response(body)
        trace.lap("write")
        gave = [pick.team == 1 for pick in picks]
        self._kept.keep_interleaved(parts, params, gave, body, trace, wanted=keeps)
        return response

    def _items(self, parts: Sequence[ArmPart], params: RecommendRequest, picks: Sequence[Pick]) -> list[dict[str, Any]]:
        """The items in their order, each with the arm that gave it."""
        of_arms = [iter(self._bodies.items(part.bundle, params, part.answer)) for part in parts]
        return [{**next(of_arms[pick.team]), "arm": parts[pick.team].label} for pick in picks]

    def _alone(
        self,
        both: InterleavedArms,
        params: RecommendRequest,
        found: tuple[_Found, _Found],
        trace: Trace,
        *,
        keeps: bool,
    ) -> Response:
        """The answer of one arm: of the first that is complete, else of the first that does not refuse."""
        answers = [(arm, one) for arm, one in zip(both.arms, found, strict=True) if isinstance(one, Recommendations)]
        if not answers:
            raise next(one for one in found if not isinstance(one, Recommendations))
        arm, answer = next((pair for pair in answers if _complete(pair[1])), answers[0])
        page = _page(arm, params, answer, range(params.offset, len(answer.rows)))
        body = self._bodies.body(arm.bundle, params, page, trace, wanted="sequence")
        response = json_response(body)
        trace.lap("write")
        apart = {arm.label: not _complete(one) for arm, one in zip(both.arms, found, strict=True)}
        self._kept.keep(arm.bundle, params, page, body, trace, wanted=keeps, apart=apart)
        return response


async def _rankings(
    both: InterleavedArms, params: RecommendRequest, recommender: Recommender, trace: Trace, *, keeps: bool
) -> tuple[_Found, _Found]:
    """The ranking of each arm, from its beginning to the end of the page."""
    # Under overload no history is read.
    owners = () if trace.overloaded else recommend_query(both.arms[0].bundle, params).owners
    histories = BatchHistories(recommender.histories, owners, None)
    recommender = recommender.with_histories(histories)
    try:
        first, second = await asyncio.gather(
            *(_ranking(arm, params, recommender, trace, keeps=keeps) for arm in both.arms)
        )
    finally:
        histories.close()
    return first, second


async def _ranking(
    arm: RequestArm, params: RecommendRequest, recommender: Recommender, trace: Trace, *, keeps: bool
) -> _Found:
    """The ranking of an arm, or why its bundle refuses the request."""
    try:
        check_fields(arm.bundle, params.fields)
        return await recommender.recommend(arm.bundle, _query(arm, params, keeps=keeps), trace)
    except _REFUSALS as error:
        return error


def _query(arm: RequestArm, params: RecommendRequest, *, keeps: bool) -> Query:
    query = recommend_query(arm.bundle, arm.applied(params), contributions_later=keeps)
    return replace(query, from_start=True)


def _drafted(both: InterleavedArms, params: RecommendRequest, rankings: Sequence[Recommendations]) -> list[Pick]:
    """The merged ranking from its beginning to the end of the page, so that all pages are parts of one."""
    first, second = (
        [arm.bundle.ids.id(row) for row in ranking.rows.tolist()]
        for arm, ranking in zip(both.arms, rankings, strict=True)
    )
    coins = coins_of(both.salt, both.owner, [*first[:1], *second[:1]])
    length = params.offset + params.k
    # What both arms promise holds for the merged ranking: of their new items some may be the same.
    share = min(_share(arm, params, ranking) for arm, ranking in zip(both.arms, rankings, strict=True))
    if not share:
        return team_draft((first, second), length, coins)
    new_of_first, new_of_second = (
        is_new(arm.bundle, ranking.rows).tolist() for arm, ranking in zip(both.arms, rankings, strict=True)
    )
    return team_draft((first, second), length, coins, (new_of_first, new_of_second), partial(places_for_new, share))


def _share(arm: RequestArm, params: RecommendRequest, ranking: Recommendations) -> float:
    """The share of the places of an arm's ranking that is kept for new items."""
    return 0.0 if ranking.strategy == "popular" else fresh_share_of(arm.bundle, arm.applied(params))


def _page(
    arm: RequestArm, params: RecommendRequest, ranking: Recommendations, places: Iterable[int]
) -> Recommendations:
    """The items at some places of an arm's ranking; best first, as on a page of that arm alone."""
    if arm.applied(params).diversity > 0:
        return ranking.chosen([*places])
    scores = ranking.scores.tolist()
    return ranking.chosen(sorted(places, key=lambda place: -scores[place]))


def _complete(found: _Found) -> TypeGuard[Recommendations]:
    return isinstance(found, Recommendations) and found.degraded is None


def _summary(part: ArmPart) -> dict[str, Any]:
    return {
        "arm": part.label,
        "bundle": part.bundle.id,
        "strategy": part.answer.strategy,
        "history_used": part.answer.history_used,
        "unknown_items": part.answer.unknown_items,
    }
