"""Reading a dataset directory: rows, their order, and the message of every refusal."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data.dataset import Dataset, in_order, load_dataset, read_interactions
from training.errors import DatasetError

ITEMS = "item_id,title,text,image,price\n007,Mug,A mug,images/a.png,4.5\nb,Bowl,,,\nc,, ,images/none.png,7\n"
EVENTS = "user_id,item_id,timestamp\nu2,b,20\nu1,007,30\nu1,c,10\nu2,007,20\nu1,b,10\nu2,zzz,5\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write items and interactions (text or bytes) into a directory and give the directory."""

    def write_files(items: str | bytes = ITEMS, events: str | bytes = EVENTS, suffix: str = "csv") -> Path:
        for name, content in ((f"items.{suffix}", items), ("interactions.csv", events)):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write_files


def refusal(directory: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_dataset(directory)
    return str(caught.value)


def test_keeps_file_order_of_items_and_reads_ids_as_text(write: Write) -> None:
    dataset = load_dataset(write())
    assert dataset.item_ids() == ["007", "b", "c"]
    assert len(dataset) == 3


def test_users_by_first_appearance_events_by_time_and_ties_in_file_order(write: Write) -> None:
    dataset = load_dataset(write())
    assert dataset.interactions.rows() == [
        ("u2", "b", 20),
        ("u2", "007", 20),
        ("u1", "c", 10),
        ("u1", "b", 10),
        ("u1", "007", 30),
    ]
    assert dataset.orphans == 1


def test_text_falls_back_to_title_and_white_space_is_none(write: Write) -> None:
    assert list(load_dataset(write()).texts()) == ["A mug", "Bowl", None]


def test_a_text_without_a_letter_or_digit_is_none(write: Write) -> None:
    """A dash is what exports write into empty cells: it hides no title."""
    cells = ["lamp,—", "...,!!!", "7,-", ",a", "красный,***", "赤い,*", "x²,_"]
    items = "".join(f"{row},{cell}\n" for row, cell in enumerate(cells))
    events = "user_id,item_id,timestamp\nu,0,1\n"
    texts = load_dataset(write(items=f"item_id,title,text\n{items}", events=events)).texts()
    assert list(texts) == ["lamp", None, "7", "a", "красный", "赤い", "x²"]
    assert [texts[row] for row in range(2)] == ["lamp", None]


def test_metadata_has_plain_arrow_types_and_no_item_id(write: Write) -> None:
    metadata = load_dataset(write()).metadata()
    assert metadata.schema == pa.schema(
        [("title", pa.string()), ("text", pa.string()), ("image", pa.string()), ("price", pa.float64())]
    )
    assert metadata.column("price").to_pylist() == [4.5, None, 7.0]


def test_columns_that_the_catalogue_lacks_are_null(write: Write) -> None:
    dataset = load_dataset(write(items="item_id\n007\nb\n"))
    assert dataset.items.columns == ["item_id", "title", "text", "image"]
    assert list(dataset.texts()) == [None, None]
    assert dataset.image_path(0) is None


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-20"], [1, -20]),
        (["1", "2.5"], [1.0, 2.5]),
        (["true", "False"], [True, False]),
        (["007", "8"], ["007", "8"]),
        (["1", "x"], ["1", "x"]),
        (["NaN", "1"], ["NaN", "1"]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["", "3"], [None, 3]),
        (["", ""], [None, None]),
    ],
)
def test_csv_metadata_takes_the_narrowest_type_that_loses_nothing(
    write: Write, cells: list[str], expected: list[object]
) -> None:
    items = f"item_id,title,value\n007,Mug,{cells[0]}\nb,Bowl,{cells[1]}\n"
    values = load_dataset(write(items=items)).metadata().column("value").to_pylist()
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]


def test_byte_order_mark_quotes_newlines_and_blank_lines_in_csv(write: Write) -> None:
    items = '\ufeffitem_id,title\n\n007,"a ""big"", blue\nmug"\nb,plain\n\n'
    dataset = load_dataset(write(items=items))
    assert dataset.item_ids() == ["007", "b"]
    assert dataset.texts()[0] == 'a "big", blue\nmug'


