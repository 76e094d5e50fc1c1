"""Simulates a shop whose truth is known, against the real service, and compares what the service finds with the truth.

    python -m bench.load.simulated_shop

Seven measurements, each stored when it is done, so that an interrupted run goes on where it was:

- types: users with events of several types; the answers must be those of the formula in docs/method.md, point 5,
  computed here without the service.
- attribution: visitors with known preferences and position bias look, click and buy over HTTP; `GET /outcomes` must
  find the click rate of each position.
- experiment: in one arm every click is 10 % more probable; the report must find that arm. The same visitors.
- interleaved: answers with items of both arms, whose clicks are 10 % more probable for one of them; the service must
  count the wins of each arm as the visitors do.
- traffic: how many answers an A/B test and an interleaved one need to find the better of two rankings, in a shop whose
  visitors' preferences are known; only counts are simulated.
- a-a, a-a-interleaved: 200 experiments of either kind without a difference, looked at every hour for a week; at most
  16 false alarms of each. Only counts are simulated here, as a week of traffic over HTTP takes a week; the test is that
  of the report.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.load.repeated_experiments import SimulatedTraffic
from bench.load.repeated_interleaving import InterleavedTraffic, RankedShop, sample_sizes
from bench.load.shop import Service, Shop, open_shop
from bench.load.shop_visitors import K, ShopClient, Truth, Visitors
from bench.measurements import Measurements
from demo.embedded_redis import EmbeddedRedis
from index.bundle.bundle import Bundle
from index.bundle.event_types import DEFAULT_EVENT_TYPES
from service.experiments.interleaved_report import interleaved_report
from service.experiments.report import experiment_report

_ROOT = Path(__file__).parents[2]
_ADMIN_KEY = "an-admin-key-for-the-shop"
# A busy machine must not end a run: Redis, on the same cores, may take long to answer.
_SETTINGS = {"outcomes": "true", "admin_keys": _ADMIN_KEY, "redis_timeout_ms": "5000"}
_EXPERIMENT = "ranking"
_LIFT = 1.1
_ARMS = [
    {"name": "control", "share": 0.5},
    {"name": "better", "share": 0.5, "defaults": {"slot_weights": {"image": 1.2}}},
]
_DRAFT = "draft"
_BLURS = {"one choice a visit": (True, 0.52), "independent clicks": (False, 0.68)}  # about 10 % more clicks in an arm
_LIFTS = {f"{_EXPERIMENT}/control": 1.0, f"{_EXPERIMENT}/better": _LIFT}
_TYPES = ("view", "cart", "purchase", "like", "dislike", "return", "impression")
_TOLERANCE = 2e-4  # of a score, as the service searches in blocks and the bench does not
_MOST_FALSE_ALARMS = 0.08  # 16 of 200
_Z_95 = 1.96
_Z_ALL = 2.81  # for all ten positions at once (Bonferroni)
_CLIENTS = 4
_PATIENCE_S = 30.0


def types_change_answers(client: ShopClient, bundle: Bundle, users: int, seed: int) -> dict[str, Any]:
    """Compare answers to histories of several types with the formula.

    Args:
        client: of the service.
        bundle: the one that it answers with.
        users: how many.
        seed: of their events.
    """
    rng, wrong, changed = np.random.default_rng((seed, 1)), [], 0
    usable = np.flatnonzero(bundle.indexed)
    for number in range(users):
        rows = rng.choice(usable, int(rng.integers(2, 8)), replace=False)
        types = ["view", *rng.choice(_TYPES, len(rows) - 1)]
        user = f"typed-{number}"
        events = [
            {"user_id": user, "item_id": bundle.ids.id(int(row)), "type": kind}
            for row, kind in zip(rows, types, strict=True)
        ]
        client.call("POST", "/events", {"events": events})
        answer = client.call("POST", "/recommend", {"user_id": user, "k": K})
        scores, expected = _formula(bundle, rows, types)
        if not _agrees(bundle, answer, scores, expected):
            wrong.append({"user": user, "types": types})
        shown = [item for item, kind in zip(rows, types, strict=True) if kind != "impression"]
        _, plain = _formula(bundle, np.array(shown), ["view"] * len(shown))
        changed += bool((plain != expected).any())
    return {"users": users, "wrong": wrong[:5], "changed_by_types": changed, "holds": not wrong and changed > 0}


def _formula(
    bundle: Bundle, rows: NDArray[np.int64], types: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n,) scores of all items, -inf where excluded, and the (K,) best rows; docs/method.md, point 5."""
    table = np.array([DEFAULT_EVENT_TYPES.weights.get(kind, 0.0) for kind in types])
    rows, weights = rows[table != 0], table[table != 0]
    weights = weights / weights[weights > 0].mean()
    encoded = bundle.encode([rows[weights > 0]])[0].astype(np.float64)
    vectors = bundle.vectors(np.arange(len(bundle))).astype(np.float64)
    extra = np.where(weights > 0, weights - 1.0, weights)
    query = encoded + np.linalg.norm(encoded) * (extra @ vectors[rows]) / len(rows)
    scores = np.where(bundle.indexed, vectors @ query, -np.inf)
    scores[rows] = -np.inf
    return scores, np.argsort(-scores, kind="stable")[:K]


