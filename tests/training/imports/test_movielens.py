"""MovieLens: fields between `::`, titles in Latin-1, seconds since 1970."""

from collections.abc import Callable

import pytest

from training.data_check.check import check_dataset
from training.errors import DatasetError

MOVIES = (
    "1::Toy Story (1995)::Animation|Children's|Comedy\n"
    "2::Cité des enfants perdus, La (1995)::Adventure|Sci-Fi\n"
    "3::What: a title::with both (1980)::(no genres listed)\n"
)
RATINGS = "".join(
    f"{user}::{film}::{5 - film}::{978300000 + place}\n"
    for user in (1, 2)
    for place, film in enumerate((1, 2, 3, 1), start=1)
)


def test_films_and_ratings(imported: Callable) -> None:
    made = imported("movielens", {"movies.dat": MOVIES.encode("latin-1"), "ratings.dat": RATINGS, "users.dat": "1::F"})
    items = made.items()
    assert list(items) == ["1", "2", "3"]
    assert items["2"]["title"] == "Cité des enfants perdus, La (1995)"
    assert items["1"]["genres"] == ["Animation", "Children's", "Comedy"]
    assert items["1"]["year"] == 1995
    assert items["1"]["text"] == "Toy Story (1995)\nGenres: Animation, Children's, Comedy"
    assert items["3"]["title"] == "What: a title::with both (1980)"
    assert items["3"]["genres"] is None
    assert made.events()[:3] == [("1", "1", 978300001), ("1", "2", 978300002), ("1", "3", 978300003)]
    assert any("Latin-1" in note for note in made.record.notes)
    assert check_dataset(made.directory).ok


def test_utf8_stays_utf8(imported: Callable) -> None:
    made = imported("movielens", {"movies.dat": MOVIES, "ratings.dat": RATINGS})
    assert made.items()["2"]["title"] == "Cité des enfants perdus, La (1995)"


def test_skipped_rows_have_reason_and_line(imported: Callable) -> None:
    bad = ["9::77::3::978300000", "9::1::3::soon", "::1::3::978300000", "9::1::3::-5"]
    late = ["9::1::3::999999999999", "9::1::3::9999999999999999"]
    ratings = RATINGS + "".join(f"{line}\n" for line in bad + late)
    movies = MOVIES + "1::Toy Story again (1995)::Comedy\n"
    made = imported("movielens", {"movies.dat": movies, "ratings.dat": ratings})
    assert made.left_out() == {
        "the item id is repeated; its first row was kept": (1, [4]),
        "the item is not in the catalogue": (1, [9]),
        "the time is missing or bad, it must be whole seconds since 1970": (2, [10, 14]),
        "the user_id is empty": (1, [11]),
        "the time is before 1970": (1, [12]),
        "the time is after the year 5000": (1, [13]),
    }
    assert (made.record.items, made.record.interactions) == (3, 8)
    assert made.items()["1"]["title"] == "Toy Story (1995)"


def test_a_rating_with_too_few_fields_stops_with_its_line(imported: Callable) -> None:
    with pytest.raises(DatasetError, match=r"ratings\.dat: line 9 has 3 fields between '::', it must have 4; correct"):
        imported("movielens", {"movies.dat": MOVIES, "ratings.dat": RATINGS + "1::1::5\n"})


def test_a_film_that_breaks_the_layout_stops_with_its_line(imported: Callable) -> None:
    with pytest.raises(
        DatasetError, match=r"movies\.dat: line 4 must be id::title::genres; correct or remove the line"
    ):
        imported("movielens", {"movies.dat": MOVIES + "4::Heat (1995)\n", "ratings.dat": RATINGS})


def test_a_missing_file_is_named(imported: Callable) -> None:
    with pytest.raises(
        DatasetError, match=r"source: no file with the ratings, looked for ratings\.dat; see docs/recipes\.md"
    ):
        imported("movielens", {"movies.dat": MOVIES})
