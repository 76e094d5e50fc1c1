"""A data set whose table has another name or form: the refusal names the file that is there."""

from pathlib import Path

import pytest

from training.data.tables.table_files import find_table
from training.errors import DatasetError

SUFFIXES = ("csv", "jsonl", "parquet")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Items.csv", "names are case-sensitive"),
        ("items.CSV", "names are case-sensitive"),
        ("items.csv.gz", "unpack it"),
        ("items.csv.zip", "unpack it"),
        ("items.json", "convert it"),
        ("items.tsv", "convert it"),
        ("items.xlsx", "convert it"),
        ("items", "convert it"),
    ],
)
def test_the_file_that_is_there_is_named_with_a_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_text("x")
    (tmp_path / "interactions.csv").write_text("x")
    with pytest.raises(DatasetError) as caught:
        find_table(tmp_path, "items", SUFFIXES)
    assert f"found {name!r}: " in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("target", ["nowhere.csv", "items.csv"])
def test_a_link_that_leads_nowhere_is_named_as_such(tmp_path: Path, target: str) -> None:
    (tmp_path / "items.csv").symlink_to(target)
    with pytest.raises(DatasetError, match=r"found 'items\.csv': a link to no file; correct it; see"):
        find_table(tmp_path, "items", SUFFIXES)


def test_other_files_are_not_named(tmp_path: Path) -> None:
    for name in ("interactions.csv", "itemsets.csv", ".items.csv.swp", "images"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DatasetError, match="found none of them, nor a folder items; see"):
        find_table(tmp_path, "items", SUFFIXES)
