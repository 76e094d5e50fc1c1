"""MIND: news and clicks without headers; an impression without a click is no event."""

from collections.abc import Callable

import pytest

from training.data_check.check import check_dataset
from training.errors import DatasetError

NEWS = "".join(
    f"N{n}\tlifestyle\troyals\tTitle {n}\t{'' if n == 3 else chr(34) + 'A' + chr(34)}\thttps://example.invalid/{n}\t[]\t[]\n"
    for n in range(1, 7)
)
BEHAVIORS = (
    "1\tU1\t11/15/2019 10:22:32 AM\tN5 N6\tN1-0 N2-1\n"
    "2\tU2\t11/11/2019 9:05:58 PM\t\tN3-1 N1-1 N4-0\n"
    "3\tU1\t11/14/2019 12:00:00 AM\tN5 N6\tN1-1 N3-0\n"
    "4\tU1\t11/16/2019 12:30:00 PM\tN5 N6\tN4-1\n"
)
FILES = {"news.tsv": NEWS, "behaviors.tsv": BEHAVIORS}


def test_news_and_clicks(imported: Callable) -> None:
    made = imported("mind", FILES)
    items = made.items()
    assert items["N1"]["text"] == 'Title 1\n"A"'
    assert items["N3"]["text"] == "Title 3"
    assert (items["N1"]["category"], items["N1"]["subcategory"]) == ("lifestyle", "royals")
    assert items["N1"]["url"] == "https://example.invalid/1"
    assert made.events() == [
        ("U1", "N1", 1573689600),  # 2019-11-14 00:00:00: 12 AM is midnight
        ("U1", "N2", 1573813352),
        ("U1", "N4", 1573907400),  # 12:30 PM
        ("U2", "N3", 1573506358),  # 9:05:58 PM
        ("U2", "N1", 1573506358),
    ]
    assert any("--with-history" in note for note in made.record.notes)
    assert check_dataset(made.directory).ok


def test_the_history_comes_first_once_and_with_the_time_of_the_first_row(imported: Callable) -> None:
    made = imported("mind", FILES, with_history=True)
    first = 1573689600
    assert made.events()[:4] == [
        ("U1", "N5", first),
        ("U1", "N6", first),
        ("U1", "N1", first),
        ("U1", "N2", 1573813352),
    ]
    assert made.record.interactions == 7


def test_a_line_with_a_field_too_few_stops(imported: Callable) -> None:
    with pytest.raises(DatasetError, match=r"behaviors\.tsv: line 5 has 4 fields between '\\t', it must have 5"):
        imported("mind", FILES | {"behaviors.tsv": BEHAVIORS + "5\tU3\t11/15/2019 10:22:32 AM\tN1-1\n"})


def test_history_is_for_mind_alone(imported: Callable) -> None:
    with pytest.raises(DatasetError, match="--with-history is for mind"):
        imported("movielens", {}, with_history=True)
