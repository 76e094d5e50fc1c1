"""The recipes page names every format and option, and its code for renamed files runs."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from cli.app import app
from training.data.dataset import load_dataset
from training.imports.format_names import FormatName

PAGE = (Path(__file__).parents[3] / "docs/recipes.md").read_text()


@pytest.mark.parametrize("name", list(FormatName))
def test_every_format_has_a_row_and_a_command(name: FormatName) -> None:
    assert f"| `{name.value}` |" in PAGE
    assert f"vlm2rec data import {name.value} " in PAGE


@pytest.mark.parametrize("command", ["import", "fetch-images"])
def test_every_option_is_documented(command: str) -> None:
    params = get_command(app).commands["data"].commands[command].params
    options = {flag for option in params for flag in option.opts if flag.startswith("--")}
    assert options >= ({"--force"} if command == "import" else {"--most"})
    for option in options:
        assert f"`{option}" in PAGE, option


def test_the_code_that_renames_columns_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.+?)```", PAGE, re.DOTALL)
    assert code is not None
    (tmp_path / "films").mkdir()
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,007,4.0,964982703\n")
    (tmp_path / "movies.csv").write_text('movieId,title,genres\n007,"Matrix, The (1999)",Action|Sci-Fi\n')
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    dataset = load_dataset(tmp_path / "films")
    assert dataset.item_ids() == ["007"]
    assert dataset.interactions.rows() == [("1", "007", 964982703)]
