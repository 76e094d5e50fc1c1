"""Text search: the rows that brute force finds, page by page, with a bounded amount of text per page."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.bundle.bundle import Bundle
from index.filters import text_search
from index.filters.text_search import TextSearch

IDS = pa.array(["a1", "b2", "c3", "d4", "e5", "f6"], pa.large_string())
METADATA = pa.table(
    {
        "note": pa.array(["blue", None, "Shoe polish", "", "x", "SHOE"], pa.large_string()),
        "title": pa.array(["Red shoe", "Hat", "Brush", None, "Äpfel (50%)", "A.B"], pa.large_string()),
        "image": pa.array(["shoe.jpg"] * 6, pa.large_string()),
        "kind": pa.array(["p", "q", "p", None, "shoes", "q"], pa.dictionary(pa.int32(), pa.large_string())),
        "price": pa.array([1.0, 2.0, None, 4.0, 5.0, 6.0]),
        "tags": pa.array([["shoe"]] * 6, pa.large_list(pa.large_string())),
    }
)


def every(search: TextSearch, text: str, limit: int, **more: Any) -> tuple[list[int], int]:
    """All rows found, and the number of pages."""
    rows: list[int] = []
    start: int | None = 0
    pages = 0
    while start is not None:
        page = search.page(text, start, limit, **more)
        assert len(page.rows) <= limit
        assert page.next is None or page.next > start
        rows, start, pages = rows + page.rows, page.next, pages + 1
    return rows, pages


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("shoe", [0, 2, 4, 5]),  # the title first; then note and kind; never the file name, the tags or the price
        ("SHOE", [0, 2, 4, 5]),
        ("äPFEL", [4]),
        ("a.b", [5]),
        ("%", [4]),
        ("(", [4]),
        ("b", [1, 2, 5, 0]),  # in the ids and titles of 1, 2 and 5, in the note of 0
        ("C3", [2]),
        ("nowhere", []),
        ("jpg", []),
        ("1.0", []),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 6])
def test_titles_and_ids_first_then_other_texts(text: str, rows: list[int], limit: int) -> None:
    assert every(TextSearch(IDS, METADATA), text, limit)[0] == rows


def test_a_catalogue_without_title_or_any_text() -> None:
    assert every(TextSearch(IDS, METADATA.select(["price"])), "f", 3) == ([5], 1)
    assert every(TextSearch(IDS, METADATA.select(["note"])), "shoe", 3)[0] == [2, 5]


def test_a_page_past_the_end_is_empty() -> None:
    search = TextSearch(IDS, METADATA)
    for start in (12, 13, 2**53):
        page = search.page("shoe", start, 5)
        assert (page.rows, page.next) == ([], None)


@pytest.mark.parametrize("block", [1, 7, 4096])
@pytest.mark.parametrize("limit", [1, 13, 500])
def test_results_equal_brute_force(monkeypatch: pytest.MonkeyPatch, block: int, limit: int) -> None:
    monkeypatch.setattr(text_search, "_BLOCK_ROWS", block)
    rng = np.random.default_rng(3)
    titles = ["".join(rng.choice(list("abAB "), size=6)) for _ in range(200)]
    notes = ["".join(rng.choice(list("abAB "), size=9)) for _ in range(200)]
    ids = [f"{number:03d}" for number in range(200)]
    table = pa.table({"title": pa.array(titles, pa.large_string()), "note": pa.array(notes, pa.large_string())})
    search = TextSearch(pa.array(ids, pa.large_string()), table)
    for text in ("aba", "BB", "12", "a b"):
        lower = text.lower()
        first = [row for row in range(200) if lower in titles[row].lower() or lower in ids[row]]
        later = [row for row in range(200) if lower in notes[row].lower() and row not in first]
        assert first or later
        assert every(search, text, limit)[0] == first + later


def test_a_page_reads_at_most_a_block_over_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_search, "_BLOCK_ROWS", 10)
    texts = pa.array(["x" * 92] * 1000, pa.large_string())  # 10 rows and their 11 offsets take 1,008 bytes
    search = TextSearch(texts, pa.table({"price": pa.array(np.arange(1000.0))}))
    assert search.page("y", 0, 5, most_bytes=5_000).next == 50
    rows, pages = every(search, "y", 5, most_bytes=5_000)
    assert (rows, pages) == ([], 20)


def test_the_texts_of_a_bundle(small_bundle: Path) -> None:
    search = Bundle.load(small_bundle).text_search
    titled = [row for row in range(60) if row != 5 and "5" in f"Item number {row}"]
    assert every(search, "5", 7)[0] == sorted([*titled, 5])  # 5 by its id
    assert every(search, "HATS", 7)[0] == list(range(1, 60, 3))
    assert every(search, "👟", 7)[0] == [59]
