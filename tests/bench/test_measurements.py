import json
from pathlib import Path

import pytest

from bench.measurements import Measurements


def test_what_is_measured_survives_a_run_that_ends_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "results" / "serving.json"
    first = Measurements(path, {"rounds": 3, "sizes": (1, 2)}, fresh=False)
    first.put("a", {"good": 1234567.891, "by": [1.00000049, 2], "kind": "ivf"}, took_s=1.26)
    again = Measurements(path, {"rounds": 3, "sizes": (1, 2)}, fresh=False)
    assert "a" in again
    assert "b" not in again
    assert again["a"]["good"] == 1_234_570.0  # six digits
    assert again["a"]["by"] == [1.0, 2]
    assert (again["a"]["kind"], again["a"]["took_s"]) == ("ivf", 1.3)
    assert again["a"]["commit"]
    assert [file.name for file in path.parent.iterdir()] == ["serving.json"]


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    results = Measurements(tmp_path / "r.json", {}, fresh=False)
    results.put("a", {"failed": "no wheel"}, took_s=1)
    assert "a" not in results
    results.put("a", {"good": 1}, took_s=1)
    assert "a" in results


def test_fresh_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Measurements(path, {}, fresh=False).put("a", {"good": 1}, took_s=1)
    assert "a" not in Measurements(path, {}, fresh=True)


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Measurements(path, {"rounds": 3}, fresh=False).put("a", {"good": 1}, took_s=1)
    with pytest.raises(SystemExit, match="other settings"):
        Measurements(path, {"rounds": 5}, fresh=False)


def test_a_file_of_an_earlier_format_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"echo": {"req_s": 1}}')
    Measurements(path, {}, fresh=False).put("a", {"good": 1}, took_s=1)
    assert set(json.loads(path.read_text())["measurements"]) == {"a"}
