#!/usr/bin/env python3
"""Refuse private words in identifiers, comments, docstrings, messages and docs, and class names with several classes.

ALLOWED lists names that are fixed by a stored format or a command line.
Only the standard library is used: it runs before anything is installed.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent

# The root's pages, and folders whose modules and pages are checked.
COVERED: Final = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("docs", "index", "training", "service", "cli", "demo", "bench", "ops", "tests", ".ci"),
)
# One class name is one class in all of these together.
PACKAGES: Final = ("index", "training", "service", "cli", "demo", "bench")

# A word or phrase, and the standard term. An underscore in an identifier counts as a space.
WORDS: Final = {
    "wish": "request",
    "wishes": "requests",
    "taste": "query vector; in the demo: preference",
    "tastes": "query vectors; in the demo: preferences",
    "shelf": "loaded bundles",
    "directives": "operator state",
    "slow lane": "bounded executor",
    "envelope": "middleware",
    "hurry": "admission",
    "barred": "excluded",
    "liked": "positive",
    "looked up": "search result",
    "likewise": "also, or the statement itself",
    "whoever": "the noun",
    "deaf": "stop accepting",
    "see there": "a link",
    "what is kept of": "the noun",
    "has been heard": "has been read",
    "trouble": "error",
    "troubles": "errors",
    "told": "reported, logged, shown",
    "uttered": "requested",
}
# Text in which a word above is part of a fixed name or has its standard meaning.
ALLOWED: Final = (
    r"-taste\b|(text|image)_taste",  # former options
    r"VLM2REC_DIRECTIVES_FILE|directives_file|\{directives\}|directives-[<*{]|directives\.json|`directives`",
    r"redis_troubles|nothing_liked",
    r"`redis\s+trouble`|`directives\s+not\s+kept`|`nearest\s+1\s+%\s+barred`",  # former names in CHANGELOG.md
)
# Environments of benches, this list and its test.
EXEMPT: Final = ("bench/.venvs", ".ci/words.py", "tests/test_words.py")

_WORD: Final = re.compile(
    r"(?<![A-Za-z])("
    + "|".join(word.replace(" ", r"\s+") for word in sorted(WORDS, key=len, reverse=True))
    + r")(?![A-Za-z])",
    re.IGNORECASE,
)
_ALLOWED: Final = re.compile("|".join(ALLOWED), re.IGNORECASE)
_KEY: Final = re.compile(r"[\w.:/-]*")


class Finding(NamedTuple):
    """A private word and where it stands."""

    file: Path
    line: int
    word: str


def words_of(text: str) -> Iterator[tuple[int, str]]:
    """Offset and spelling of each private word in a text."""
    blanked = _ALLOWED.sub(lambda found: "~" * len(found[0]), text)
    for found in _WORD.finditer(blanked):
        yield found.start(), " ".join(found[0].lower().split())


def spelled(identifier: str) -> str:
    """An identifier as words: `_SlowLane` and `slow_lane` become `Slow Lane` and `slow lane`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", identifier).replace("_", " ")


def in_python(file: Path) -> Iterator[Finding]:
    """Private words in the identifiers, comments and strings of a module; a string without a space is a stored name."""
    source = file.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not _ALLOWED.search(token.string):
            yield from (Finding(file, token.start[0], word) for _, word in words_of(spelled(token.string)))
        elif token.type == tokenize.COMMENT:
            yield from (Finding(file, token.start[0], word) for _, word in words_of(token.string))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _KEY.fullmatch(node.value):
            for offset, word in words_of(node.value):
                yield Finding(file, node.lineno + node.value[:offset].count("\n"), word)


def in_page(file: Path) -> Iterator[Finding]:
    """Private words in a page."""
    text = file.read_text(encoding="utf-8")
    for offset, word in words_of(text):
        yield Finding(file, text[:offset].count("\n") + 1, word)


def exempt(file: Path) -> bool:
    """Whether a file, or a folder above it, is exempt."""
    return not {ROOT / name for name in EXEMPT}.isdisjoint((file, *file.parents))


def findings(place: str) -> Iterator[Finding]:
    """Private words in a file or in every module and page of a folder."""
    path = ROOT / place
    for file in sorted([path] if path.is_file() else path.rglob("*")):
        if exempt(file):
            continue
        if file.suffix == ".py":
            yield from in_python(file)
        elif file.suffix == ".md":
            yield from in_page(file)


def classes_of_one_name(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Each name that several top-level classes share, with the modules that define them."""
    defined: dict[str, list[Path]] = {}
    for file in sorted(files):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(file)
    return {name: places for name, places in sorted(defined.items()) if len(places) > 1}


def main() -> int:
    """Print the private words and the names of several classes; 1 where there is one."""
    found = sorted({finding for place in COVERED for finding in findings(place)})
    for finding in found:
        name = finding.file.relative_to(ROOT)
        sys.stdout.write(f"{name}:{finding.line}: “{finding.word}”: say {WORDS[finding.word]}\n")
    modules = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if not exempt(file)]
    shared = classes_of_one_name(modules)
    for name, files in shared.items():
        places = ", ".join(str(file.relative_to(ROOT)) for file in files)
        sys.stdout.write(f"{places}: several classes are named {name}\n")
    sys.stdout.write(f"words: {len(found)} private words, {len(shared)} names of several classes\n")
    return 1 if found or shared else 0


if __name__ == "__main__":
    sys.exit(main())
