"""The columns by which ``events.toml`` decides what events mean reach the data set."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from training.data.dataset import load_dataset
from training.errors import DatasetError

ITEMS = {"items.csv": "item_id,title\na,Tee\nb,Mug\n"}
FEED = {"feed.txt": "id\ttitle\na\tTee\nb\tMug\n"}
EVENTS = (
    "user_id,item_id,timestamp,type,weight,rating,colour\n"
    "u,a,2024-01-01,007,2.5,4,x\nu,b,2024-01-02,impression,1,1,x\nu,gone,2024-01-03,view,dear,1,x\n"
    "u,b,2024-01-04,,dear,5,x\nu,a,2024-01-05,purchase,,,x\n"
)
KEPT = {
    "type": ["007", "impression", None, "purchase"],
    "weight": [2.5, 1.0, None, None],
    "rating": [4.0, 1.0, 5.0, None],
}


def kept(frame: pl.DataFrame) -> dict[str, list[object]]:
    return frame.drop("user_id", "item_id", "timestamp").to_dict(as_series=False)


def test_of_a_file_of_interactions(imported: Callable, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(EVENTS)
    made = imported("google-merchant", FEED, interactions=tmp_path / "events.csv")
    assert kept(made.raw_events()) == KEPT
    assert made.left_empty() == {"the weight must be a number; left empty": (1, [5])}, "that of a row left out is not"


def test_of_a_table_of_postgres(imported: Callable) -> None:
    assert kept(imported("postgres", ITEMS | {"interactions.csv": EVENTS}).raw_events()) == KEPT


def test_the_stars_of_movielens(imported: Callable) -> None:
    ratings = "u::1::5::978300001\nu::2::1::978300002\nu::1::3.5::978300003\nu::2::good::978300004\n"
    made = imported("movielens", {"movies.dat": "1::A (1990)::Drama\n2::B (1991)::Drama\n", "ratings.dat": ratings})
    assert kept(made.raw_events()) == {"rating": [5.0, 1.0, 3.5, None]}
    assert made.left_empty() == {"the rating must be a number; left empty": (1, [4])}


def test_low_ratings_are_left_out_where_a_threshold_says_so(imported: Callable) -> None:
    ratings = "u::1::5::978300001\nu::2::1::978300002\nu::2::4::978300003\n"
    made = imported("movielens", {"movies.dat": "1::A (1990)::Drama\n2::B (1991)::Drama\n", "ratings.dat": ratings})
    assert made.dataset().interactions.height == 3
    (made.directory / "events.toml").write_text('weight_by = "rating"\nrating_threshold = 4\n')
    assert made.dataset().interactions.select("item_id", "timestamp").rows() == [
        ("1", 978300001),
        ("2", 978300003),
    ]


def test_the_stars_of_amazon(imported: Callable) -> None:
    reviews = [
        {"user_id": "u", "parent_asin": "a", "timestamp": 1_600_000_000_000, "rating": 5.0},
        {"user_id": "u", "parent_asin": "a", "timestamp": 1_600_000_001_000, "rating": 2},
        {"user_id": "u", "parent_asin": "a", "timestamp": 1_600_000_002_000, "rating": "many"},
        {"user_id": "u", "parent_asin": "a", "timestamp": 1_600_000_003_000},
    ]
    lines = "".join(f"{json.dumps(review)}\n" for review in reviews)
    made = imported("amazon-2023", {"meta_x.jsonl": '{"parent_asin": "a", "title": "A"}\n', "x.jsonl": lines})
    assert kept(made.raw_events()) == {"rating": [5.0, 2.0, None, None]}
    assert made.left_empty() == {"the rating must be a number; left empty": (1, [3])}


def test_training_reads_them(imported: Callable, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(EVENTS)
    made = imported("google-merchant", FEED, interactions=tmp_path / "events.csv")
    (made.directory / "events.toml").write_text('weight_by = "type"\n[events.types]\npurchase = 4\n007 = 2\n')
    assert made.dataset().interactions.drop("user_id", "timestamp").rows() == [("a", 2.0), ("b", 1.0), ("a", 4.0)]
    assert made.dataset().left_out == {"impression": 1}


@pytest.mark.parametrize("kind", [pl.Categorical(), pl.Decimal(9, 2), pl.Float32(), pl.String(), pl.Null()])
def test_of_any_parquet_type(imported: Callable, tmp_path: Path, kind: pl.DataType) -> None:
    value = None if kind == pl.Null else "3"
    rating = pl.Series("rating", [value] * 2).cast(kind)
    pl.DataFrame({"user_id": "u", "item_id": ["a", "b"], "timestamp": [5, 6], "rating": rating}).write_parquet(
        tmp_path / "events.parquet"
    )
    made = imported("google-merchant", FEED, interactions=tmp_path / "events.parquet")
    assert kept(made.raw_events()) == {"rating": [value and 3.0] * 2}


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("type", [["view"]], "column 'type' must hold strings, it holds List"),
        ("type", [b"view"], "column 'type' must hold strings, it holds Binary; write it as such"),
        ("weight", [{"a": 1}], "column 'weight' must hold numbers, it holds Struct"),
    ],
)
def test_other_kinds_are_refused_by_import_and_by_training(
    imported: Callable, tmp_path: Path, name: str, column: list[object], message: str
) -> None:
    path = tmp_path / "events.parquet"
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [5], name: column}).write_parquet(path)
    with pytest.raises(DatasetError, match=message):
        imported("google-merchant", FEED, interactions=path)
    (tmp_path / "shop").mkdir(exist_ok=True)
    (tmp_path / "shop/events.toml").write_text(f'weight_by = "{name}"\n')
    (tmp_path / "shop/items.csv").write_text("item_id\na\n")
    path.rename(tmp_path / "shop/interactions.parquet")
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / "shop")
