"""What events cost: the traffic, the ratios by hand, and all of it at toy size."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.events.cost import contenders
from bench.events.cost_table import summary, tables
from bench.events.traffic import EventTraffic, ShownAnswer
from bench.index.bundles import HISTORY

ROOT = Path(__file__).parents[3]


def test_a_fifth_of_the_traffic_belongs_to_answers_and_every_event_has_an_id_of_its_own(tmp_path: Path) -> None:
    answers = [ShownAnswer(f"user-{number:06d}", f"r{number}", [f"shown-{number}"]) for number in range(3)]
    traffic = EventTraffic([f"item-{number}" for number in range(50)], 40, answers, seed=1)
    single = [json.loads(line) for line in traffic.write(tmp_path / "a", 1000, events=1).read_text().splitlines()]
    bulks = [json.loads(line) for line in traffic.write(tmp_path / "b", 20, events=50).read_text().splitlines()]
    assert [len(bulk["events"]) for bulk in bulks] == [50] * 20
    events = single + [event for bulk in bulks for event in bulk["events"]]
    assert len({event["event_id"] for event in events}) == 2000
    of_answers = [event for event in events if "request_id" in event]
    assert 0.17 < len(of_answers) / 2000 < 0.23
    for event in of_answers:
        number = int(event["request_id"][1:])
        assert (event["user_id"], event["item_id"]) == (f"user-{number:06d}", f"shown-{number}")
    kinds = Counter(event["type"] for event in events)
    assert kinds.most_common(2)[0][0] == "view"
    assert set(kinds) == {"view", "impression", "cart", "purchase", "dislike"}


def test_ratios_are_of_turns_of_one_round_and_medians_over_rounds() -> None:
    def turns(*figures: tuple[float, float, float, float]) -> list[dict[str, float]]:
        names = ("single_events_s", "bulk_events_s", "recommend_p50_ms", "recommend_p99_ms")
        return [dict(zip(names, some, strict=True)) for some in figures]

    measured = {
        "before": turns((1000, 10_000, 2.0, 5.0), (500, 8000, 2.2, 6.0), (800, 9000, 2.1, 5.0)),
        "loop": turns((900, 10_000, 2.1, 5.5), (400, 4000, 2.2, 5.0), (800, 9000, 2.4, 5.0)),
        "echo": [{"recommend_p50_ms": 1.0}] * 3,
    }
    found = summary(measured, {"answers": 5000, "bytes_an_answer": 236.6})
    assert found["ratios"] == {"single": {"loop": (0.9, 0.8, 1.0)}, "bulk": {"loop": (1.0, 0.5, 1.0)}}
    assert found["added_ms"] == {"p50": {"loop": (0.1, 0.0, 0.3)}, "p99": {"loop": (0.0, -1.0, 0.5)}}
    assert found["medians"]["before"]["single_events_s"] == 800
    _, _, before, loop, _, memory = tables(found)
    assert before == "| before | 1 | 1 | 800 | 9,000 | 2.10 ms |  |"
    assert loop.startswith("| loop | 0.90 (0.80 … 1.00) | 1.00 (0.50 … 1.00) | 800 | 9,000 | 2.20 ms (+0.10 ms, ")
    assert memory == "5,000 answers of 20 items: 237 bytes each."


def test_all_contenders_have_one_process(tmp_path: Path) -> None:
    services = [contender for contender in contenders(ROOT) if contender.answers]
    assert [contender.name for contender in services] == ["before", "plain", "types", "loop"]
    assert {contender.environment["VLM2REC_WORKERS"] for contender in services} == {"1"}
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").touch()
    assert "VLM2REC_WORKERS" not in contenders(tmp_path)[0].environment  # from before there were any


@pytest.mark.slow
def test_a_short_run_measures_everything_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    out = tmp_path / "events.json"
    command = [sys.executable, "-m", "bench.events.cost", "--items", "1000", "--users", "100", "--rounds", "1"]
    command += ["--seconds", "1", "--rate", "20", "--answers", "60", "--neighbours", "0", "--bulk", "20"]
    command += ["--baseline", str(ROOT), "--work", str(tmp_path), "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(out.read_text())["measurements"]
    assert set(found) == {"memory", "summary", "1/before", "1/plain", "1/types", "1/loop", "1/echo"}
    for name in ("before", "plain", "types", "loop"):
        turn = found[f"1/{name}"]
        assert turn["events_stored"] > 0
        assert ("outcome_events_attributed" in turn) == (name == "loop")
    assert found["1/loop"]["outcome_events_attributed"] > 0
    filled = 100 * HISTORY  # the users' histories, which were in Redis before the service began to count
    assert 0 < found["1/loop"]["exported"] <= found["1/loop"]["events_stored"] + filled
    assert 100 < found["memory"]["bytes_an_answer"] < 300
    assert "| loop | " in ended.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    kept = json.loads(out.read_text())["measurements"]
    assert (again.returncode, again.stderr) == (0, "")
    assert {name: kept[name] for name in kept if name != "summary"} == {
        name: found[name] for name in found if name != "summary"
    }
