"""`vlm2rec data make-demo`: its options."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app


def made(directory: Path, *words: str) -> dict[str, float]:
    small = ("--items", "12", "--users", "4", "--evaluation-users", "0")
    result = CliRunner().invoke(app, ["data", "make-demo", str(directory), *small, *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    behaviour: dict[str, float] = json.loads((directory / "demo.json").read_text())["behaviour"]
    return behaviour


def test_the_preferences_are_those_of_the_options(tmp_path: Path) -> None:
    behaviour = made(tmp_path / "demo", "--text-preference", "1", "--image-preference", "3.5")
    assert (behaviour["text_preference"], behaviour["image_preference"]) == (1.0, 3.5)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_former_names_of_options_work_with_a_warning(tmp_path: Path, modality: str) -> None:
    with pytest.warns(FutureWarning, match=f"--{modality}-taste is now --{modality}-preference"):
        behaviour = made(tmp_path / "demo", f"--{modality}-taste", "0.5")
    assert behaviour[f"{modality}_preference"] == 0.5
    assert "-taste" not in CliRunner().invoke(app, ["data", "make-demo", "--help"]).output