def _agrees(bundle: Bundle, answer: dict[str, Any], scores: NDArray[np.float64], expected: NDArray[np.int64]) -> bool:
    """Whether an answer has the scores of the formula, item by item, and none better is missing."""
    rows, _ = bundle.ids.rows([item["item_id"] for item in answer["items"]])
    received = np.array([item["score"] for item in answer["items"]])
    if answer["strategy"] != "sequence" or len(rows) != len(expected):
        return False
    own = bool(np.allclose(received, scores[rows], atol=_TOLERANCE))
    return own and bool(np.allclose(received, scores[expected], atol=_TOLERANCE))


def visited(port: int, visitors: Visitors, users: int) -> Truth:
    """Let all visitors visit, from a few connections at once."""

    def some(first: int) -> Truth:
        client = ShopClient(port, _ADMIN_KEY)
        try:
            return reduce(add, (visitors.visit(client, number) for number in range(first, users, _CLIENTS)), Truth())
        finally:
            client.close()

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return reduce(add, pool.map(some, range(_CLIENTS)))


def attribution(client: ShopClient, truth: Truth) -> dict[str, Any]:
    """Compare the click rates by position that the service counted with the true ones.

    Args:
        client: of the service.
        truth: of all visitors.
    """
    wanted = int(truth.clicks.sum())
    entries = _eventually(lambda: _positions(client), lambda found: sum(e["clicks"] for e in found) >= wanted)
    positions = []
    for entry, drawn, chances, shown in zip(entries, truth.clicks, truth.at_position, truth.shown, strict=True):
        true, found = float(chances / shown), entry["click_rate"]
        error = (found * (1 - found) / max(1, entry["impressions"])) ** 0.5
        positions.append(
            {
                "position": int(entry["value"]),
                "impressions": entry["impressions"],
                "clicks": entry["clicks"],
                "click_rate": found,
                "interval": [found - _Z_95 * error, found + _Z_95 * error],
                "true_click_rate": true,
                "within": bool(abs(found - true) <= _Z_95 * error),
                "exact": entry["clicks"] == int(drawn) and entry["impressions"] == int(shown),
                "within_for_all": bool(abs(found - true) <= _Z_ALL * error),
            }
        )
    conversions = sum(entry["conversions"] for entry in entries)
    revenue = sum(entry["revenue"] for entry in entries)
    return {
        "answers": sum(truth.answers.values()),
        "answers_of_the_service": client.metric("vlm2rec_outcome_answers_total"),
        "events_of_the_service": client.metric("vlm2rec_outcome_events_total"),
        "positions": positions,
        "positions_within": sum(entry["within"] for entry in positions),
        "conversions": {"found": conversions, "true": truth.purchases},
        "revenue": {"found": round(revenue, 2), "true": round(truth.revenue, 2)},
        "holds": all(entry["within_for_all"] and entry["exact"] for entry in positions)
        and conversions == truth.purchases
        and abs(revenue - truth.revenue) < 0.01,
    }


