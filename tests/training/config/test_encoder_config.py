"""The ``[encoder]`` section: sizes that depend on the catalogue."""

from pathlib import Path

import pytest

from training.config.encoder_config import LARGE_CATALOGUE, EncoderConfig
from training.config.run_config import load_config, to_toml
from training.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "items", "wanted"),
    [
        ("auto", 1, 50),
        ("auto", LARGE_CATALOGUE, 50),
        ("auto", LARGE_CATALOGUE + 1, 20),
        (30, LARGE_CATALOGUE + 1, 30),
        (0, 12, 0),
    ],
)
def test_large_catalogues_have_fewer_neighbours_unless_the_file_says_how_many(
    given: int | str, items: int, wanted: int
) -> None:
    config = EncoderConfig.model_validate({"list_neighbours": given})
    assert config.neighbours(items) == wanted
    assert config.for_catalogue(items) == config.model_copy(update={"list_neighbours": wanted})


def test_neighbours_read_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for number, written in ((7, "7"), ("auto", '"auto"')):
        path.write_text(f"[encoder]\nlist_neighbours = {written}\n", encoding="utf-8")
        config = load_config(path)
        path.write_text(to_toml(config), encoding="utf-8")
        assert load_config(path).encoder.list_neighbours == config.encoder.list_neighbours == number


@pytest.mark.parametrize("value", ['"many"', "-1", "1001", "2.5", "true"])
def test_other_neighbours_are_refused_with_the_rule(value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"[encoder]\nlist_neighbours = {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"encoder\.list_neighbours: .*0 to 1,000.*auto"):
        load_config(path)
