"""bench/swap.py on small bundles: what must hold at any size. Nothing here is timed; the bench is for that."""

import json
from pathlib import Path

from shops import eventually
from swap import Answered, Server, drive, expected, judge, mixed, set_stage, store_histories


def test_five_swaps_under_load(day_bundles: list[Path], tmp_path: Path) -> None:
    stage = set_stage(tmp_path, day_bundles[:3], histories=32)
    assert [kind for kind, _ in stage.swaps] == ["good", "good", "corrupt", "truncated", "good"]
    server = Server(stage.registry, tmp_path, VLM2REC_POLL_MS="50")
    try:
        store_histories(server, stage)
        answers, moved = drive(server, stage, rate=80.0, seconds=4.0)
        eventually(lambda: server.metric("vlm2rec_bundle_swaps_total") == 3)
        wrong = mixed(answers, expected(stage))
        figures = judge(stage, answers, moved, wrong, server)
    finally:
        server.end()
    assert json.dumps(figures)
    assert len(answers) > 100
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert wrong == []
    assert figures["refusals"] == 2
    assert figures["bundles_in_memory"] == 2
    assert figures["bundles_answering"] == 4  # the first one and three that took over
    assert [swap["seconds_to_first_answer"] is None for swap in figures["swaps"]] == [False, False, True, True, False]


def test_a_mixed_answer_would_be_noticed(day_bundles: list[Path], tmp_path: Path) -> None:
    stage = set_stage(tmp_path, day_bundles[:3], histories=2)
    right = expected(stage)
    first, second = stage.good[:2]

    def answer(bundle_id: str, items: list[tuple[str, float]]) -> Answered:
        shown = [{"item_id": item, "score": score} for item, score in items]
        body = {"bundle": bundle_id, "strategy": "sequence", "degraded": None, "items": shown}
        return Answered(0, 0.0, 0.001, 200, json.dumps(body).encode())

    assert mixed([answer(first, right[first][0]), answer(second, right[second][0])], right) == []
    half = right[first][0][:10] + right[second][0][10:]
    for wrong in (answer(first, right[second][0]), answer(first, half), answer(stage.swaps[2][1], right[first][0])):
        assert len(mixed([wrong], right)) == 1
