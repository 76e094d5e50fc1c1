r"""Postgres: CSV and text format of COPY, `\N`, escapes, and times as Postgres spells them."""

from collections.abc import Callable

import pytest

from training.data_check.check import check_dataset
from training.errors import DatasetError

ITEMS_CSV = (
    "item_id,title,text,image,price,brand,code,in_stock\n"
    '007,"Tee, green","two\nlines, ""quoted""",pictures/7.png,19.99,\\N,007,t\n'
    "8,Mug,,,8.00,Acme,008,f\n"
    "9,Hat,,gone.png,,Acme,1,t\n"
)
EVENTS_CSV = (
    "user_id,item_id,timestamp\n1,007,2024-01-31 10:30:00.25+00\n1,8,2024-01-31 11:30:00.125+01\n"
    "1,9,2024-02-01 00:00:00\n2,9,infinity\n1,007,2024-02-02 00:00:00+00\n"
)
ITEMS_TEXT = (
    "item_id\ttitle\ttext\tprice\n"
    "007\tTee\ttab\\there, line\\nthere, back\\\\slash, \\\\N\t19.99\n8\tMug\t\\N\t\\N\n\\.\n"
)
EVENTS_TEXT = "user_id\titem_id\ttimestamp\n" + "".join(
    f"1\t{item}\t{1700000000123 + n}\n" for n, item in enumerate(("007", "8", "8", "007"))
)


def test_pictures_of_one_name_in_two_folders_stay_apart(imported: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError

    names = ["images/a.png", "a.png", "a.png", "images/b.png", "b.png"]
    rows = "".join(f"{number},{name}\n" for number, name in enumerate(names))
    files = {"items.csv": "item_id,image\n" + rows, "interactions.csv": "user_id,item_id,timestamp\nu,0,2024-01-31\n"}
    files |= {name: b"same" if "b" in name else name.encode() for name in names}
    for links in (True, False):  # another file system has none
        if not links:
            monkeypatch.setattr("os.link", no_links)
        made = imported("postgres", files, force=not links)
        taken = [item["image"] for item in made.items().values()]
        assert taken == ["images/a.png", "images/a-2.png", "images/a-2.png", "images/b.png", "images/b.png"]
        assert [(made.directory / image).read_bytes() for image in taken] == [files[name] for name in names]


def test_csv(imported: Callable) -> None:
    made = imported("postgres", {"items.csv": ITEMS_CSV, "interactions.csv": EVENTS_CSV, "pictures/7.png": b"png"})
    items = made.items()
    tee = items["007"]
    assert (tee["title"], tee["text"]) == ("Tee, green", 'two\nlines, "quoted"')
    assert (tee["price"], tee["brand"], tee["code"], tee["in_stock"]) == (19.99, None, "007", "t")
    assert tee["image"] == "images/pictures/7.png"
    assert (made.directory / tee["image"]).read_bytes() == b"png"
    assert items["9"]["image"] is None
    assert made.left_empty() == {"the picture is not in the source directory; image left empty": (1, [5])}
    assert made.events() == [
        ("1", "8", 1706697000),
        ("1", "007", 1706697000),
        ("1", "9", 1706745600),
        ("1", "007", 1706832000),
    ]
    assert made.left_out() == {
        "the time is missing or bad, it must hold seconds, milli-, micro- or nanoseconds since 1970, or ISO 8601 dates "
        "such as 2026-01-31T10:30:00": (1, [5])
    }
    assert check_dataset(made.directory).ok


def test_text_format(imported: Callable) -> None:
    made = imported("postgres", {"items.tsv": ITEMS_TEXT, "interactions.copy": EVENTS_TEXT})
    items = made.items()
    assert items["007"]["text"] == "tab\there, line\nthere, back\\slash, \\N"
    assert items["8"]["text"] is None
    assert items["007"]["price"] == 19.99
    assert [time for *_, time in made.events()] == [1700000000] * 4, "milliseconds by the median of the file"
    assert check_dataset(made.directory).ok


def test_nothing_after_the_end_mark_is_read(imported: Callable) -> None:
    made = imported("postgres", {"items.tsv": ITEMS_TEXT + "broken\n", "interactions.tsv": EVENTS_TEXT})
    assert list(made.items()) == ["007", "8"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items.tsv": "007\tTee\n"}, r"items\.tsv: line 1 must name the columns and has no 'item_id', found '007'"),
        ({"items.tsv": ITEMS_TEXT.replace("8\tMug", "8")}, r"items\.tsv: line 3 has 3 fields between '\\t'"),
        ({"items.tsv": ITEMS_TEXT.replace("Tee", "T\\x41")}, r"items\.tsv: line 2: an escape of a byte by its number"),
        ({"items.csv": ITEMS_CSV, "items.tsv": ITEMS_TEXT}, r"found items\.csv and items\.tsv for the table items"),
        ({"items.csv": ITEMS_CSV.replace("brand", "popularity")}, r"'popularity' is reserved; SELECT it AS another"),
        ({"items.csv": ITEMS_CSV, "interactions.tsv": "\n"}, r"interactions\.tsv: the file is empty; COPY with HEADER"),
    ],
)
def test_every_fault_is_named(imported: Callable, files: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        imported("postgres", {"interactions.csv": EVENTS_CSV} | files if "interactions.tsv" not in files else files)
