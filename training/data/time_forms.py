"""Guesses the unit or format of numeric times that lie implausibly far in the past or future."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

_DATES = "write them as dates, like 2024-01-31 or 2024-01-31T10:30:00"
_EXCEL = "format the cells as yyyy-mm-dd, or subtract 25,569 and multiply by 86,400"
_SINCE_1601 = 11_644_473_600
_SINCE_YEAR_1 = 62_135_596_800


@dataclass(frozen=True)
class TimeForm:
    """A format of times that :mod:`training.data.timestamps` misreads.

    Attributes:
        name: for messages.
        remedy: how to convert it to seconds or dates.
    """

    name: str
    remedy: str


@dataclass(frozen=True)
class _Candidate:
    """A format and its range of numbers between the years 1990 and 2100."""

    form: TimeForm
    low: float
    high: float
    fits: Callable[[pl.Series], bool] = lambda _numbers: True


def _calendar(name: str, digits: int) -> _Candidate:
    """Numbers whose first eight digits are year, month and day; ``digits`` follow."""
    scale = 10**digits

    def fits(numbers: pl.Series) -> bool:
        days = (numbers / scale).floor().cast(pl.Int64)
        months = days // 100 % 100
        whole = digits > 0 or (numbers == numbers.floor()).all()
        return bool(whole and months.is_between(1, 12).all() and (days % 100).is_between(1, 31).all())

    return _Candidate(TimeForm(f"dates written {name}", _DATES), 19_000_101 * scale, 21_001_232 * scale, fits)


def _months(numbers: pl.Series) -> bool:
    return bool((numbers.cast(pl.Int64) % 100).is_between(1, 12).all() and (numbers == numbers.floor()).all())


_CANDIDATES = (
    _calendar("YYYYMMDD", 0),
    _calendar("YYYYMMDDHH", 2),
    _calendar("YYYYMMDDHHMM", 4),
    _calendar("YYYYMMDDHHMMSS", 6),
    _calendar("YYYYMMDDHHMMSS with milliseconds", 9),
    _Candidate(TimeForm("months written YYYYMM", _DATES), 190_001, 210_013, _months),
    _Candidate(TimeForm("days since 1970", "multiply them by 86,400"), 7_305, 30_000),
    _Candidate(TimeForm("days as Excel counts them", _EXCEL), 32_874, 73_051),
    _Candidate(TimeForm("hours since 1970", "multiply them by 3,600"), 175_320, 1_139_520),
    _Candidate(TimeForm("minutes since 1970", "multiply them by 60"), 10_519_200, 68_371_200),
    _Candidate(TimeForm("tenths of a second since 1970", "divide them by 10"), 6.3e9, 4.2e10),
    _Candidate(TimeForm("hundredths of a second since 1970", "divide them by 100"), 6.3e10, 4.2e11),
    _Candidate(
        TimeForm("microseconds since 1601 (WebKit)", f"divide them by 1,000,000 and subtract {_SINCE_1601:,}"),
        1.22e16,
        1.58e16,
    ),
    _Candidate(
        TimeForm("steps of 100 ns since 1601 (FILETIME)", f"divide them by 10,000,000 and subtract {_SINCE_1601:,}"),
        1.22e17,
        1.58e17,
    ),
    _Candidate(
        TimeForm("ticks of .NET", f"divide them by 10,000,000 and subtract {_SINCE_YEAR_1:,}"), 6.27e17, 6.63e17
    ),
)  # fmt: skip


def form_of(raw: pl.Series) -> TimeForm | None:
    """The format that all numbers of a column fit.

    Args:
        raw: strings or numbers; other values are ignored.

    Returns:
        None if there is no finite number or no format fits.
    """
    if not (raw.dtype == pl.String or raw.dtype.is_numeric()):
        return None
    cleaned = raw.str.strip_chars() if raw.dtype == pl.String else raw
    numbers = cleaned.cast(pl.Float64, strict=False).drop_nulls()
    numbers = numbers.filter(numbers.is_finite())
    if numbers.is_empty():
        return None
    for candidate in _CANDIDATES:
        if numbers.is_between(candidate.low, candidate.high, closed="left").all() and candidate.fits(numbers):
            return candidate.form
    return None