def _positions(client: ShopClient) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = client.call("GET", "/outcomes?by=position")["outcomes"]
    return entries


def experiment(client: ShopClient, truth: Truth) -> dict[str, Any]:
    """Read the report of the experiment.

    Args:
        client: of the service.
        truth: of all visitors.
    """
    found = client.call("GET", f"/experiments/{_EXPERIMENT}/groups")
    report = experiment_report(found["experiment"], found["groups"])
    candidate = report.candidates[0]
    control, better = (float(truth.probability[arm] / truth.answers[arm]) for arm in _LIFTS)
    return {
        "answers": {arm.name: arm.totals["answers"] for arm in report.arms},
        "clicks_per_answer": {arm.name: arm.rates["clicks"].value for arm in report.arms},
        "true_clicks_per_answer": {"control": control, "better": better},
        "lift": candidate.lift,
        "true_lift": better / control - 1,
        "interval": [candidate.test.low, candidate.test.high],
        "p": candidate.test.p,
        "mismatch_p": report.mismatch_p,
        "verdict": report.verdict,
        "holds": report.verdict == "keep" and bool(candidate.test.low <= better - control <= candidate.test.high),
    }


def interleaved(client: ShopClient, visitors: Visitors, users: int, port: int) -> dict[str, Any]:
    """Interleave the answers to further visitors, and compare the wins that the service counts with the true ones.

    Args:
        client: of the service.
        visitors: who come.
        users: how many.
        port: of the service.
    """
    client.call("PUT", f"/experiments/{_DRAFT}", {"salt": "shop", "arms": _ARMS, "interleave": True})
    truth = visited(port, visitors, users)
    client.reconnect()
    control, better = (truth.wins[arm] for arm in visitors.lifts)
    expected = {"control": control, "better": better, "ties": truth.wins[""]}

    def counted() -> dict[str, Any]:
        found: dict[str, Any] = client.call("GET", f"/experiments/{_DRAFT}/groups")
        return found

    def whole(found: dict[str, Any]) -> bool:
        return sum(entry.get("clicks", 0) for entry in found["groups"]) >= int(truth.clicks.sum())

    found = _eventually(counted, whole)
    report = interleaved_report(found["experiment"], found["groups"])
    wins = {arm.name: arm.wins for arm in report.arms} | {"ties": report.ties}
    return {
        "visitors": users,
        "answers": report.arms[0].totals["answers"],
        "items": {arm.name: arm.totals["shown"] for arm in report.arms},
        "wins": wins,
        "true_wins": expected,
        "preference": report.preference.value,
        "interval": [0.5 + report.test.low, 0.5 + report.test.high],
        "p": report.test.p,
        "verdict": report.verdict,
        "holds": wins == expected and report.verdict != "roll back",
    }


def traffic(repeats: int) -> dict[str, Any]:
    """Answers that either kind of experiment needs, by how visitors click."""
    found = {
        clicks: sample_sizes(RankedShop(one_choice, blur), repeats) for clicks, (one_choice, blur) in _BLURS.items()
    }
    sizes = [one["median_answers"] for one in found.values()]
    return {**found, "holds": all(size["interleaved"] < size["a/b"] for size in sizes)}


def a_a(repeats: int) -> dict[str, Any]:
    """Repeat experiments without a difference; simulated counts, the verdicts of the report."""
    traffic = SimulatedTraffic()
    found = traffic.repeated(repeats)
    alarms = found["better"] + found["worse"]
    about = {"users": traffic.users, "hours": traffic.hours, "base_rate": traffic.base_rate}
    about["answers_a_user"] = traffic.answers_an_hour * traffic.hours
    return {**about, "repeats": repeats, "false_alarms": alarms, "holds": alarms <= _MOST_FALSE_ALARMS * repeats}


def a_a_interleaved(repeats: int) -> dict[str, Any]:
    """The same for interleaved experiments."""
    traffic = InterleavedTraffic()
    found = traffic.repeated(repeats)
    alarms = found["better"] + found["worse"]
    about = {"users": traffic.users, "hours": traffic.hours}
    about["decided_answers_a_user"] = traffic.decided_an_hour * traffic.hours
    return {**about, "repeats": repeats, "false_alarms": alarms, "holds": alarms <= _MOST_FALSE_ALARMS * repeats}


