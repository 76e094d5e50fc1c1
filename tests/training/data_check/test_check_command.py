"""`vlm2rec data check` prints what the check found, and ends with its exit code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.offline.data.check import check
from index.errors import DiskError
from tests.training.data_check.conftest import Check


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    """Run the command and give its exit code and output."""
    import typer

    app = typer.Typer()
    app.command()(check)

    def invoke(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def test_the_command_prints_facts_and_ends_with_0(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked()
    code, output = run(tmp_path)
    assert code == 0
    assert "no defects" in output
    assert "k = 3" in output


def test_a_long_path_and_many_columns_are_one_line_where_the_output_is_no_terminal(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked()
    place = tmp_path / ("[red]" + "long" * 40)
    place.mkdir()
    columns = [f"column_{number}" for number in range(30)]
    (place / "items.csv").write_text(",".join(["item_id", "title", *columns]) + "\n" + "i0,a" + ",1" * 30 + "\n")
    (place / "interactions.csv").write_text((tmp_path / "interactions.csv").read_text())
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(place)[1].splitlines()
    assert str(place) in lines
    assert any(all(name in line for name in columns) for line in lines)


def test_the_command_prints_one_line_a_defect_and_ends_with_1(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked(items="item_id,title,tag\ni0,a,\ni0,[red]b[/red],2\n")
    report = tmp_path / "report.json"
    code, output = run(tmp_path, "--json", report)
    assert code == 1
    line = next(line for line in output.splitlines() if "item_id is repeated" in line)
    assert line.split()[:2] == ["error", "1"]
    assert "row 2 ('i0')" in line
    assert "correct the errors before training" in output
    written = json.loads(report.read_text())
    assert written["ok"] is False
    assert {"kind": "duplicate item ids", "severity": "error"}.items() <= written["defects"][0].items()
    assert written["interactions"]["five_core"]["k"] == 5


def test_the_command_reports_what_it_can_of_an_unusable_dataset(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked(items="", events="user_id,item_id,timestamp\n")
    code, output = run(tmp_path)
    assert code == 1
    assert "the file is empty" in output
    checked(events="user_id,item_id,timestamp\nu,zz,1\n")
    code, output = run(tmp_path, "--interactions", tmp_path / "none.csv")
    assert code == 1
    assert "no such file" in output


def test_a_report_that_cannot_be_written_is_bad_input(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked()
    (tmp_path / "no").touch()
    with pytest.raises(DiskError, match=r"where\.json: cannot be written: Not a directory"):
        run(tmp_path, "--json", tmp_path / "no" / "where.json")
