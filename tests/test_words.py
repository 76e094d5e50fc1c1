"""The check of words: what it finds in a module and on a page, and what it leaves."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("words", ROOT / ".ci" / "words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["words"] = module
    spec.loader.exec_module(module)
    return module


words = load()
MODULE = '''"""Keeps a bundle
on the shelf."""

key = "directives"
message = f"{key}: was told"


class SlowLane:  # a hurry
    wishful = tell = "tasteful"
'''


def found_in(file: Path) -> list[tuple[int, str]]:
    return sorted((finding.line, finding.word) for finding in words.in_python(file))


def test_identifiers_comments_and_strings_of_a_module_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(MODULE)
    assert found_in(file) == [(2, "shelf"), (5, "told"), (8, "hurry"), (8, "slow lane")]


@pytest.mark.parametrize("name", ["self._shelf", "Shelf", "the_shelf", "SHELF"])
def test_a_word_is_found_in_every_spelling_of_an_identifier(tmp_path: Path, name: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(f"{name}\n")
    assert found_in(file) == [(1, "shelf")]


def test_a_page_is_checked_over_the_ends_of_its_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nIt runs in the slow\nlane. `--text-taste 2.5`, `VLM2REC_DIRECTIVES_FILE`.\n")
    assert [(finding.line, finding.word) for finding in words.in_page(page)] == [(3, "slow lane")]


def test_every_covered_place_exists() -> None:
    assert [place for place in (*words.COVERED, *words.PACKAGES) if not (ROOT / place).exists()] == []


def test_a_class_name_that_two_modules_define_is_reported(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("class Plan:\n    class Row: ...\n\n\nclass Stage: ...\n")
    other.write_text("class Plan: ...\n\n\nclass Row: ...\n")
    assert words.classes_of_one_name([other, one]) == {"Plan": [one, other]}