def _eventually(read: Callable[[], Any], whole: Callable[[Any], bool]) -> Any:  # noqa: ANN401 - any JSON value
    """Read until all is counted, which is done once a second; the last answer when patience ends."""
    until = time.monotonic() + _PATIENCE_S
    while not whole(found := read()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def _over_http(shop: Shop, store: str, log: Path, options: argparse.Namespace, results: Measurements) -> None:
    """The measurements that need the service."""
    bundle = Bundle.load(shop.registry / shop.bundles[0])
    with Service(shop.registry, store, log, **_SETTINGS) as service:
        client = ShopClient(service.port, _ADMIN_KEY)
        if "types" not in results:
            started = time.monotonic()
            found = types_change_answers(client, bundle, options.typed_users, options.seed)
            results.put("types", found, took_s=time.monotonic() - started)
        if "attribution" not in results or "experiment" not in results:
            # Counts of an earlier start are gone with its Redis, so all visits are made again.
            started = time.monotonic()
            client.call("PUT", f"/experiments/{_EXPERIMENT}", {"salt": "shop", "arms": _ARMS})
            visitors = Visitors(bundle, _LIFTS, options.visits, options.seed)
            truth = visited(service.port, visitors, options.users)
            client.reconnect()  # the service has closed the connection, which was idle meanwhile
            results.put("attribution", attribution(client, truth), took_s=time.monotonic() - started)
            results.put("experiment", experiment(client, truth), took_s=time.monotonic() - started)
            client.call("DELETE", f"/experiments/{_EXPERIMENT}")
        if "interleaved" not in results:
            started = time.monotonic()
            lifts = {label.replace(_EXPERIMENT, _DRAFT): lift for label, lift in _LIFTS.items()}
            drafted = Visitors(bundle, lifts, options.visits, options.seed, "guest")
            found = interleaved(client, drafted, options.interleaved_users, service.port)
            results.put("interleaved", found, took_s=time.monotonic() - started)
        client.close()


def main() -> None:
    """Measure what is missing, and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000, help="rows of the catalogue")
    parser.add_argument("--users", type=int, default=2500, help="visitors of the experiment")
    parser.add_argument("--visits", type=int, default=4, help="of each visitor")
    parser.add_argument("--interleaved-users", type=int, default=600, help="visitors of the interleaved experiment")
    parser.add_argument("--traffic-repeats", type=int, default=20, help="shops in which both kinds are compared")
    parser.add_argument("--typed-users", type=int, default=200, help="histories of several types")
    parser.add_argument("--repeats", type=int, default=200, help="experiments without a difference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=_ROOT / ".bench", help="where built bundles are kept")
    parser.add_argument("--out", type=Path, default=_ROOT / "bench" / "results" / "shop.json")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("items", "users", "visits", "typed_users", "repeats", "seed")}
    results = Measurements(options.out, settings, fresh=options.fresh)
    names = ("types", "attribution", "experiment", "interleaved", "traffic", "a-a", "a-a-interleaved")
    if not all(name in results for name in names[:4]):
        options.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.work) as made, EmbeddedRedis(Path(made) / "redis") as store:
            shop = open_shop(options.work, options.items, Path(made))
            _over_http(shop, store.url, Path(made) / "service.log", options, results)
    if "traffic" not in results:
        started = time.monotonic()
        results.put("traffic", traffic(options.traffic_repeats), took_s=time.monotonic() - started)
    if "a-a" not in results:
        started = time.monotonic()
        results.put("a-a", a_a(options.repeats), took_s=time.monotonic() - started)
    if "a-a-interleaved" not in results:
        started = time.monotonic()
        results.put("a-a-interleaved", a_a_interleaved(options.repeats), took_s=time.monotonic() - started)
    print(json.dumps({name: results[name] for name in names}, indent=1))
    sys.exit(0 if all(results[name]["holds"] for name in names) else 1)


if __name__ == "__main__":
    main()
