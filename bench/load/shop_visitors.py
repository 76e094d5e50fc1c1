"""Makes the visitors of a simulated shop, whose click probabilities are known, and sends what they do to a service."""

import http.client
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle

K = 10
POSITION_BIAS = 1.0 / np.arange(1, K + 1) ** 0.5
"""Probability that a visitor looks at a position, relative to the first."""

_LEAST_APPEAL, _PREFERENCE = 0.15, 0.5
_LOOKED_AT_FIRST = 3
_EAGERNESS = 9.0  # shape of the Gamma distribution of the visitors' eagerness, of mean 1
_BOUGHT, _DISLIKED = 0.2, 0.05  # of the clicks, and of the items without one at the first position
_REPEATED, _BY_A_STRANGER, _WITHOUT_REQUEST_ID = 0.1, 0.05, 0.1


class ShopClient:
    """One kept connection to a service; of one thread.

    Args:
        port: where the service listens.
        admin_key: for its admin routes.
    """

    def __init__(self, port: int, admin_key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"content-type": "application/json", "x-api-key": admin_key}

    def call(self, method: str, path: str, body: Any = None) -> Any:  # noqa: ANN401 - any JSON value
        """Send a request; the JSON of its answer.

        Raises:
            RuntimeError: the status is not 2xx.
        """
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        found = answer.read()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {found.decode(errors='replace')[:300]}")
        return json.loads(found) if found else None

    def metric(self, name: str) -> dict[str, float]:
        """The values of a metric with one label, by its value."""
        self._connection.request("GET", "/metrics")
        exposition = self._connection.getresponse().read().decode()
        lines = re.findall(rf'^{name}{{\w+="(\w+)"}} (\S+)$', exposition, re.MULTILINE)
        return {label: float(value) for label, value in lines}

    def reconnect(self) -> None:
        """Open another connection with the next request."""
        self._connection.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@dataclass
class Truth:
    """What visitors were shown and did, as the simulation knows it.

    Attributes:
        answers: by arm.
        probability: sum of the click probabilities by arm; a click is counted once for an item and answer.
        at_position: the same by position, (K,) float64.
        clicks: that were drawn, (K,) int64 by position.
        wins: of interleaved answers, by the arm whose items got more clicks; under an empty name the ties.
        shown: items by position, (K,) int64.
        purchases: of clicked items.
        revenue: of the purchases.
    """

    answers: Counter[str] = field(default_factory=Counter)
    probability: Counter[str] = field(default_factory=Counter)
    at_position: NDArray[np.float64] = field(default_factory=lambda: np.zeros(K))
    clicks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(K, dtype=np.int64))
    shown: NDArray[np.int64] = field(default_factory=lambda: np.zeros(K, dtype=np.int64))
    wins: Counter[str] = field(default_factory=Counter)
    purchases: int = 0
    revenue: float = 0.0

    def __add__(self, other: Self) -> "Truth":
        return Truth(
            self.answers + other.answers,
            self.probability + other.probability,
            self.at_position + other.at_position,
            self.clicks + other.clicks,
            self.shown + other.shown,
            self.wins + other.wins,
            self.purchases + other.purchases,
            self.revenue + other.revenue,
        )


