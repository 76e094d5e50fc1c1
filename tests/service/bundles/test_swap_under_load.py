"""bench/load/swap.py on small bundles: what must hold at any size, without measuring time."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load.swap import (
    Answered,
    Server,
    SwapSetup,
    expected,
    judge,
    load,
    mixed,
    point_to,
    prepare_swaps,
    store_histories,
    swap_seconds,
)
from tests.support.shops import eventually


@contextlib.contextmanager
def asking(server: Server, setup: SwapSetup) -> Iterator[list[Answered]]:
    """Four clients meanwhile, each with one request after the other; gives the answers so far."""
    answers: list[Answered] = []
    ended = threading.Event()

    def ask(first: int) -> None:
        number = first
        while not ended.is_set():
            due = time.perf_counter()
            body = server.call("/recommend", json.loads(setup.bodies[number]))  # an error ends it: see `alive` below
            answers.append(Answered(number, due, time.perf_counter() - due, 200, body))
            number = (number + 1) % len(setup.bodies)

    clients = [threading.Thread(target=ask, args=(first,), daemon=True) for first in range(0, len(setup.bodies), 8)]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        alive = [client.is_alive() for client in clients]
        ended.set()
        for client in clients:
            client.join(60)
    assert alive == [True] * len(clients)


def swapped(server: Server, setup: SwapSetup, answers: list[Answered]) -> list[float]:
    """Move the pointer five times, each time once the swap before has come to something; the moments it moved."""
    moved = []
    for kind, bundle_id in setup.swaps:
        marker, refusals = f'"bundle":"{bundle_id}"'.encode(), server.metric("vlm2rec_bundle_refusals_total")
        moved.append(time.perf_counter())
        point_to(setup.registry, bundle_id)
        if kind == "good":
            eventually(lambda marker=marker: sum(marker in answer.body for answer in answers) > 20, 60)
        else:
            eventually(lambda n=refusals: server.metric("vlm2rec_bundle_refusals_total") == n + 1, 60)
    return moved


def test_five_swaps_under_load(day_bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.load.open_loop._PATIENCE_S", 120.0)
    setup = prepare_swaps(tmp_path, day_bundles[:3], histories=32)
    assert [kind for kind, _ in setup.swaps] == ["good", "good", "corrupt", "truncated", "good"]
    server = Server(setup.registry, tmp_path, VLM2REC_POLL_MS="50")
    try:
        store_histories(server, setup)
        with asking(server, setup) as answers:
            eventually(lambda: len(answers) > 20, 60)
            moved = swapped(server, setup, answers)
        eventually(lambda: server.metric("vlm2rec_bundle_swaps_total") == 3)  # metrics are at most a second old
        answers += load(server, setup, rate=80.0, seconds=0.5)
        wrong = mixed(answers, expected(setup))
        figures = judge(setup, answers, moved, wrong, server)
    finally:
        server.end()
    assert json.dumps(figures)
    assert len(answers) > 100
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert wrong == []
    assert figures["refusals"] == 2
    assert figures["bundles_in_memory"] == 2
    assert figures["bundles_answering"] == 4  # the first one and three that took over
    for name in ("seconds_to_first_answer", "seconds_until_all"):
        assert [swap[name] is None for swap in figures["swaps"]] == [False, False, True, True, False]


def test_a_swap_lasts_until_no_answer_is_of_another_bundle() -> None:
    bodies = {1.0: "old", 1.5: "new", 2.0: "old", 2.5: "new"}
    answers = [Answered(0, due, 0.25, 200, f'{{"bundle":"{name}"}}'.encode()) for due, name in bodies.items()]
    assert swap_seconds(answers, "new", 0.5) == {"seconds_to_first_answer": 1.25, "seconds_until_all": 1.75}
    assert swap_seconds(answers[1:2], "new", 0.5) == {"seconds_to_first_answer": 1.25, "seconds_until_all": 0.0}
    assert swap_seconds(answers[:1], "new", 0.5) == {"seconds_to_first_answer": None, "seconds_until_all": None}


def test_a_mixed_answer_would_be_noticed(day_bundles: list[Path], tmp_path: Path) -> None:
    setup = prepare_swaps(tmp_path, day_bundles[:3], histories=2)
    right = expected(setup)
    first, second = setup.good[:2]

    def answer(bundle_id: str, items: list[tuple[str, float]]) -> Answered:
        shown = [{"item_id": item, "score": score} for item, score in items]
        body = {"bundle": bundle_id, "strategy": "sequence", "degraded": None, "items": shown}
        return Answered(0, 0.0, 0.001, 200, json.dumps(body).encode())

    assert mixed([answer(first, right[first].items[0]), answer(second, right[second].items[0])], right) == []
    half = right[first].items[0][:10] + right[second].items[0][10:]
    for wrong in (
        answer(first, right[second].items[0]),
        answer(first, half),
        answer(setup.swaps[2][1], right[first].items[0]),
    ):
        assert len(mixed([wrong], right)) == 1
