"""What all peers do is what the bundle itself gives; what differs is only how a request is written down."""

import json
from pathlib import Path

import numpy as np
import pytest
import redis

from bench.load.histories import fill, user_id
from bench.peers.answering import Answering, key_of
from bench.serving.contenders import EVERYONE, OURS, PEERS, Contender
from bench.serving.quality import kinds_of, recall_served, same_as_bundle
from index.bundle.bundle import Bundle

HISTORIES = [[1, 2, 4], [10, 11], [20]]


def entries(bundle: Bundle, rows: list[int]) -> list[bytes]:
    """As `service.stores.redis_histories` stores them."""
    return [f"{bundle.ids.id(row)}\x1f1700000000\x1fview".encode() for row in rows]


def test_a_batch_is_answered_as_each_alone_and_without_what_was_seen(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_BUNDLE", str(small_bundle))
    bundle, answering = Bundle.load(small_bundle), Answering()
    stored = [entries(bundle, rows) for rows in HISTORIES]
    together = answering.answer(stored, [5, 7, 3])
    for rows, history, count, answer in zip(HISTORIES, stored, [5, 7, 3], together, strict=True):
        alone = answering.answer([history], [count])[0]
        assert [item["item_id"] for item in alone["items"]] == [item["item_id"] for item in answer["items"]]
        query = bundle.encode([np.array(rows)])[0]
        scores = bundle.vectors(np.arange(len(bundle))) @ query
        scores[rows] = -np.inf
        scores[~bundle.indexed] = -np.inf
        right = [bundle.ids.id(int(row)) for row in np.argsort(-scores, kind="stable")[:count]]
        assert [item["item_id"] for item in answer["items"]] == right


def test_peers_read_what_the_service_stores(redis_url: str) -> None:
    fill(redis_url, [["i1", "i2"]], first=0)
    with redis.Redis.from_url(redis_url) as client:
        stored = client.lrange(key_of(user_id(0)), 0, -1)
        client.delete(key_of(user_id(0)))
    assert [entry.partition(b"\x1f")[0] for entry in stored] == [b"i1", b"i2"]


@pytest.mark.parametrize("contender", EVERYONE, ids=lambda one: one.name)
def test_bodies_and_answers_fit_together(contender: Contender) -> None:
    body = json.loads(contender.body({"user_id": "u", "k": 2}))
    items = {"items": [{"item_id": "a", "score": 1.0}, {"item_id": "b", "score": 0.5}]}
    if contender.in_a_list:
        assert body == {"asks": [{"user_id": "u", "k": 2}]}
        assert contender.items(json.dumps([items]).encode()) == ["a", "b"]
    else:
        assert body == {"user_id": "u", "k": 2}
        assert contender.items(json.dumps(items).encode()) == ["a", "b"]


def test_no_contender_gets_the_variables_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    for contender in (OURS, *PEERS):
        variables = contender.variables(port=1234, bundle="b", redis="r")
        assert "OPENBLAS_CORETYPE" not in variables
        assert (variables["OPENBLAS_NUM_THREADS"], variables["OMP_NUM_THREADS"]) == ("1", "1")
    assert PEERS[-1].variables(port=1234, bundle="b", redis="r")["MOSEC_PORT"] == "1234"


def test_each_environment_has_a_pinned_list() -> None:
    root = Path(__file__).parents[3]
    project = dict(line.split("==") for line in (root / "constraints/cpu.txt").read_text().split() if "==" in line)
    for contender in PEERS:
        if contender.peer is None:
            continue
        lines = (root / "bench" / "requirements" / f"{contender.peer}.txt").read_text().splitlines()
        pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
        assert {"numpy", "faiss-cpu", "onnxruntime", "redis", "hiredis", "orjson"} <= set(pinned)
        for name in ("numpy", "faiss-cpu", "onnxruntime", "redis", "hiredis", "orjson"):
            assert pinned[name] == project[name], f"{contender.name} would not use the same {name}"


def test_recall_is_one_for_exact_answers_and_half_for_half(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(small_bundle)
    monkeypatch.setattr("bench.serving.quality.GROUP", "price")
    histories = np.array([[1, 2], [10, 11]])
    vectors = bundle.vectors(np.arange(len(bundle)))

    def exact(number: int, extra: object) -> list[str]:
        weights = bundle.layout.weights(extra.get("slot_weights", {}))
        scores = vectors @ (bundle.encode([histories[number]])[0] * weights)
        scores[histories[number]] = -np.inf
        scores[~bundle.indexed] = -np.inf
        if "filter" in extra:
            bound = extra["filter"]["must"][0]["lt"]
            prices = [bundle.fields(row)["price"] for row in range(len(bundle))]
            scores[[price is None or price >= bound for price in prices]] = -np.inf
        ranked = np.argsort(-scores, kind="stable")
        return [bundle.ids.id(int(row)) for row in ranked if np.isfinite(scores[row])][:20]

    for name, kind in kinds_of(bundle).items():
        if name == "filtered 1 %":
            continue  # only item 0 costs less than 1, and nothing less than that
        assert recall_served(bundle, histories, kind, exact) == 1.0, name
        assert recall_served(bundle, histories, kind, lambda n, e: exact(n, e)[::2]) == pytest.approx(0.5, abs=0.05)
    assert same_as_bundle(bundle, histories, exact) == 1.0
    assert same_as_bundle(bundle, histories, lambda n, e: exact(n, e)[::-1]) == 0.0
