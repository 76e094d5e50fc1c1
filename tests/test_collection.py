"""Pytest finds every test."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_no_folder_with_tests_is_left_out(pytestconfig: pytest.Config) -> None:
    """By default a folder named `build` is not searched."""
    left_out = pytestconfig.getini("norecursedirs")
    folders = {parent for file in TESTS.rglob("test_*.py") for parent in file.relative_to(TESTS).parents}
    names = {name for folder in folders for name in folder.parts}
    assert "build" in names
    assert [name for name in names if any(fnmatch(name, pattern) for pattern in left_out)] == []
