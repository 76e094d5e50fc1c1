"""Finds out in which form unknown item ids differ from those of the catalogue."""

from collections.abc import Callable
from typing import Final

import polars as pl

_SLICE_ROWS: Final = 2**20
_UNICODE: Final = "the Unicode form of the letters"
_FORMS: Final[tuple[tuple[str, Callable[[pl.Expr], pl.Expr]], ...]] = (
    ("white space around them", lambda ids: ids.str.strip_chars()),
    ("upper and lower case", lambda ids: ids.str.to_lowercase()),
    (_UNICODE, lambda ids: ids.str.normalize("NFC")),
    ("leading zeros", lambda ids: ids.str.replace(r"^0+(.)", "$1")),
    ("a decimal point", lambda ids: ids.str.replace(r"\.0+$", "")),
)


def likeness(unknown: pl.Series, catalogue: pl.Series) -> str | None:
    """Name the form in which most unknown ids differ from ids of the catalogue.

    Args:
        unknown: ids that the catalogue lacks; nulls and repetitions do not count.
        catalogue: its ids.

    Returns:
        One clause with an example; None if no id equals another one in any form.
    """
    ids = pl.DataFrame({"id": unknown.cast(pl.String)}).drop_nulls().unique(maintain_order=True)
    if ids.is_empty():
        return None
    known = pl.DataFrame({"known": catalogue.cast(pl.String)}).drop_nulls()
    best, name = ids.head(0), ""
    for form, folded in _FORMS:
        wanted = ids.with_columns(fold=folded(pl.col("id")))
        folds = _folded(known, folded(pl.col("known")), wanted["fold"])
        alike = wanted.join(folds, on="fold", maintain_order="left")
        if alike.height > best.height:
            best, name = alike, form
    if best.is_empty():
        return None
    example, meant = best["id"][0], best["known"][0]
    shown = ascii if name == _UNICODE else repr  # these look the same
    return (
        f"{best.height:,} of {ids.height:,} unknown ids differ from ids of the catalogue only in {name} "
        f"({shown(example):.60} and {shown(meant):.60}); write them in the same way in both files"
    )


def _folded(known: pl.DataFrame, fold: pl.Expr, wanted: pl.Series) -> pl.DataFrame:
    """The first id of each wanted form, with the form; a column of the forms of all ids would take memory."""
    few = wanted.unique().implode()
    parts = [part.with_columns(fold=fold).filter(pl.col("fold").is_in(few)) for part in known.iter_slices(_SLICE_ROWS)]
    every = pl.concat(parts) if parts else known.with_columns(fold=fold)
    return every.unique("fold", keep="first", maintain_order=True)
