import json
import subprocess
from pathlib import Path

import pytest

from bench.measurements import Measurements, commit


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


def test_the_commit_has_a_plus_for_changed_code_and_not_for_what_a_bench_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        named = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True)

    written = [tmp_path / name for name in ("bench/results/a.json", "docs/benchmarks.md", "bench/a.py")]
    for file in written:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "--message", "a")
    monkeypatch.chdir(tmp_path / "bench")
    clean = commit()
    assert len(clean) >= 7
    written[0].write_text("2")
    written[1].write_text("2")
    assert commit() == clean
    written[2].write_text("2")
    assert commit() == f"{clean}+"


def test_outside_of_a_repository_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert commit() == "unknown"
