"""Experiments while bundles, other experiments and definitions change."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from index.build.build import build_bundle
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from service.errors import Conflict, OutcomesUnavailable
from service.experiments.experiment import Arm, Experiment
from tests.service.outcomes.test_experiments_over_http import USERS, asked, of_bundles, put
from tests.support.shops import AS_ADMIN, OpenClient, Shop, eventually, other_bundle

SEASONS = {"filter": {"must": [{"field": "season", "eq": "summer"}]}}


@pytest.fixture
def opened(open_shop: OpenClient) -> Iterator[TestClient]:
    with open_shop(outcomes=True) as client:
        yield client


@pytest.fixture
def seasonal(shop: Shop, small_table: ItemTable, small_encoder: Path, tmp_path: Path) -> str:
    """A bundle in the registry whose items have another field."""
    metadata = small_table.metadata.append_column("season", [["summer"] * len(small_table)])
    table, queries = (
        dataclasses.replace(small_table, metadata=metadata),
        EvaluationQueries(np.array([[1, 2]]), np.array([5])),
    )
    return shop.put(build_bundle(table, small_encoder, queries, tmp_path / "seasonal"))


def with_defaults(bundle: str | None, defaults: dict[str, Any]) -> dict[str, Any]:
    control, other = of_bundles(None, bundle)["arms"]
    return {"arms": [control, {**other, "defaults": defaults}]}


def state_of(client: TestClient, name: str) -> tuple[str, str | None]:
    found = client.get(f"/experiments/{name}", headers=AS_ADMIN).json()
    return found["state"], found["reason"]


def test_an_item_that_only_the_other_bundle_has_can_be_hidden(
    opened: TestClient, shop: Shop, small_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    put(opened, "models", of_bundles(None, shop.put(other_bundle(small_table, small_encoder, tmp_path, 9, names="x"))))

    def popular() -> set[str]:
        answers = (opened.post("/recommend", json={"user_id": user, "k": 100}).json() for user in USERS)
        return {item["item_id"] for answer in answers for item in answer["items"]}

    assert {"i7", "x7"} <= popular()
    for available in (False, True):
        answer = opened.put("/items/x7/availability", json={"available": available}, headers=AS_ADMIN)
        assert answer.status_code == 204
        assert ("x7" in popular()) is available
    assert "i7" in popular()
    answer = opened.put("/items/y7/availability", json={"available": False}, headers=AS_ADMIN)
    assert answer.status_code == 404


def test_defaults_are_held_to_the_bundle_of_their_arm(opened: TestClient, shop: Shop, seasonal: str) -> None:
    detail = put(opened, "summer", with_defaults(shop.ids[1], SEASONS), 422)["detail"]
    assert "unknown field 'season'" in detail
    assert opened.app.state.watcher.experiments._loaded.previous is None, "it was loaded for nothing"  # type: ignore[attr-defined]
    assert opened.get("/experiments/summer", headers=AS_ADMIN).status_code == 404
    assert put(opened, "summer", with_defaults(seasonal, SEASONS))["state"] == "running"
    arms = {asked(opened, user)["arm"] for user in USERS}
    assert arms == {"summer/arm-0", "summer/arm-1"}


def test_defaults_that_the_bundle_of_their_arm_alone_lacks_are_refused(
    opened: TestClient, shop: Shop, seasonal: str
) -> None:
    shop.point(seasonal)
    eventually(lambda: opened.get("/bundle").json()["bundle"] == seasonal)
    assert "unknown field 'season'" in put(opened, "summer", with_defaults(shop.ids[2], SEASONS), 422)["detail"]
    assert "arm" not in asked(opened, "anna")


def test_an_experiment_says_that_its_defaults_do_not_fit_a_new_bundle(
    opened: TestClient, shop: Shop, seasonal: str
) -> None:
    shop.point(seasonal)
    eventually(lambda: opened.get("/bundle").json()["bundle"] == seasonal)
    put(opened, "summer", with_defaults(None, SEASONS))
    shop.point(shop.ids[1])
    eventually(lambda: opened.get("/bundle").json()["bundle"] == shop.ids[1])
    assert "arm" not in asked(opened, "anna")
    state, reason = state_of(opened, "summer")
    assert (state, str(reason).split(" (")[0]) == ("paused", f"bundle {shop.ids[1]} does not fit arm arm-1")
    assert str(reason).endswith("All users get the active bundle and are in no arm")
    shop.point(seasonal)
    eventually(lambda: state_of(opened, "summer") == ("running", None))


def test_of_two_experiments_that_start_at_once_one_runs(open_shop: OpenClient, shop: Shop) -> None:
    """Both replicas have seen that none runs; one of them writes first."""
    with open_shop(outcomes=True) as one, open_shop(outcomes=True, poll_ms=60_000) as other:
        bundles, state = (getattr(other.app.state.watcher, name) for name in ("experiments", "_operator_state"))  # type: ignore[attr-defined]
        obtain = bundles._obtain

        async def slowly(named: frozenset[str]) -> None:
            await obtain(named)
            await asyncio.to_thread(put, one, "first", of_bundles(None, None))

        bundles._obtain = slowly
        detail = put(other, "second", of_bundles(None, None), 409)["detail"]
        assert detail.startswith("another experiment was started or ended meanwhile")
        assert state_of(one, "first") == ("running", None)
        bundles._obtain = obtain
        refused = put(other, "second", of_bundles(None, None), 409)
        assert "experiment first runs, and one runs at a time" in refused["detail"]
        arms = (Arm("a", 0.5), Arm("b", 0.5))

        async def unchecked() -> None:  # past the check of the route, as for two requests at once
            await bundles.start(Experiment("second", "salt", arms), lambda: None)

        with pytest.raises(Conflict, match="experiment first runs, and one runs at a time"):
            other.portal.call(unchecked)  # type: ignore[union-attr]
        assert state.experiment.name == "first"


def test_an_experiment_that_began_meanwhile_is_not_ended(open_shop: OpenClient, monkeypatch: Any) -> None:
    with open_shop(outcomes=True) as one, open_shop(outcomes=True) as other:
        put(one, "first", of_bundles(None, None))
        noted = other.app.state.watcher._operator_state  # type: ignore[attr-defined]
        log_change = noted.log_change

        async def slowly(entry: Any) -> None:
            await log_change(entry)
            await asyncio.to_thread(replace_first, one)

        monkeypatch.setattr(noted, "log_change", slowly)
        assert other.delete("/experiments/first", headers=AS_ADMIN).status_code == 409
        assert state_of(one, "second") == ("running", None)


def replace_first(client: TestClient) -> None:
    assert client.delete("/experiments/first", headers=AS_ADMIN).status_code == 204
    put(client, "second", of_bundles(None, None))


def test_a_definition_that_expired_while_it_ran_is_kept_again(opened: TestClient, monkeypatch: Any) -> None:
    put(opened, "long", of_bundles(None, None))
    store = next(
        route.endpoint.__self__._given_store
        for route in opened.app.routes  # type: ignore[attr-defined]
        if getattr(route, "path", "") == "/experiments/{name}" and hasattr(route.endpoint, "__self__")
    )
    lifetimes: list[str] = []
    describe = store.describe

    async def noted(name: str, definition: str) -> None:
        lifetimes.append(name)
        await describe(name, definition)

    monkeypatch.setattr(store, "describe", noted)
    assert opened.get("/experiments/long/groups", headers=AS_ADMIN).status_code == 200
    assert lifetimes == ["long"]
    assert opened.delete("/experiments/long", headers=AS_ADMIN).status_code == 204
    assert lifetimes == ["long", "long"]
    assert opened.get("/experiments/long/groups", headers=AS_ADMIN).json()["experiment"]["state"] == "ended"


def test_an_experiment_can_be_ended_while_nothing_can_be_described(opened: TestClient, monkeypatch: Any) -> None:
    put(opened, "long", of_bundles(None, None))

    async def failing(*_given: Any) -> None:
        raise OutcomesUnavailable("Redis did not answer")

    monkeypatch.setattr("service.stores.outcomes.redis_outcomes.RedisOutcomes.describe", failing)
    assert opened.delete("/experiments/long", headers=AS_ADMIN).status_code == 204
    assert state_of(opened, "long")[0] == "ended"