def test_jsonl_keeps_lists_numbers_and_bools(write: Write) -> None:
    lines = [
        {"item_id": "007", "tags": ["red", "new"], "stock": 3, "sale": True},
        {"item_id": 8, "title": "Bowl", "price": 2.5, "tags": None},
    ]
    items = "\ufeff" + "\n".join(json.dumps(line) for line in lines) + "\n"
    dataset = load_dataset(write(items=items, suffix="jsonl"))
    assert dataset.item_ids() == ["007", "8"]
    metadata = dataset.metadata()
    assert metadata.column("tags").to_pylist() == [["red", "new"], None]
    assert metadata.schema.field("tags").type == pa.list_(pa.string())
    assert metadata.column("sale").to_pylist() == [True, None]


def test_parquet_keeps_types_and_turns_whole_number_ids_into_text(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "item_id": [7, 8],
            "kind": pl.Series(["a", "b"], dtype=pl.Categorical),
            "since": [date(2026, 1, 1), None],
            "sizes": [[1, 2], []],
        }
    ).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame(
        {"user_id": [1, 1], "item_id": [8, 7], "timestamp": [date(2026, 1, 2), date(2026, 1, 1)]}
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ms"))).write_parquet(tmp_path / "interactions.parquet")
    dataset = load_dataset(tmp_path)
    assert dataset.item_ids() == ["7", "8"]
    assert dataset.interactions.rows() == [("1", "7", 1767225600), ("1", "8", 1767312000)]
    assert dataset.metadata().column("kind").to_pylist() == ["a", "b"]
    assert dataset.metadata().column("sizes").to_pylist() == [[1, 2], []]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ("", "empty"),
        ("item_id,title\n", "at least one item"),
        ("id,title\n1,a\n", "'item_id' is missing, found 'id', 'title'"),
        ("item_id;title\n1;a\n", "this one has semicolons"),
        ("item_id,title,title\n1,a,b\n", "'title' appears more than once"),
        ("item_id,title\n1,a\n2,b\n1,c\n1,d\n", "'1' is repeated in rows 3, 4"),
        ("item_id,title\n1,a\n,b\n", "row 2"),
        ("item_id,title\n1,a\n" + "é" * 151 + ",b\n", "1 to 256 bytes"),
        ('item_id,title\n1,a\n"x\ny",b\n', "control characters"),
        ("item_id,title\n1,a\n2,b,c\n", "line 3 has 3 fields, the header has 2"),
        ('item_id,title\n1,"a\n', "line 2: a quoted field begins here and is never closed"),
        ("item_id,popularity\n1,3\n", "'popularity' is reserved"),
        ("item_id,#row\n1,3\n", "must not be called '#row'"),
        ("item_id,title\n1,caf\xe9\n".encode("latin-1"), "must be UTF-8, line 2 is not"),
        ("item_id,title\n1,a\n".encode("utf-16"), "is UTF-16, it must be UTF-8"),
    ],
)
def test_refuses_a_bad_items_file_and_says_why(write: Write, items: str | bytes, words: str) -> None:
    message = refusal(write(items=items))
    assert words in message
    assert "items.csv" in message


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ("", "the file is empty"),
        ("\ufeff", "the file is empty"),
        ('{"item_id": "1"}\n{"item_id":\n', "line 2"),
        ('{"item_id": "1"}\n[1, 2]\n', "line 2"),
        ('{"item_id": "1", "size": {"w": 1}}\n', "'size' holds"),
        ('{"item_id": ["1"]}\n', "'item_id' must hold strings"),
        ('{"item_id": "1", "grid": [[1]]}\n', "'grid' holds"),
        ('{"item_id": "caf\xe9"}\n'.encode("latin-1"), "must be UTF-8, line 1"),
    ],
)
def test_refuses_bad_json_lines(write: Write, items: str | bytes, words: str) -> None:
    assert words in refusal(write(items=items, suffix="jsonl"))


