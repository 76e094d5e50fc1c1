"""Prints the tables of an evaluation and writes them as Markdown."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from training.ranking.metrics import Interval
    from training.ranking.table import SystemRow
    from training.ranking.table import Table as EvaluationTable

EVALUATION_DIRECTORY = "evaluation"

_FULL = {"HR@10": "hr@10", "NDCG@10": "ndcg@10", "HR@20": "hr@20", "NDCG@20": "ndcg@20"}
_MORE = {"HR@10/100": "hr@10/100", "NDCG@10/100": "ndcg@10/100", "coverage@10": "coverage@10"}
_REST = {"HR@20/100": "hr@20/100", "NDCG@20/100": "ndcg@20/100"}
_ALL_COLUMNS = 130
_PIPED_WIDTH = 150
_UNDEFINED = "–"
_LONGEST_HEADING = 20

_console = Console(highlight=False, soft_wrap=True)


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


def yardsticks(tables: "Sequence[EvaluationTable]", against: str | None) -> list[str]:
    """Name of the row that each table is compared with.

    Ranks of another library may belong to one table only; a table without the row keeps its usual one.

    Args:
        tables: of one evaluation.
        against: name of a row; None for the usual ones.

    Raises:
        EvaluationError: no table has such a row.
    """
    having = [any(row.name == against for row in table.rows) for table in tables]
    wanted = [against if has or not any(having) else None for has in having]
    return [table.yardstick(name) for table, name in zip(tables, wanted, strict=True)]


def report_tables(tables: "Sequence[EvaluationTable]", against: str | None, path: Path, about: dict[str, Any]) -> None:
    """Print the tables, and save them as JSON and, beside it, as Markdown.

    Args:
        tables: of one evaluation.
        against: the row to compare with; None for the usual ones.
        path: of the JSON file.
        about: what else the JSON file says.

    Raises:
        EvaluationError: no table has the row ``against``, or a file cannot be written.
    """
    from index.machine.disk import is_stream
    from training.evaluation.shortfalls import shortfalls

    compared = list(zip(tables, yardsticks(tables, against), strict=True))
    for table, yardstick in compared:
        print_table(table, yardstick)
    for line in (line for table in tables for line in shortfalls(table)):
        _console.print(f"note: {line}", markup=False)
    written = {"tables": [table.as_json([yardstick]) for table, yardstick in compared], **about}
    page = path.with_suffix(".md")
    save_text(path, json.dumps(written, indent=2) + "\n")
    if is_stream(path):  # no page belongs beside it
        return
    save_text(page, "\n".join(markdown(table, yardstick) for table, yardstick in compared))
    _console.print(f"saved: {path} and {page.name}", markup=False)


def figures_file(run: Path, table: str) -> Path:
    """Where the figures of an evaluation are saved by default.

    Args:
        run: the run directory.
        table: name of the first table.
    """
    return run / EVALUATION_DIRECTORY / f"{table.replace(' ', '-')}.json"
