"""Finds the first invalid line of a JSON Lines file that could not be read as a whole, with a remedy."""

import io
import json
import re
from pathlib import Path
from typing import BinaryIO, NoReturn

import polars as pl

MAX_LINE_BYTES = 2**26
"""Longest permitted line; it bounds the memory for a malicious file."""
_AT_ONCE = 2**20
_SHOWN_BYTES = 60
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


class _NotJson(ValueError):
    """A value that Python's parser accepts and JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJson(f"{name} is no JSON; write null in its place")


def first_fault(path: Path) -> str | None:
    """The fault of the first line that is not one JSON object, with line number and remedy.

    Args:
        path: UTF-8, with or without a byte-order mark; blank lines are skipped.

    Returns:
        One clause; None if every line is one JSON object that polars can read.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        _skip_mark(stream)
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) >= MAX_LINE_BYTES:
                return f"line {number} has more than {MAX_LINE_BYTES // 2**20} MiB; a line must be shorter"
            fault = line_fault(line, number)
            if fault is not None:
                return fault
    return _first_that_polars_refuses(path)


def line_fault(line: bytes, number: int) -> str | None:
    """The fault of one line, with line number and remedy.

    Args:
        line: with its line feed, if it has one; a blank line is skipped.
        number: of the line, from 1.

    Returns:
        One clause; None if the line is one JSON object.
    """
    fault = _fault_of_line(line) if line.strip() else None
    if fault is None:
        return None
    return f"each line must be one JSON object, line {number} is not: {_explained(line, number, fault)}"


def first_half_character(path: Path) -> str | None:
    r"""Find an escape such as ``\ud83d`` that is half a character; polars silently turns it into NUL.

    Args:
        path: a file that polars read.

    Returns:
        One clause with the line number; None if there is no such escape.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        _skip_mark(stream)
        for number, line in enumerate(stream, start=1):
            if _SURROGATE.search(line):
                fault = _fault_of_line(line)
                if fault is not None:
                    return f"line {number}: {fault}"
    return None


def _skip_mark(stream: BinaryIO) -> None:
    if stream.read(3) != b"\xef\xbb\xbf":
        stream.seek(0)


def _fault_of_line(line: bytes) -> str | None:
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            return f"it is {_kind(value)}"
        half = _half_character(value) if _SURROGATE.search(line) else None
    except _NotJson as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    except json.JSONDecodeError as error:
        return f"{error.msg} at character {error.colno}"
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except ValueError as error:  # a number with thousands of digits
        return str(error)
    if half is None:
        return None
    return (
        f"\\u{ord(half):04x} is half of a character, as when a text is cut by UTF-16 units; cut texts between "
        "characters, or remove it"
    )


def _half_character(value: object) -> str | None:
    """An unpaired surrogate in any string of a JSON value; the parser joins pairs."""
    if isinstance(value, str):
        found = _HALF.search(value)
        return found[0] if found else None
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((half for part in parts if (half := _half_character(part)) is not None), None)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a bool", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _explained(line: bytes, number: int, fault: str) -> str:
    """The fault with a remedy if the line shows its cause."""
    stripped = line.strip()
    if not line.endswith(b"\n") and stripped.startswith(b"{") and not stripped.endswith(b"}"):
        return f"it is the last one and was cut; fetch or export the file again, or remove the line ({fault})"
    if not stripped.strip(b"\x00"):
        return "it holds NUL bytes, the file was not written out whole; export it again"
    if number == 1 and stripped in (b"{", b"["):
        return "a value goes over several lines; write one object a line, for example with `jq -c .`"
    if stripped.startswith(b"{") and stripped.endswith(b"},"):
        return "a comma follows the object; remove the commas between lines"
    if number == 1 and not stripped.startswith((b"{", b"[")) and b"," in stripped and b'"' not in stripped:
        return f"it looks like the header of a CSV file; give the file the suffix .csv ({_shown(stripped)})"
    return f"{fault}: {_shown(stripped)}"


def _first_that_polars_refuses(path: Path) -> str | None:
    """The first valid line that polars refuses, for example for a number out of range."""
    with path.open("rb") as stream:
        _skip_mark(stream)
        number = 0
        while lines := stream.readlines(_AT_ONCE):
            if _error_of(b"".join(lines)) is not None:
                for place, line in enumerate(lines, start=1):
                    error = _error_of(line) if line.strip() else None
                    if error is not None:
                        return f"line {number + place} cannot be read: {error}: {_shown(line.strip())}"
            number += len(lines)
    return None


def _error_of(content: bytes) -> str | None:
    try:
        pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _shown(content: bytes) -> str:
    """The beginning of a line for a message."""
    return repr(content[:_SHOWN_BYTES].decode("utf-8", "replace")) + ("…" if len(content) > _SHOWN_BYTES else "")
