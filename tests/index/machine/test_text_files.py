"""A text file is replaced whole, or not at all."""

from pathlib import Path

import pytest

from index.machine.text_files import replace_text


def test_a_file_is_replaced_in_a_directory_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "record.json"
    replace_text(path, "one: é\n")
    replace_text(path, "two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["record.json"]


def test_a_text_that_cannot_be_written_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    replace_text(path, "one")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "two \ud800")
    assert path.read_text() == "one"
