"""The benches of connections and workers say what is missing where nothing was measured."""

import re
from typing import Any

import pytest

from bench.serving.connections import arguments, fullest, is_even
from bench.serving.contenders import ECHO
from bench.serving.workers import medians
from service.workers import handover


@pytest.mark.parametrize(
    ("of_workers", "share", "even"),
    [([2, 2], 1.0, True), ([3, 1], 1.5, False), ([2, 1], 4 / 3, True), ([11, 9], 1.1, True), ([13, 7], 1.3, False)],
)
def test_even_is_what_the_service_calls_even(of_workers: list[int], share: float, even: bool) -> None:
    assert fullest(of_workers, sum(of_workers)) == pytest.approx(share)
    assert is_even(of_workers, sum(of_workers)) == even


def test_the_bound_of_the_service_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (handover.FEWER, handover.SHARE) == (2, 1.25)
    monkeypatch.setattr("bench.serving.connections.SHARE", 1.6)
    assert is_even([3, 1], 4)


@pytest.mark.parametrize("of_workers", [[], [0, 0]])
def test_workers_without_a_connection_are_named(of_workers: list[int]) -> None:
    with pytest.raises(SystemExit, match=f"{len(of_workers)} workers have no connection"):
        is_even(of_workers, 4)


@pytest.mark.parametrize("given", [["--rounds", "0"], ["--connections", "4", "0"], ["--workers", "0"]])
def test_numbers_that_measure_nothing_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(given)
    assert "must be at least 1" in capsys.readouterr().err


def test_a_round_without_answers_of_the_echo_is_named() -> None:
    good, none = {"good": 10.0}, {"good": 0.0}
    turns: dict[str, list[dict[str, Any]]] = {ECHO.name: [good, none], "1 workers": [good, good]}
    with pytest.raises(SystemExit, match=re.escape("no good answer in rounds [2]")):
        medians(turns)
    assert medians(turns | {ECHO.name: [good, good]})["1 workers"]["over_echo"] == 1.0
