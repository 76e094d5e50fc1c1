"""What the count of exported events makes of its events and of its counts."""

from pathlib import Path

from bench.events.traffic import EventTraffic
from bench.instructions.export_instructions import _of_event, made_events


def test_made_events_go_on_in_time_with_ids_of_their_own(tmp_path: Path) -> None:
    traffic = EventTraffic(["a", "b"], 3, [], 1)
    events = made_events(traffic, 2, tmp_path, 0) + made_events(traffic, 2, tmp_path, 2)
    assert [event.event_id for event in events] == ["e1", "e2", "e3", "e4"]
    assert [round(event.timestamp - events[0].timestamp, 6) for event in events] == [0.0, 0.001, 0.002, 0.003]


def test_instructions_are_divided_by_events_the_largest_library_first() -> None:
    found = _of_event({"hiredis": 1, "C library": 2_000, "interpreter": 6_000}, 2)
    assert list(found.items()) == [("all", 4.0), ("interpreter", 3.0), ("C library", 1.0)]
