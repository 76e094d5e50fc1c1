"""What a log tells, by hand; and that no log is so broken that it cannot be read."""

import json
from pathlib import Path

import pytest

from training.finetune.run_history import RunHistory


def history(*lines: dict[str, float]) -> RunHistory:
    return RunHistory(lines)


def test_numbers_that_the_lines_add_up_to(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"step": 10, "pairs": 6.0, "seconds": 3.5}, {"step": 14, "pairs": 2.5, "seconds": 5.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = RunHistory.read(path)
    assert (found.steps, found.seconds) == (14, 5.0)
    assert found.pairs == 70  # 10 steps of 6 and 4 of 2.5: a line holds the mean since the last one
    assert found.series("pairs") == ((10, 6.0), (14, 2.5))
    assert found.at(14, "pairs") == 2.5
    assert found.at(14, "loss") is None
    assert found.at(11, "pairs") is None


def test_what_is_no_later_step_and_no_number_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    texts = [
        '{"step": 5, "loss": NaN, "nce": 1.5, "pairs": true, "gap": "3", "wpcl": 1e300}',
        '{"step": 5, "loss": 7}',
        '{"step": 4, "loss": 7}',
        '{"step": 5.5, "loss": 7}',
        '{"step": -1}',
        '{"loss": 7}',
        "[1]",
        "7",
        "[" * 100_000,
        "",
        '{"step": 6, "loss": Infinity, "nce": 2}',
        '{"step": 7, "nce":',
    ]
    path.write_bytes("\n".join(texts).encode() + b"\xff\xfe")
    assert RunHistory.read(path).lines == ({"step": 5.0, "nce": 1.5}, {"step": 6.0, "nce": 2.0})


def test_of_nothing_there_is_nothing(tmp_path: Path) -> None:
    for found in (RunHistory.read(tmp_path / "none.jsonl"), RunHistory.read(tmp_path)):
        assert found.lines == ()
        assert (found.steps, found.seconds, found.pairs, found.late("loss")) == (0, None, None, None)
        assert found.kept_step(patience=0) is None
    assert history({"step": 1, "loss": 2.0}).pairs is None


@pytest.mark.parametrize(
    ("count", "mean"),
    [
        (1, 1.0),
        (2, 1.5),  # fewer than three: all
        (8, 7.0),  # a quarter would be two: the last three, 6 7 8
        (13, 11.5),  # a quarter, rounded up: the last four, 10 … 13
    ],
)
def test_late_is_the_last_quarter(count: int, mean: float) -> None:
    lines = [{"step": number, "gap": float(number)} for number in range(1, count + 1)]
    assert history(*lines, {"step": count + 1, "loss": 1.0}).late("gap") == mean


def test_the_weights_that_a_run_keeps() -> None:
    found = history(
        {"step": 2, "ndcg@10": 0.1},
        {"step": 4, "ndcg@10": 0.3},
        {"step": 6, "ndcg@10": 0.3},
        {"step": 8, "ndcg@10": 0.2},
        {"step": 9, "loss": 1.0},
    )
    assert found.kept_step(patience=0) == 8  # the last validated ones
    assert found.kept_step(patience=2) == 4  # the best ones, and of equal ones the first
