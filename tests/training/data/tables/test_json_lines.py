"""JSON Lines files: valid lines are read exactly, invalid ones are named with a remedy."""

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.table_content import refusal, table
from training.data.tables import json_lines
from training.data.tables.table_files import read_table
from training.errors import DatasetError


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r'{"item_id": "3", "title": "Nice \ud83d hat"}', r"\ud83d is half of a character"),
        (r'{"item_id": "3", "title": "Nice \ude00 hat"}', r"\ude00 is half of a character"),
        (r'{"item_id": "3", "title": "\ud83d\ud83d\ude00"}', r"\ud83d is half of a character"),
        (r'{"item_id": "3", "t\ud83d": "x"}', r"\ud83d is half of a character"),
        (r'{"item_id": "3", "tags": ["a", "\uD83D"]}', r"\ud83d is half of a character"),
        (r'{"item_id": "3", "size": {"w": "\ud83d"}}', r"\ud83d is half of a character"),
        ('{"item_id": "3", "p": NaN}', "NaN is no JSON; write null in its place"),
        ('{"item_id": "3", "p": -Infinity}', "-Infinity is no JSON; write null"),
        ('{"item_id": "3", "p": [1, Infinity]}', "Infinity is no JSON; write null"),
        ('{"item_id": "3", "p": 1e999}', "line 3 cannot be read"),
        ('{"item_id": "3"},', "remove the commas between lines"),
        ('{"item_id": "3"} {"item_id": "4"}', "Extra data"),
        ("{'item_id': '3'}", "Expecting property name"),
        ('{"item_id": "a\tb"}', "Invalid control character"),
        ('{"item_id": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ("null", "it is null"),
        ("5", "it is a number"),
        ("\0\0\0", "NUL bytes"),
    ],
)
def test_a_bad_line_is_named_with_a_remedy(tmp_path: Path, line: str, words: str) -> None:
    message = refusal(tmp_path / "items.jsonl", f'{{"item_id": "1"}}\n\n{line}\n{{"item_id": "2"}}\n')
    assert "line 3" in message
    assert words in message
    assert len(message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("end", ['{"item_id":', '{"item_id": "3', '{"item_id": "3"'])
def test_a_cut_last_line_is_said_to_be_cut(tmp_path: Path, end: str) -> None:
    assert "line 2 is not: it is the last one and was cut" in refusal(
        tmp_path / "items.jsonl", f'{{"item_id": "1"}}\n{end}'
    )


def test_objects_over_several_lines_are_refused_with_a_remedy(tmp_path: Path) -> None:
    content = json.dumps({"item_id": "1"}, indent=1)
    assert "write one object a line" in refusal(tmp_path / "items.jsonl", content)


def test_values_that_do_not_go_together_are_refused_with_a_remedy(tmp_path: Path) -> None:
    lines = '{"item_id": "1", "sale": true}\n{"item_id": "2", "sale": 5}'
    assert "let all values of a column be of one kind" in refusal(tmp_path / "items.jsonl", lines)


def test_whole_characters_and_escaped_backslashes_are_read(tmp_path: Path) -> None:
    lines = (
        r'{"item_id": "1", "title": "\ud83d\ude00", "text": "\\ud83d", "tags": ["\uD83D\uDE00"]}' + "\n"
        r'{"item_id": "2", "title": "a\u0000b", "text": "", "tags": []}'
    )
    frame = table(tmp_path / "items.jsonl", lines)
    assert frame["title"].to_list() == ["😀", "a\0b"]
    assert frame["text"].to_list() == ["\\ud83d", ""]
    assert frame["tags"].to_list() == [["😀"], []]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=6), min_size=1, max_size=4),
    place=st.integers(0, 2**30),
    byte=st.integers(0, 255),
    escaped=st.booleans(),
)
def test_one_wrong_byte_in_json_lines_is_refused_or_read_as_python_reads_it(
    tmp_path: Path, texts: list[str], place: int, byte: int, escaped: bool
) -> None:
    lines = [json.dumps({"item_id": f"i{n}", "title": text}, ensure_ascii=escaped) for n, text in enumerate(texts)]
    content = bytearray("\n".join(lines).encode())
    content[place % len(content)] = byte
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    try:
        frame = read_table(path, text=["item_id", "title"], required=["item_id"])
    except DatasetError:
        return
    read = [json.loads(line) for line in bytes(content).removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    assert frame["item_id"].to_list() == [one.get("item_id") and str(one["item_id"]) for one in read]


def test_a_line_without_end_takes_a_bounded_amount_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    assert "line 1 has more than" in refusal(tmp_path / "items.jsonl", '{"item_id": "' + "x" * 200 + "\n")
