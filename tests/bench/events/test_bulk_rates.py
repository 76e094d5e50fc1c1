"""Rates of bulks are compared within a round, and a turn whose events were not all stored once is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.events import bulk_rates
from bench.events.bulk_rates import StartedContender, chosen, summary, table
from bench.events.traffic import EventTraffic


def test_ratios_are_of_one_round() -> None:
    rates = [(100.0, 80.0), (200.0, 180.0), (100.0, 50.0), (400.0, 280.0), (100.0, 60.0)]
    found = summary([{"before": before, "loop": loop} for before, loop in rates])
    assert found["compared_with"] == "before"
    assert found["events_s"] == {"before": 100.0, "loop": 80.0}
    assert found["ratio"]["loop"] == (0.7, 0.5, 0.9)
    assert found["quartiles"]["loop"] == [0.6, 0.8]
    *_, before, loop, _ = table(found)
    assert before == "| before | 100/s |  |  |"
    assert loop == "| loop | 80/s | 0.70 (0.60 … 0.80) × | 0.50 … 0.90 |"


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        ({"good": 5.0, "refused": 0, "errors": 1}, "did not store all events"),
        ({"good": 5.0, "refused": 1, "errors": 0}, "did not store all events"),
        ({"good": 10.0, "refused": 0, "errors": 0}, "stored faster than events are made"),
    ],
)
@pytest.mark.parametrize("warm", [True, False])
def test_a_turn_whose_events_were_not_all_stored_once_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: dict[str, float], problem: str, warm: bool
) -> None:
    loads = [load, {"good": 5.0, "refused": 0, "errors": 0}]
    monkeypatch.setattr(bulk_rates, "_MOST_A_SECOND", 1_000)
    monkeypatch.setattr(bulk_rates, "closed_loop", lambda *_: loads.pop(0 if warm else -1))
    running: Any = SimpleNamespace(port=1, contender=SimpleNamespace(name="plain"))
    store: Any = None
    one = StartedContender(running, store, EventTraffic(["a", "b"], 3, [], 1), None, tmp_path)
    with pytest.raises(RuntimeError, match=problem):
        one.turn(0.5, 1.0)


def test_the_services_that_are_named_are_compared_in_their_order() -> None:
    assert [one.name for one in chosen(None, None)] == ["plain", "types", "loop"]
    assert [one.name for one in chosen(None, "loop,plain")] == ["loop", "plain"]
    with pytest.raises(SystemExit, match="must name some of plain, types, loop, received 'echo'"):
        chosen(None, "plain,echo")
