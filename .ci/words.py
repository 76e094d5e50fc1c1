#!/usr/bin/env python3
"""Refuse private words in identifiers, comments, docstrings, messages and docs; name each place and the standard term.

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

# Folders and files that are held to the list. The other folders of PACKAGES are reported with --all.
COVERED: Final = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs",
    "cli/app.py",
    "cli/errors.py",
    "cli/main.py",
    "cli/offline",
    "demo",
    "tests/cli",
    "tests/demo",
)
PACKAGES: Final = ("cli", "index", "training", "service", "bench", "tests", "ops", ".ci", "CHANGELOG.md")

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
    r"(text|image)[_-]taste",
    r"equal-tastes",
    r"VLM2REC_DIRECTIVES_FILE|\{directives\}|directives-<|directives\.json",
    r"redis_troubles|nothing_liked",
    r"::test_\w+|\btest_\w+\.py",  # tests that a page names; their names are checked where they are defined
)
# Pages that a bench makes, this list and its test.
EXEMPT: Final = ("docs/benchmarks.md", "docs/method-results.md", ".ci/words.py", "tests/test_words.py")
# Parts of covered folders that only --all checks.
PENDING: Final = ("docs/adr",)

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


def findings(place: str, exempt: Iterable[str]) -> Iterator[Finding]:
    """Private words in a file or in every module and page of a folder."""
    path, skipped = ROOT / place, {ROOT / name for name in exempt}
    for file in sorted([path] if path.is_file() else path.rglob("*")):
        if skipped.intersection((file, *file.parents)):
            continue
        if file.suffix == ".py":
            yield from in_python(file)
        elif file.suffix == ".md":
            yield from in_page(file)


def main() -> int:
    """Print what is found; 1 where a covered place has a private word, or with --all any place."""
    places, exempt = (COVERED, (*EXEMPT, *PENDING)) if "--all" not in sys.argv[1:] else ((*COVERED, *PACKAGES), EXEMPT)
    found = sorted({finding for place in places for finding in findings(place, exempt)})
    for finding in found:
        name = finding.file.relative_to(ROOT)
        sys.stdout.write(f"{name}:{finding.line}: “{finding.word}”: say {WORDS[finding.word]}\n")
    sys.stdout.write(f"words: {len(found)} private words in {len(places)} places\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
