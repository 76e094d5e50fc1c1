"""Parses the timestamps of interactions: numbers or ISO-8601 dates, with one unit per file.

Numbers count from 1970-01-01 UTC. The unit of a column is that of its median: below 10¹¹ seconds (until the year 5138;
counters such as 0, 1, 2 too), below 10¹⁴ milliseconds, below 10¹⁷ microseconds, else nanoseconds; a value in another
unit's range is an error. Dates are ``2026-01-31``, ``2026-01-31T10:30``, optionally with seconds, fraction and
offset; without an offset they are UTC.
"""

from dataclasses import dataclass

import polars as pl

EARLIEST_S = -(2**53)
"""Whole seconds since 1970 that come before every timestamp."""
MIXED = "mixed"
TIME_RULE = "must hold seconds, milli-, micro- or nanoseconds since 1970, or ISO 8601 dates such as 2026-01-31T10:30:00"
MIXED_TIME_RULE = "must hold one unit: seconds, milliseconds or dates, not two of them"

# Largest value (exclusive) → microseconds in one unit, as (numerator, denominator).
_UNITS = (
    (1e11, "seconds", 1_000_000, 1),
    (1e14, "milliseconds", 1_000, 1),
    (1e17, "microseconds", 1, 1),
    (9.2e18, "nanoseconds", 1, 1_000),
)
_DAY_SECONDS = 86_400
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800
"""Seconds since 1970. Parquet holds dates beyond, polars panics on some of them, and Python has none of them."""
_A_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_ISO = r"^(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?\s*(Z|z|[+-]\d{2}(?::?\d{2})?)?)?$"


@dataclass(frozen=True)
class Timestamps:
    """A column of timestamps after reading.

    Attributes:
        microseconds: int64 since 1970-01-01 UTC, null where the value is missing or breaks a rule.
        unit: ``seconds``, ``milliseconds``, ``microseconds``, ``nanoseconds`` or ``dates``; ``mixed`` when two of them
            meet in one column (then the values of the rarer one are null).
    """

    microseconds: pl.Series
    unit: str


def read_timestamps(raw: pl.Series) -> Timestamps:
    """Parse a column of strings, numbers, dates or datetimes.

    A value becomes null if it is missing, neither number nor date, not finite, or before 1970.
    """
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        moments = raw.cast(pl.Datetime("us")) if raw.dtype == pl.Date else raw.dt.cast_time_unit("us")
        return Timestamps(_not_negative(moments.cast(pl.Int64)), "dates")
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars()
        numbers = raw.cast(pl.Float64, strict=False)
        strange = (numbers.is_null() & raw.is_not_null() & (raw != "")).fill_null(value=False)
        if strange.any():
            return _with_dates(raw, numbers, strange)
        return _from_numbers(numbers)
    if raw.dtype.is_numeric():
        return _from_numbers(raw.cast(pl.Float64))
    return Timestamps(pl.Series(raw.name, [None] * len(raw), dtype=pl.Int64), "seconds")


def beyond_calendar(raw: pl.Series) -> pl.Series:
    """Which rows of a column hold a date or datetime outside the years 1 to 9999, in UTC or in the column's time zone.

    Args:
        raw: of any type; of a list, each element counts. Nulls and other types are none.
    """
    if isinstance(raw.dtype, pl.List | pl.Array) and isinstance(raw.dtype.inner, pl.Date | pl.Datetime):
        rows = pl.int_range(len(raw), eager=True)
        values = pl.DataFrame({"row": rows, "value": raw}).explode("value")
        return rows.is_in(values["row"].filter(beyond_calendar(values["value"])).implode())
    if raw.dtype == pl.Date:
        return _outside(raw.to_physical().cast(pl.Int64) * _DAY_SECONDS)
    if not isinstance(raw.dtype, pl.Datetime):
        return pl.repeat(value=False, n=len(raw), dtype=pl.Boolean, eager=True)
    second = _A_SECOND[raw.dtype.time_unit]
    outside = _outside(raw.to_physical() // second)
    if raw.dtype.time_zone is None:
        return outside
    local = _where(~outside, raw).dt.replace_time_zone(None)  # panics on what is far outside
    return outside | _outside(local.to_physical() // second)


def _outside(seconds: pl.Series) -> pl.Series:
    return ((seconds < _YEAR_1) | (seconds >= _YEAR_10000)).fill_null(value=False)


def _with_dates(raw: pl.Series, numbers: pl.Series, strange: pl.Series) -> Timestamps:
    """Parse a column with values that are not numbers: dates, or mistakes among numbers."""
    dates = _from_iso(raw.filter(strange))
    if dates.count() <= numbers.count():
        read = _from_numbers(numbers)
        return Timestamps(read.microseconds, MIXED if dates.count() else read.unit)
    spread = pl.Series(raw.name, [None], dtype=pl.Int64).new_from_index(0, len(raw))
    spread = spread.scatter(strange.arg_true(), dates)
    return Timestamps(_not_negative(spread), MIXED if numbers.count() else "dates")


def _from_numbers(numbers: pl.Series) -> Timestamps:
    good = _where(numbers.is_finite() & (numbers >= 0) & (numbers < _UNITS[-1][0]), numbers)
    median = good.median()
    middle = float(median) if isinstance(median, int | float) else 0.0
    position = next(place for place, unit in enumerate(_UNITS) if middle < unit[0])
    end, unit, factor, divisor = _UNITS[position]
    start = _UNITS[position - 1][0] if position else 0.0
    fits = (good >= start) & (good < end)
    scaled = (_where(fits, good) * (factor / divisor)).round(0).cast(pl.Int64)
    return Timestamps(scaled, unit if fits.all() else MIXED)


def _where(mask: pl.Series, values: pl.Series) -> pl.Series:
    """The values where the mask is true, null elsewhere."""
    return pl.select(pl.when(mask).then(values)).to_series().rename(values.name)


def _from_iso(raw: pl.Series) -> pl.Series:
    parts = raw.to_frame("raw").select(
        pl.col("raw").str.extract(_ISO, 1).alias("day"),
        pl.col("raw").str.extract(_ISO, 2).fill_null("00:00").alias("minute"),
        pl.col("raw").str.extract(_ISO, 3).fill_null(":00").alias("second"),
        pl.col("raw").str.extract(_ISO, 4).fill_null("+0000").str.replace_all(":", "").alias("offset"),
    )
    offset = pl.col("offset").replace({"Z": "+0000", "z": "+0000"}).str.pad_end(5, "0")
    spelled = pl.concat_str(pl.col("day"), pl.lit("T"), pl.col("minute"), pl.col("second"), offset)
    moment = spelled.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", strict=False)
    return parts.select(moment.cast(pl.Int64)).to_series()


def _not_negative(microseconds: pl.Series) -> pl.Series:
    return _where(microseconds >= 0, microseconds).cast(pl.Int64)
