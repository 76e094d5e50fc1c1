"""Finds missing and misspelled column names of a table."""

import unicodedata
from collections.abc import Sequence

_INVISIBLE = str.maketrans("", "", "\ufeff\u200b\u200c\u200d\u2060")
_BETWEEN_WORDS = str.maketrans("", "", " \t\r\n_-\"'")


def is_nameless(name: str) -> bool:
    """Whether a header cell has no visible character; such a column is skipped."""
    return not name.translate(_INVISIBLE).strip()


def look_alikes(present: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Columns whose names differ from a known one only in case, spaces, quotes, ``_``, ``-`` or invisible characters.

    Args:
        present: names of the table's columns.
        wanted: names that the reader knows.

    Returns:
        Column → the known name that it resembles.
    """
    known = {_folded(name): name for name in wanted}
    found = {name: known.get(_folded(name)) for name in present if name not in wanted}
    return {name: meant for name, meant in found.items() if meant is not None}


def names_fault(present: Sequence[str], wanted: Sequence[str], required: Sequence[str]) -> str | None:
    """What is wrong with the names of a table's columns, and what to do.

    Args:
        present: names of the table's columns.
        wanted: names that the reader knows; a column that resembles a missing one is refused, since it would silently
            become metadata.
        required: names that the table must have.

    Returns:
        One clause; None if nothing is wrong.
    """
    likely = {meant: name for name, meant in look_alikes(present, wanted).items() if meant not in present}
    for name in required:
        if name not in present and name not in likely:
            return f"column {name!r} is missing, found {', '.join(map(repr, present))}; {_remedy(present)}"
    if likely:
        meant, name = next(iter(likely.items()))
        return (
            f"column {name!r} looks like {meant!r}, which is missing; names are case-sensitive and have no outer "
            f"spaces: rename it to {meant!r}, or to something else if it is meant as metadata"
        )
    return None


def _remedy(present: Sequence[str]) -> str:
    only = present[0] if len(present) == 1 else ""
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), ("::", "double colons")):
        if sign in only:
            return f"a CSV separates columns by commas, this one has {name}; export it with commas"
    return "names are case-sensitive and a CSV separates columns by commas"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).translate(_INVISIBLE).translate(_BETWEEN_WORDS).casefold()
