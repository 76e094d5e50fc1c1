"""Counts the instructions of a running process with Valgrind's callgrind, and divides them among its libraries."""

import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_COMPRESSED: Final = re.compile(r"^(ob|fn)=\((\d+)\)(?: (.*))?$")
_COST: Final = re.compile(r"^(?:\+|-|\*|0x)?[0-9a-f*]+ (\d+)$")
_LIBRARIES: Final = (
    ("faiss", "FAISS"),
    ("onnxruntime", "ONNX Runtime"),
    ("openblas", "BLAS"),
    ("_multiarray_umath", "numpy"),
    ("numpy", "numpy"),
    ("pydantic_core", "pydantic"),
    ("msgspec", "msgspec"),
    ("orjson", "orjson"),
    ("uvloop", "uvloop"),
    ("httptools", "httptools"),
    ("hiredis", "hiredis"),
    ("libc.so", "C library"),
    ("libc-", "C library"),
    ("libm.so", "C library"),
    ("libpthread", "C library"),
    ("ld-linux", "C library"),
    ("python", "interpreter"),
)
OTHER: Final = "other"


class CallgrindMissing(Exception):
    """The programs of Valgrind are not on PATH."""


def under_callgrind(out: Path) -> list[str]:
    """The command that runs another one uncounted, until :meth:`Counting.start`.

    Args:
        out: the counts are written to files whose names begin with this path.

    Raises:
        CallgrindMissing: Valgrind is not installed.
    """
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise CallgrindMissing("valgrind and callgrind_control must be on PATH; install the package valgrind")
    return ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", "--quiet"]


class Counting:
    """Counts the instructions of a process that runs under :func:`under_callgrind`.

    Args:
        pid: of the process.
        out: as given to :func:`under_callgrind`.
    """

    def __init__(self, pid: int, out: Path) -> None:
        self._pid = pid
        self._out = out
        self._dumps = 0
        self._began = 0.0

    def start(self) -> None:
        """Count from 0."""
        self._control("--instr=on")
        self._control("--zero")
        self._began = time.perf_counter()

    def stop(self) -> tuple[dict[str, int], float]:
        """Stop counting.

        Returns:
            Library → instructions since the start, and the seconds since then.
        """
        seconds = time.perf_counter() - self._began
        self._control("--dump")
        self._control("--instr=off")
        self._dumps += 1
        return by_library(self._out.with_name(f"{self._out.name}.{self._dumps}").read_text().splitlines()), seconds

    def _control(self, order: str) -> None:
        subprocess.run(["callgrind_control", order, str(self._pid)], check=True, capture_output=True)


def by_library(lines: Iterable[str]) -> dict[str, int]:
    """Library → instructions that its own functions ran, from the lines of a file of callgrind.

    A line of costs belongs to the object and the function before it, unless it follows a line ``calls=``: then it has
    the cost of a call, which the called function has as well.
    """
    names: dict[str, str] = {}
    found: dict[str, int] = defaultdict(int)
    library, of_call = OTHER, False
    for line in lines:
        if line.startswith("ob="):
            library = _library(_name(line, names))
        elif line.startswith("cob="):
            _name(line[1:], names)
        elif line.startswith("calls="):
            of_call = True
        elif match := _COST.match(line):
            if not of_call:
                found[library] += int(match[1])
            of_call = False
    return dict(found)


def _name(line: str, names: dict[str, str]) -> str:
    """The name of an object, which is written once and later given by its number."""
    match = _COMPRESSED.match(line)
    if match is None:
        return line.partition("=")[2]
    if match[3] is not None:
        names[match[2]] = match[3]
    return names[match[2]]


def _library(path: str) -> str:
    return next((name for part, name in _LIBRARIES if part in path.rpartition("site-packages")[2]), OTHER)