def test_refuses_parquet_ids_with_a_fraction(tmp_path: Path, write: Write) -> None:
    write()
    (tmp_path / "items.csv").unlink()
    pl.DataFrame({"item_id": [7.0, None]}).write_parquet(tmp_path / "items.parquet")
    assert "'item_id' must hold strings or whole numbers" in refusal(tmp_path)


def test_refuses_a_broken_parquet_file(tmp_path: Path, write: Write) -> None:
    write()
    (tmp_path / "items.csv").rename(tmp_path / "items.parquet")
    assert "not a readable parquet file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ("user_id,item_id,timestamp\n", "at least one interaction"),
        ("user_id,item_id\nu,b\n", "'timestamp' is missing"),
        ("user_id,item_id,timestamp\nu,b,1\n,b,1\n", "'user_id' must not be empty, row 2"),
        ("user_id,item_id,timestamp\nu,,1\n", "'item_id' must not be empty, row 1"),
        ("user_id,item_id,timestamp\nu,b,1\nu,b,abc\nu,b,\n", "got 'abc' in rows 2, 3"),
        ("user_id,item_id,timestamp\nu,b,-1\n", "got '-1' in row 1"),
        ("user_id,item_id,timestamp\nu,b,NaN\n", "got 'NaN' in row 1"),
        ("user_id,item_id,timestamp\nu,b,inf\n", "got 'inf' in row 1"),
        ("user_id,item_id,timestamp\nu,b,1e30\n", "got '1e30' in row 1"),
        ("user_id,item_id,timestamp\nu,b,2026-02-30\n", "got '2026-02-30' in row 1"),
        ("user_id,item_id,timestamp\nu,b,1700000000\nu,b,1700000001\nu,b,1700000002000\n", "one unit"),
        ("user_id,item_id,timestamp\nu,b,2026-01-01\nu,b,2026-01-02\nu,b,1700000000\n", "got '1700000000' in row 3"),
        ("user_id,item_id,timestamp\nu,zzz,1\n", "none of 1 interactions names an item"),
    ],
)
def test_refuses_bad_interactions_and_names_the_row(write: Write, events: str, words: str) -> None:
    message = refusal(write(events=events))
    assert words in message
    assert "interactions.csv" in message


def test_blank_lines_do_not_shift_row_numbers(write: Write) -> None:
    assert "row 3" in refusal(write(events="user_id,item_id,timestamp\nu,b,1\n\nu,b,x\n"))


@pytest.mark.parametrize(
    ("spelled", "seconds"),
    [
        ("1700000000", 1700000000),
        ("1700000000.9", 1700000000),
        ("1700000000123", 1700000000),
        ("1700000000123456", 1700000000),
        ("1700000000123456789", 1700000000),
        ("0", 0),
        (" 12 ", 12),
        ("2023-11-14", 1699920000),
        ("2023-11-14T22:13", 1699999980),
        ("2023-11-14 22:13:20", 1700000000),
        ("2023-11-14T22:13:20.75Z", 1700000000),
        ("2023-11-14T23:13:20+01:00", 1700000000),
        ("2023-11-14T23:13:20+0100", 1700000000),
        ("2023-11-14T23:13:20+01", 1700000000),
    ],
)
def test_timestamps_in_every_accepted_spelling(tmp_path: Path, spelled: str, seconds: int) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text(f"user_id,item_id,timestamp\nu,b,{spelled}\n")
    assert read_interactions(path)["timestamp"].to_list() == [seconds]


@pytest.mark.parametrize("value", [1700000000, 1700000000.5, 1700000000123])
def test_timestamps_as_numbers_in_parquet(tmp_path: Path, value: float) -> None:
    path = tmp_path / "interactions.parquet"
    pl.DataFrame({"user_id": ["u"], "item_id": ["b"], "timestamp": [value]}).write_parquet(path)
    assert read_interactions(path)["timestamp"].to_list() == [1700000000]


