"""What all peers do is what the bundle itself gives; what differs is only how a request is written down."""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from starlette.testclient import TestClient

from bench.load.histories import fill, user_id
from bench.peers.answering import Answering, key_of
from bench.serving.contenders import EVERYONE, OURS, PEERS, Contender
from bench.serving.quality import kinds_of, recall_served, same_as_bundle
from index.bundle.bundle import Bundle
from service.app import create_app
from service.bundles.startup import Startup
from service.settings.load import load_settings

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


@pytest.fixture(scope="module")
def served(small_bundle: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The service on the small bundle, whose index is exact."""
    settings = load_settings(
        registry="unused",
        redis_url=redis_url,
        redis_prefix=f"test-{uuid.uuid4().hex}",
        redis_timeout_ms=5000,
        directives_file=tmp_path_factory.mktemp("state") / "directives.json",
    )
    with TestClient(create_app(settings, startup=Startup(Bundle.load(small_bundle)))) as client:
        yield client


def test_recall_is_one_for_exact_answers_and_half_for_half(
    small_bundle: Path, served: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(small_bundle)
    monkeypatch.setattr("bench.serving.quality.GROUP", "price")
    histories = np.array([[1, 2], [10, 11]])

    def answered(number: int, extra: Mapping[str, Any]) -> list[str]:
        body = {"items": [bundle.ids.id(int(row)) for row in histories[number]], "k": 20, **extra}
        return [item["item_id"] for item in served.post("/recommend", json=body).raise_for_status().json()["items"]]

    kinds = kinds_of(bundle)
    assert {"text alone", "image alone", "text x3", "filtered 10 %"} <= set(kinds)
    for name, kind in kinds.items():
        if name == "filtered 1 %":
            continue  # only item 0 costs less than 1, and nothing less than that
        assert recall_served(bundle, histories, kind, answered) == 1.0, name
        assert recall_served(bundle, histories, kind, lambda n, e: answered(n, e)[::2]) == pytest.approx(0.5, abs=0.05)
    assert same_as_bundle(bundle, histories, answered) == 1.0
    assert same_as_bundle(bundle, histories, lambda n, e: answered(n, e)[::-1]) == 0.0
