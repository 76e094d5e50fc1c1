"""Amazon Reviews 2023: JSON lines, gzip or not, pictures as a list of objects."""

import gzip
import json
from collections.abc import Callable

import pytest

from training.data_check.check import check_dataset
from training.errors import DatasetError

IMG = "https://img.example"
META = [
    {
        "main_category": "All Beauty", "title": "Hair brush", "average_rating": 4.8, "rating_number": 10,
        "features": ["Soft", "Light"], "description": ["For every day."], "price": 12.5, "store": "Brushes",
        "images": [
            {"thumb": f"{IMG}/1t.jpg", "large": f"{IMG}/1l.jpg", "variant": "PT01", "hi_res": None},
            {"thumb": f"{IMG}/2t.jpg", "large": f"{IMG}/2l.jpg", "variant": "MAIN", "hi_res": None},
        ],
        "videos": [], "categories": ["Beauty", "Hair"], "details": {"Brand": "B"}, "parent_asin": "0012345678",
        "bought_together": None,
    },
    {"title": "Comb", "price": "from 9.99", "images": [], "features": [], "parent_asin": "B000000001"},
    {
        "title": "Soap", "price": "None", "parent_asin": "B000000002",
        "images": {"hi_res": [f"{IMG}/h.jpg"], "large": [f"{IMG}/l.jpg"], "variant": ["MAIN"]},
    },
]  # fmt: skip
REVIEWS = [
    {
        "rating": 5.0, "title": "Nice", "text": "T", "images": [], "asin": "CHILD", "parent_asin": asin,
        "user_id": f"U{user}", "timestamp": 1588687728923 + place, "helpful_vote": 0, "verified_purchase": True,
    }
    for user in (1, 2)
    for place, asin in enumerate(("0012345678", "B000000001", "B000000002", "B000000001"))
]  # fmt: skip


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {"meta_All_Beauty.jsonl": lines(META), "All_Beauty.jsonl": lines(REVIEWS)}


def test_products_and_reviews(imported: Callable) -> None:
    made = imported("amazon-2023", FILES)
    items = made.items()
    brush = items["0012345678"]
    assert brush["text"] == "Hair brush\nBeauty > Hair\nSoft\nLight\nFor every day."
    assert (brush["price"], brush["store"], brush["categories"]) == (12.5, "Brushes", ["Beauty", "Hair"])
    assert brush["image_url"] == "https://img.example/2l.jpg", "the picture marked MAIN"
    assert brush["image"] is None, "nothing was fetched"
    assert items["B000000001"]["price"] is None
    assert items["B000000001"]["image_url"] is None
    assert items["B000000002"]["price"] is None
    assert items["B000000002"]["image_url"] == "https://img.example/h.jpg", "an object of lists"
    assert made.left_empty() == {"price is no number (such as 'from 12.99'); left empty": (1, [2])}
    assert made.events()[:2] == [("U1", "0012345678", 1588687728), ("U1", "B000000001", 1588687728)]
    microseconds = made.raw_events()["timestamp"].dt.epoch("us").to_list()
    assert microseconds[:2] == [1588687728923000, 1588687728924000], "milliseconds are kept, they order the events"
    assert check_dataset(made.directory).ok


def test_gzip_files(imported: Callable) -> None:
    packed = {f"{name}.gz": gzip.compress(text.encode()) for name, text in FILES.items()}
    made = imported("amazon-2023", packed)
    assert (made.record.items, made.record.interactions) == (3, 8)


def test_bad_rows_are_counted(imported: Callable) -> None:
    bad = [
        {**REVIEWS[0], "user_id": ""},
        {**REVIEWS[0], "parent_asin": "UNKNOWN"},
        {**REVIEWS[0], "timestamp": "yesterday"},
        {**REVIEWS[0], "timestamp": True},
        {**REVIEWS[0], "timestamp": 10**30},
    ]
    made = imported("amazon-2023", FILES | {"All_Beauty.jsonl": lines([*REVIEWS, *bad])})
    assert made.left_out() == {
        "the user_id is empty": (1, [9]),
        "the item is not in the catalogue": (1, [10]),
        "the time is missing or bad, it must be milliseconds since 1970 (timestamp)": (3, [11, 12, 13]),
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"user_id": NaN}', "NaN is no JSON; write null in its place"),
        ('{"user_id": "\\ud83d"}', r"\\ud83d is half of a character"),
        ("[1]", "it is an array"),
        ('{"user_id": "a', "Invalid control character at"),
        ("nonsense", "Expecting value at character 1: 'nonsense'"),
        ('{"user_id": "caf\udce9"}', "it is not UTF-8"),
    ],
)
def test_a_broken_line_stops_with_its_number(imported: Callable, line: str, why: str) -> None:
    content = f"{lines(REVIEWS)}{line}\n".encode("utf-8", "surrogateescape")
    with pytest.raises(
        DatasetError, match=rf"All_Beauty\.jsonl: each line must be one JSON object, line 9 is not: {why}"
    ):
        imported("amazon-2023", FILES | {"All_Beauty.jsonl": content})


def test_a_gzip_file_that_is_cut_short(imported: Callable) -> None:
    packed = gzip.compress(FILES["All_Beauty.jsonl"].encode())
    files = {"meta_All_Beauty.jsonl": FILES["meta_All_Beauty.jsonl"], "All_Beauty.jsonl.gz": packed[:-20]}
    with pytest.raises(DatasetError, match=r"All_Beauty\.jsonl\.gz: the gzip file is damaged or cut short"):
        imported("amazon-2023", files)


def test_a_gzip_bomb_ends_early(imported: Callable) -> None:
    bomb = gzip.compress((b" " * 1_000 + b"\n") * 1_000) * 80
    assert len(bomb) < 400_000
    files = {"meta_All_Beauty.jsonl": FILES["meta_All_Beauty.jsonl"], "All_Beauty.jsonl.gz": bomb}
    with pytest.raises(DatasetError, match="unpacks to more than 200 times its size"):
        imported("amazon-2023", files)


def test_reviews_without_items(imported: Callable) -> None:
    with pytest.raises(DatasetError, match=r"no file with the items, looked for meta_\*\.jsonl"):
        imported("amazon-2023", {"All_Beauty.jsonl": lines(REVIEWS)})
