"""An unknown id that differs from a known one only in its form is explained."""

import unicodedata
from pathlib import Path

import polars as pl
import pytest

from training.data.dataset import load_dataset
from training.data.id_forms import likeness
from training.data_check.check import check_dataset
from training.errors import DatasetError


@pytest.mark.parametrize(
    ("known", "unknown", "form"),
    [
        (["00016", "00123"], ["16", "123"], "leading zeros"),
        (["16", "0"], ["00016", "000"], "leading zeros"),
        (["a1", "b2"], ["a1 ", " b2"], "white space around them"),
        (["AB1", "AB2"], ["ab1", "Ab2"], "upper and lower case"),
        (["7", "8"], ["7.0", "8.00"], "a decimal point"),
        (
            [unicodedata.normalize("NFC", "café")],
            [unicodedata.normalize("NFD", "café")],
            "the Unicode form of the letters",
        ),
    ],
)
def test_the_form_is_named(known: list[str], unknown: list[str], form: str) -> None:
    found = likeness(pl.Series(unknown), pl.Series(known))
    assert found is not None
    assert f"{len(unknown):,} of {len(unknown):,} unknown ids differ from ids of the catalogue only in {form}" in found


def test_ids_are_counted_once_and_the_commonest_form_is_named() -> None:
    found = likeness(pl.Series(["1", "1", "2", "x", None, "A"]), pl.Series(["01", "02", "a", None]))
    assert found is not None
    assert "2 of 4 unknown ids" in found
    assert "'1'" in found
    assert "'01'" in found


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_first_id_of_a_form_is_named_however_the_catalogue_is_cut(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("training.data.id_forms._SLICE_ROWS", rows)
    found = likeness(pl.Series(["a", "b"]), pl.Series(["x", " a", "c", "a  ", "b "]))
    assert found is not None
    assert "2 of 2 unknown ids" in found
    assert "('a' and ' a')" in found


@pytest.mark.parametrize(("known", "unknown"), [(["a", "b"], ["c"]), ([], ["a"]), (["a"], []), (["10"], ["1"])])
def test_other_ids_are_not_alike(known: list[str], unknown: list[str]) -> None:
    assert likeness(pl.Series(unknown, dtype=pl.String), pl.Series(known, dtype=pl.String)) is None


def test_the_loader_and_the_check_say_it(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n:05d},Thing {n}\n" for n in range(4)))
    lines = [f"u{user},{n},{1_700_000_000 + n}" for user in range(3) for n in range(4)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    with pytest.raises(DatasetError, match=r"4 of 4 unknown ids differ .* only in leading zeros"):
        load_dataset(tmp_path)
    (defect,) = [one for one in check_dataset(tmp_path).defects if one.kind == "orphan interactions"]
    assert "4 of 4 unknown ids differ from ids of the catalogue only in leading zeros" in defect.message
