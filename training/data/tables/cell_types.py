"""The types that cells of text stand for."""

from typing import Final

import polars as pl

_BOOL: Final = r"^(?i:true|false)$"
_INTEGER: Final = r"^(0|-?[1-9]\d{0,17})$"
_FLOAT: Final = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,2})?$"


def narrowest(column: pl.Series) -> pl.Series:
    """The column as bools, integers or floats if every value is one and loses nothing by it, else as it is.

    Args:
        column: strings; empty ones and nulls have no part in the choice, and become null.
    """
    values = column.str.strip_chars().drop_nulls().replace("", None).drop_nulls()
    if not len(values):
        return column
    spelled = pl.select(pl.when(column.str.strip_chars() != "").then(column.str.strip_chars())).to_series()
    if values.str.contains(_BOOL).all():
        return (spelled.str.to_lowercase() == "true").rename(column.name)
    if values.str.contains(_INTEGER).all():
        return spelled.cast(pl.Int64).rename(column.name)
    if values.str.contains(_FLOAT).all():
        return spelled.cast(pl.Float64).rename(column.name)
    return column
