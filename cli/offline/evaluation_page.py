"""Prints the tables of an evaluation and writes them as Markdown."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from training.ranking.metrics import Interval
    from training.ranking.table import SystemRow
    from training.ranking.table import Table as EvaluationTable

_FULL = {"HR@10": "hr@10", "NDCG@10": "ndcg@10", "HR@20": "hr@20", "NDCG@20": "ndcg@20"}
_MORE = {"HR@10/100": "hr@10/100", "NDCG@10/100": "ndcg@10/100", "coverage@10": "coverage@10"}
_REST = {"HR@20/100": "hr@20/100", "NDCG@20/100": "ndcg@20/100"}
_ALL_COLUMNS = 130
_PIPED_WIDTH = 150
_UNDEFINED = "–"
_LONGEST_HEADING = 20


def print_table(table: "EvaluationTable", against: str) -> None:
    """Print a table.

    Args:
        table: of an evaluation.
        against: the row that the last column compares NDCG@10 with.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    columns = _FULL | (_MORE if console.width >= _ALL_COLUMNS else {}) | _cold_share(table)
    printed = Table(title=_title(table), title_justify="left", caption_justify="left")
    printed.caption = (
        "/100 = among 100 negatives, or all others; last column: NDCG@10 over that of "
        f"{escape(against)}, paired 95 % bootstrap"
    )
    printed.add_column("system", overflow="fold")  # the only one that wraps: a long name takes no digit of a figure
    ratio = f"x {against}" if len(against) <= _LONGEST_HEADING else "ratio"
    for heading in (*columns, escape(ratio)):
        printed.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        printed.add_row(
            escape(row.name), *_values(row, columns.values()), _ratio(table.ratio(row.name, against, "ndcg@10"))
        )
    console.print(printed)


def markdown(table: "EvaluationTable", against: str) -> str:
    """Format a table as Markdown, with every metric and the intervals of HR@10 and NDCG@10.

    Args:
        table: of an evaluation.
        against: the row that the last two columns compare with.
    """
    columns = _FULL | {"HR@10/100": "hr@10/100"} | {"NDCG@10/100": "ndcg@10/100"} | _REST
    columns |= {"coverage@10": "coverage@10"} | _cold_share(table)
    compared = {f"HR@10 / {against}": "hr@10", f"NDCG@10 / {against}": "ndcg@10"}
    lines = [
        f"## {_title(table)}",
        "",
        "`/100` = among 100 negatives, or all others. The last two columns are ratios with a paired "
        "bootstrap 95 % interval.",
        "",
        f"| system | {' | '.join((*columns, *compared))} |",
        f"|---|{'---|' * (len(columns) + len(compared))}",
    ]
    for row in table.rows:
        ratios = (_ratio(table.ratio(row.name, against, metric)) for metric in compared.values())
        name = row.name.replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join((*_values(row, columns.values()), *ratios))} |")
    return "\n".join(lines) + "\n"


def _cold_share(table: "EvaluationTable") -> dict[str, str]:
    """The column of the share of cold items in the first ten positions, where some were held out."""
    return {"cold@10": "cold@10"} if all("cold@10" in row.values for row in table.rows) else {}


def _title(table: "EvaluationTable") -> str:
    of = f" (evenly spaced, of {table.whole:,})" if table.whole != table.users else ""
    mask = "history masked" if table.exclude_seen else "history not masked"
    misses = ", each a miss" if table.exclude_seen else ""
    repeats = f", {table.repeats:,} of them repeats{misses}" if table.repeats else ""
    ranked = table.items if table.candidates is None else table.candidates
    return f"{table.name}: {table.users:,} targets{of}{repeats}, full ranking over {ranked:,} items, {mask}"


def _values(row: "SystemRow", names: Iterable[str]) -> list[str]:
    return [f"{row.values[name]:.4f}" for name in names]


def _ratio(interval: "Interval") -> str:
    if interval.ratio != interval.ratio:
        return _UNDEFINED
    return f"{interval.ratio:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def save_text(path: Path, text: str) -> None:
    """Write figures or their page.

    Raises:
        EvaluationError: the file cannot be written.
    """
    from index.machine.disk import describe_disk_error
    from training.errors import EvaluationError

    try:
        replace_text(path, text)
    except OSError as error:
        raise EvaluationError(
            describe_disk_error(error, path, "evaluate again, or name another --json", what="the figures")
        ) from error
