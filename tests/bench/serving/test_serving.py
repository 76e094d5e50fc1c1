"""What a run of the serving bench measures: what is missing, or one stage again."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.measurements import Measurements
from bench.serving.contenders import OURS
from bench.serving.plan import SMOKE
from bench.serving.running import RunningContender
from bench.serving.serving import carry_out, forget_unfinished, missing, wanted
from bench.serving.stages import Task, Visit


def measured(_running: RunningContender) -> dict[str, Any]:
    return {}


def visit(stage: str, *keys: str) -> Visit:
    return Visit(stage, OURS, 10, 10, [Task(key, measured) for key in keys])


def test_one_stage_is_measured_again_and_the_rest_stays(tmp_path: Path) -> None:
    results = Measurements(tmp_path / "a.json", {}, fresh=True)
    for key in ("sizes/1/10/closed", "overload/1/peak", "overload/1/2x", "overloads/1"):
        results.put(key, {"good": 1.0}, took_s=1.0)
    results.put("users/1", {"failed": "it did not start"}, took_s=1.0)
    overload, sizes = visit("overload", "overload/1/peak", "overload/1/2x"), visit("sizes", "sizes/1/10/closed")
    assert missing(overload, results) == []
    assert [task.key for task in missing(visit("users", "users/1"), results)] == ["users/1"]
    results.forget("overload")
    assert [task.key for task in missing(overload, results)] == ["overload/1/peak", "overload/1/2x"]
    assert missing(sizes, results) == []
    assert "overloads/1" in results
    assert wanted([overload, sizes], ["overload"]) == [overload]
    assert wanted([overload, sizes], []) == [overload, sizes]
    assert wanted([overload, sizes], ["sizes", "overload"]) == [overload, sizes]


@pytest.mark.parametrize(("name", "value"), [("at", "2026-11-25T19:00:00Z"), ("commit", "0000000")])
def test_an_unfinished_stage_of_another_day_or_commit_is_measured_anew(tmp_path: Path, name: str, value: str) -> None:
    results = Measurements(tmp_path / "a.json", {}, fresh=True)
    for key in ("sizes/1/closed", "overload/1/peak", "users/1/closed"):
        results.put(key, {"good": 1.0}, took_s=1.0)
    stages = {
        "sizes": visit("sizes", "sizes/1/echo", "sizes/1/closed"),
        "overload": visit("overload", "overload/1/peak"),
        "users": visit("users", "users/1/echo", "users/1/closed"),
    }
    assert forget_unfinished(stages.values(), results) == []
    for key in ("sizes/1/closed", "overload/1/peak"):
        results[key][name] = value
    assert forget_unfinished([stages["overload"], stages["users"]], results) == []
    assert forget_unfinished(stages.values(), results) == ["sizes"]
    assert "sizes/1/closed" not in results
    assert "overload/1/peak" in results  # it is complete: all of it is of one run
    assert "users/1/closed" in results


def test_a_contender_that_failed_on_another_day_costs_nobody_elses_figures(tmp_path: Path) -> None:
    results = Measurements(tmp_path / "a.json", {}, fresh=True)
    results.put("contenders/1/us", {"good": 1.0}, took_s=1.0)
    results.put("contenders/1/them", {"failed": "it did not serve"}, took_s=1.0)
    for key in ("contenders/1/us", "contenders/1/them"):
        results[key]["at"] = "2026-11-25T19:00:00Z"
    stage = visit("contenders", "contenders/1/us", "contenders/1/them")
    assert forget_unfinished([stage], results) == []
    assert "contenders/1/us" in results
    assert [task.key for task in missing(stage, results)] == ["contenders/1/them"]  # it is tried again


class Started:
    """Stands in for the setting and for what it starts."""

    plan = SMOKE

    def start(self, *_: object) -> "Started":
        return self

    def closed(self, *_: object) -> None:
        """Load that is not counted."""

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


@pytest.mark.parametrize("error", [RuntimeError("wrk ended with 1"), subprocess.CalledProcessError(1, "open_loop")])
def test_a_load_that_fails_is_recorded_and_measured_again_later(tmp_path: Path, error: Exception) -> None:
    def failing(_running: RunningContender) -> dict[str, Any]:
        raise error

    results = Measurements(tmp_path / "a.json", {}, fresh=True)
    tasks = [Task("sizes/1/a", measured), Task("sizes/1/b", failing), Task("sizes/1/c", measured)]
    one = Visit("sizes", OURS, 10, 10, tasks)
    carry_out(one, Started(), results)  # type: ignore[arg-type]
    assert "sizes/1/a" in results
    assert results["sizes/1/b"]["failed"] == str(error)
    assert [task.key for task in missing(one, results)] == ["sizes/1/b", "sizes/1/c"]
