"""Says where nothing can be found, and where the lists alone, a baseline or a row of another run ranks as well."""

from collections.abc import Iterator

from training.evaluation.evaluate import LISTS_ALONE, SERVED
from training.ranking.table import BASELINES, ITEM_MEAN, ITEM_MEAN_UNIT, TFIDF, Table

_METRIC = "ndcg@10"
_TEXT_ONLY = "text only"


def shortfalls(table: Table) -> list[str]:
    """One line for every comparison that is lost; none where all are won. Alone, that every target is a miss.

    Args:
        table: of an evaluation; rows that it lacks are not compared.
    """
    if table.exclude_seen and table.repeats == table.users > 0:
        return [
            f"{table.name}: every target is an item that its user had before; answers leave such items out, so every "
            "figure is 0. Remove the copies if rows are there twice, or set exclude_seen = false under [encoder] where "
            "people take the same again, and fit again"
        ]
    names = [row.name for row in table.rows]
    others = (*BASELINES, ITEM_MEAN, ITEM_MEAN_UNIT, *table.added)
    pairs = [(SERVED, other) for other in others] + [(_TEXT_ONLY, TFIDF)]
    lines = [*_lists(table)] if {SERVED, LISTS_ALONE} <= set(names) else []
    for system, baseline in pairs:
        if system in names and baseline in names and _value(table, system) < _value(table, baseline):
            lines.append(f"{table.name}: {system} ranks below {baseline}, {_figures(table, system, baseline)}")
    return lines


def _lists(table: Table) -> Iterator[str]:
    interval = table.ratio(SERVED, LISTS_ALONE, _METRIC)
    if _value(table, SERVED) <= _value(table, LISTS_ALONE):
        yield f"{table.name}: the encoder adds nothing to the lists, {_figures(table, SERVED, LISTS_ALONE)}"
    elif interval.low <= 1:
        yield (
            f"{table.name}: what the encoder adds to the lists is within chance, {_figures(table, SERVED, LISTS_ALONE)}"
        )


def _value(table: Table, system: str) -> float:
    return table.row(system).values[_METRIC]


def _figures(table: Table, system: str, other: str) -> str:
    interval = table.ratio(system, other, _METRIC)
    measured = f"NDCG@10 {_value(table, system):.4f} against {_value(table, other):.4f}"
    if interval.ratio != interval.ratio:
        return measured
    return f"{measured}, {interval.ratio:.2f} × [{interval.low:.2f}, {interval.high:.2f}]"