def test_fractions_of_a_second_count_for_the_order(tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text("user_id,item_id,timestamp\nu,late,5.9\nu,early,5.1\n")
    assert read_interactions(path)["item_id"].to_list() == ["early", "late"]


@pytest.mark.parametrize("column", [[True], [[1]]])
def test_refuses_timestamp_columns_of_another_type(tmp_path: Path, column: list[object]) -> None:
    path = tmp_path / "i.parquet"
    pl.DataFrame({"user_id": ["u"], "item_id": ["b"], "timestamp": column}).write_parquet(path)
    with pytest.raises(DatasetError, match="'timestamp' must hold"):
        read_interactions(path)


def test_interactions_of_another_file_take_the_place_of_the_directorys(write: Write, tmp_path: Path) -> None:
    other = tmp_path / "fresh.csv"
    other.write_text("user_id,item_id,timestamp,rating\nnew,c,1,5\n")
    assert load_dataset(write(), interactions=other).interactions.rows() == [("new", "c", 1)]


def test_refuses_missing_directory_missing_files_and_ambiguity(tmp_path: Path, write: Write) -> None:
    assert "there is none at this path" in refusal(tmp_path / "nowhere")
    assert "needs items.csv or items.jsonl or items.parquet" in refusal(tmp_path)
    write()
    assert refusal(tmp_path / "items.csv").endswith(
        "is a file; a dataset is a directory, so name the one that holds it"
    )
    (tmp_path / "items.jsonl").write_text("{}")
    assert "items.csv and items.jsonl; keep one" in refusal(tmp_path)
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(DatasetError, match="no such file"):
        load_dataset(tmp_path, interactions=tmp_path / "none.csv")
    with pytest.raises(DatasetError, match=r"got the suffix '\.txt'"):
        load_dataset(tmp_path, interactions=tmp_path / "a.txt")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(DatasetError, match="not a directory"):
        load_dataset(tmp_path, interactions=tmp_path / "dir.csv")


def test_a_file_that_may_not_be_read_is_a_dataset_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write()

    def denied(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refusal(directory)
    monkeypatch.setattr(Path, "is_dir", denied)
    assert "cannot be opened" in refusal(directory)


def test_glob_characters_in_the_path_are_taken_literally(tmp_path: Path) -> None:
    directory = tmp_path / "a[bc]*"
    directory.mkdir()
    (directory / "items.csv").write_text(ITEMS)
    (directory / "interactions.csv").write_text(EVENTS)
    assert len(load_dataset(directory)) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30))
def test_order_is_that_of_a_stable_sort(events: list[tuple[str, int]]) -> None:
    frame = pl.DataFrame(
        {"user_id": [user for user, _ in events], "item_id": [str(n) for n in range(len(events))],
         "timestamp": [time for _, time in events]},
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
    )  # fmt: skip
    seen: list[str] = []
    for user, _ in events:
        if user not in seen:
            seen.append(user)
    numbered = [(user, str(n), time) for n, (user, time) in enumerate(events)]
    expected = [row for user in seen for row in sorted((r for r in numbered if r[0] == user), key=lambda r: r[2])]
    assert in_order(frame).rows() == expected


def test_metadata_and_texts_of_a_large_catalogue_are_those_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 20_000
    items = pl.DataFrame(
        {
            "item_id": [str(row) for row in range(rows)],
            "title": [None if row % 5 == 0 else f"title {row}" for row in range(rows)],
            "text": [(None, " \u2003", f"text {row}", "")[row % 4] for row in range(rows)],
            "image": [None] * rows,
            "tags": [["a"] * (row % 3) for row in range(rows)],
        },
        schema_overrides={"image": pl.String},
    )
    dataset = Dataset(tmp_path, items, pl.DataFrame())
    expected = dataset.metadata()
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training.data.dataset.LARGE_BYTES", 0)
    found = dataset.metadata()
    assert found.schema == expected.schema
    assert found.equals(expected)
    texts = dataset.texts()
    assert list(texts) == [
        f"text {row}" if row % 4 == 2 else None if row % 5 == 0 else f"title {row}" for row in range(rows)
    ]
    assert [texts[1], texts[2], texts[5], texts[-2]] == ["title 1", "text 2", None, f"text {rows - 2}"]
    assert texts[9_998:10_003] == list(texts)[9_998:10_003]