@dataclass(frozen=True)
class Visitors:
    """Visitors who like what resembles their favourite item, and look at the first positions most.

    Attributes:
        bundle: the one that the service answers with; its vectors say what resembles what.
        lifts: factor of the click probability by arm, as in ``{"ranking/better": 1.1}``; of an interleaved answer by
            the arm of each item.
        visits: of each visitor.
        seed: of everything; a visitor does not depend on the others.
        name: of the visitors, before their numbers.
    """

    bundle: Bundle
    lifts: dict[str, float]
    visits: int
    seed: int
    name: str = "visitor"

    def visit(self, client: ShopClient, number: int) -> Truth:
        """All visits of one visitor: ask, look, click, buy, and tell the service.

        Args:
            client: of the service.
            number: of the visitor.
        """
        rng, bundle, truth = np.random.default_rng((self.seed, number)), self.bundle, Truth()
        user, eagerness = f"{self.name}-{number}", rng.gamma(_EAGERNESS, 1.0 / _EAGERNESS)
        favourite = bundle.vectors(rng.choice(np.flatnonzero(bundle.indexed), 1))
        near = bundle.search(favourite, _LOOKED_AT_FIRST).rows[0]
        views = [{"user_id": user, "item_id": bundle.ids.id(int(row)), "type": "view"} for row in near if row >= 0]
        client.call("POST", "/events", {"events": views})
        for _ in range(self.visits):
            # A session for every visit: the arm must remain that of the user.
            session = f"{user}-{rng.integers(2**32)}"
            answer = client.call("POST", "/recommend", {"user_id": user, "session_id": session, "k": K})
            items = [item["item_id"] for item in answer["items"]]
            rows, _ = bundle.ids.rows(items)
            likeness = np.maximum(bundle.vectors(rows) @ favourite[0], 0.0)
            arms = [item.get("arm", answer["arm"]) for item in answer["items"]]
            lifts = np.array([self.lifts[arm] for arm in arms])
            appeal = (_LEAST_APPEAL + _PREFERENCE * likeness) * eagerness * lifts
            chances = np.minimum(appeal * POSITION_BIAS[: len(items)], 1.0)
            clicked = rng.random(len(items)) < chances
            truth.answers[answer["arm"]] += 1
            truth.probability[answer["arm"]] += chances.sum()
            truth.at_position[: len(items)] += chances
            truth.clicks[: len(items)] += clicked
            if "interleaved" in answer:
                winner = winner_of(arms, clicked)
                truth.wins += Counter([] if winner is None else [winner])
            truth.shown[: len(items)] += 1
            shared = {"user_id": user, "session_id": session}
            events = _events(shared, items, clicked, answer["request_id"], rng, truth)
            client.call("POST", "/events", {"events": events})
        return truth


def winner_of(arms: list[str], clicked: NDArray[np.bool_]) -> str | None:
    """The arm whose items got more clicks; an empty name where both got as many, None without a click.

    Args:
        arms: that gave each item, two different ones at most.
        clicked: (items,) bool.
    """
    clicks = Counter(arm for arm, found in zip(arms, clicked.tolist(), strict=True) if found).most_common()
    if not clicks:
        return None
    tied = len(clicks) > 1 and clicks[0][1] == clicks[1][1]
    return "" if tied else clicks[0][0]


def _events(
    shared: dict[str, str],
    items: list[str],
    clicked: NDArray[np.bool_],
    request_id: str,
    rng: np.random.Generator,
    truth: Truth,
) -> list[dict[str, Any]]:
    """What a visitor does with an answer, with what clients do wrong: repeats, foreign and missing request ids."""
    own = {**shared, "request_id": request_id}
    events: list[dict[str, Any]] = [{**own, "item_id": item, "type": "impression"} for item in items]
    if items and not clicked[0] and rng.random() < _DISLIKED:
        events.append({**own, "item_id": items[0], "type": "dislike"})
    for place in np.flatnonzero(clicked):
        click = {"item_id": items[place], "type": "click"}
        events.append({**(shared if rng.random() < _WITHOUT_REQUEST_ID else own), **click})
        if rng.random() < _REPEATED:
            events.append({**own, **click})
        if rng.random() < _BOUGHT:
            value = round(float(rng.lognormal(3.0, 1.0)), 2)
            events += [{**own, "item_id": items[place], "type": "cart"}]
            events += [{**own, "item_id": items[place], "type": "purchase", "value": value}]
            truth.purchases += 1
            truth.revenue += value
    if rng.random() < _BY_A_STRANGER:
        stranger = {"user_id": "a stranger", "request_id": request_id}
        events += [{**stranger, "item_id": item, "type": "click"} for item in items]
    return events
