"""Formats a table in Markdown."""

from collections.abc import Iterable, Iterator


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Lines of a table, and an empty one after it.

    Args:
        head: names of the columns.
        rows: cells, as many in each.
    """
    names = list(head)
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
