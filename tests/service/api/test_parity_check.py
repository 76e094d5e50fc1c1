"""ParityCheck on the whole application agrees with its bundle and notices every change."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from cli.errors import LiveServiceError
from cli.online.parity_check import ParityCheck
from index.bundle.bundle import Bundle
from index.errors import SearchError
from index.items.item_table import ItemTable
from tests.support.listed_bundles import bundle_with_new_items
from tests.support.shops import ADMIN, AS_ADMIN, OpenClient

Change = Callable[[dict[str, Any]], Any]


class InProcess:
    """The application itself as the live service; its answers may be tampered with."""

    def __init__(self, client: TestClient, change: Change = lambda answer: answer) -> None:
        self.client, self.change = client, change
        self.asked: list[str] = []

    def recommend(self, items: list[str], k: int, *, keeps_places: bool) -> dict[str, Any]:
        sent = {"items": items, "k": k} | ({"fresh_share": 0} if keeps_places else {})
        answer: dict[str, Any] = self.client.post("/recommend", json=sent).json()
        self.change(answer)
        return answer

    def available(self, item_id: str) -> bool:
        self.asked.append(item_id)
        return bool(self.client.get(f"/items/{item_id}").json()["available"])


class SameEncoder:
    """What PyTorch would say: the bundle's own answer, or a little more."""

    def __init__(self, bundle: Bundle, more: float = 0.0) -> None:
        self.bundle, self.more = bundle, more

    def encode(self, histories: list[Any]) -> Any:
        return self.bundle._encoder.encode(histories) + np.float32(self.more)


@pytest.fixture(scope="module")
def live(open_client: OpenClient) -> Iterator[TestClient]:
    with open_client(admin_keys=[ADMIN]) as client:
        yield client


def checked(bundle: Bundle, service: InProcess, torch: Any = None, k: int = 20, **asked: Any) -> ParityCheck:
    check = ParityCheck(bundle, service, torch, k=k, tolerance=1e-4)
    for history in check.histories(asked.get("most", 100), asked.get("items", [])):
        check.ask(history)
    return check


@pytest.mark.parametrize("k", [1, 20, 100])
def test_the_service_agrees_with_its_bundle(bundle: Bundle, live: TestClient, k: int) -> None:
    given = ["i3", "i10", "ein Tee/grün", "i11"]  # i3 has no slot
    check = checked(bundle, InProcess(live), SameEncoder(bundle), k, items=given)
    for pair in check.pairs:
        assert pair.agrees, pair.wrong
        assert (pair.histories, pair.identical) == (4, 4)
        assert pair.difference < 1e-5


def test_places_for_new_items_are_left_out(
    open_client: OpenClient, small_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    built = bundle_with_new_items(small_table, small_encoder, tmp_path, [6, 13, 20, 27, 34], fresh_share=0.5)
    with open_client() as client:
        client.app.state.active_bundle.swap(Bundle.load(built))
        check = checked(Bundle.load(built), InProcess(client), k=10)
        assert [pair.identical for pair in check.pairs if pair.histories] == [3]


def test_probes_are_spread(bundle: Bundle, live: TestClient) -> None:
    check = ParityCheck(bundle, InProcess(live), None, k=1, tolerance=1e-4)
    assert [history.tolist() for history in check.histories(2, [])] == [[1, 2, 4], [20]]
    with pytest.raises(SearchError, match="--item 'nothing' is not in bundle"):
        check.histories(2, ["nothing"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda answer: answer["items"][2].update(score=answer["items"][2]["score"] + 0.001), "scores"),
        (lambda answer: answer["items"].reverse(), "instead of"),
        (lambda answer: answer["items"].pop(), "19 items instead of 20"),
        (lambda answer: answer["items"][0].update(item_id="i2"), "'i2' at rank 1 is unknown or excluded"),
        (lambda answer: answer.update(strategy="popular", degraded="overload"), "by popular, degraded: overload"),
    ],
)
def test_a_service_that_answers_otherwise_is_noticed(
    bundle: Bundle, live: TestClient, change: Change, says: str
) -> None:
    (pair,) = checked(bundle, InProcess(live, change), most=1).pairs
    assert not pair.agrees
    assert len(pair.wrong) == 1
    assert says in pair.wrong[0]


def test_an_encoder_that_says_otherwise_is_noticed(bundle: Bundle, live: TestClient) -> None:
    exported, served = checked(bundle, InProcess(live), SameEncoder(bundle, 0.01)).pairs
    assert (exported.agrees, served.agrees) == (False, True)
    assert exported.difference > 0.001


def test_hidden_items_are_not_missed(bundle: Bundle, live: TestClient) -> None:
    best = live.post("/recommend", json={"items": ["i1", "i2", "i4"], "k": 2}).json()["items"]
    hidden = [item["item_id"] for item in best]
    for item_id in hidden:
        live.put(f"/items/{item_id}/availability", json={"available": False}, headers=AS_ADMIN)
    try:
        service = InProcess(live)
        (pair,) = checked(bundle, service).pairs
        assert pair.agrees, pair.wrong
        assert set(hidden) <= set(service.asked)
        assert len(service.asked) == len(set(service.asked))
    finally:
        for item_id in hidden:
            live.put(f"/items/{item_id}/availability", json={"available": True}, headers=AS_ADMIN)


def test_a_swap_meanwhile_ends_it(bundle: Bundle, live: TestClient, day_bundles: list[Path]) -> None:
    with pytest.raises(LiveServiceError, match=f"answers with bundle {bundle.id} by now"):
        checked(Bundle.load(day_bundles[0]), InProcess(live))
    with pytest.raises(LiveServiceError, match="items of another form"):
        checked(bundle, InProcess(live, lambda answer: answer["items"][0].pop("score")))
