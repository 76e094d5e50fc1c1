"""The check recognises misread times and names the format that they seem to have."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from training.data.time_forms import form_of
from training.data_check.interactions import check_interactions
from training.data_check.report import Defect

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = [datetime(2024, 1, 1, 7, 30, tzinfo=UTC) + timedelta(days=9 * number) for number in range(30)]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def seconds(day: datetime) -> int:
    return round((day - EPOCH).total_seconds())


def defects_of(path: Path, times: list[object]) -> list[Defect]:
    """The defects of interactions with these timestamps that concern their time."""
    rows = "".join(f"u,i{number},{time}\n" for number, time in enumerate(times))
    path.write_text("user_id,item_id,timestamp\n" + rows)
    _, defects = check_interactions(path, None, now=NOW)
    return [defect for defect in defects if defect.kind.startswith("timestamps ")]


FORMS: dict[str, Callable[[datetime], object]] = {
    "dates written YYYYMMDD": lambda day: f"{day:%Y%m%d}",
    "dates written YYYYMMDDHH": lambda day: f"{day:%Y%m%d%H}",
    "dates written YYYYMMDDHHMM": lambda day: f"{day:%Y%m%d%H%M}",
    "dates written YYYYMMDDHHMMSS": lambda day: f"{day:%Y%m%d%H%M%S}",
    "dates written YYYYMMDDHHMMSS with milliseconds": lambda day: f"{day:%Y%m%d%H%M%S}123",
    "months written YYYYMM": lambda day: f"{day:%Y%m}",
    "days since 1970": lambda day: seconds(day) // 86_400,
    "days as Excel counts them": lambda day: seconds(day) / 86_400 + 25_569,
    "hours since 1970": lambda day: seconds(day) // 3_600,
    "minutes since 1970": lambda day: seconds(day) // 60,
    "tenths of a second since 1970": lambda day: seconds(day) * 10,
    "hundredths of a second since 1970": lambda day: seconds(day) * 100,
    "microseconds since 1601 (WebKit)": lambda day: (seconds(day) + 11_644_473_600) * 10**6,
    "steps of 100 ns since 1601 (FILETIME)": lambda day: (seconds(day) + 11_644_473_600) * 10**7,
    "ticks of .NET": lambda day: (seconds(day) + 62_135_596_800) * 10**7,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_was_read_as_something_else_is_named_with_a_remedy(tmp_path: Path, form: str) -> None:
    (defect,) = defects_of(tmp_path / "interactions.csv", [FORMS[form](day) for day in DAYS])
    assert f"they look like {form}: " in defect.message
    assert (defect.severity, defect.count) == ("warning", len(DAYS))
    assert defect.kind in {"timestamps before 1990", "timestamps in the future"}
    assert "\n" not in defect.message


@pytest.mark.parametrize("factor", [1, 1_000, 1_000_000, 1_000_000_000])
def test_correctly_read_times_are_not_reported(tmp_path: Path, factor: int) -> None:
    assert not defects_of(tmp_path / "interactions.csv", [seconds(day) * factor for day in DAYS])
    assert not defects_of(tmp_path / "interactions.csv", [f"{day:%Y-%m-%d}" for day in DAYS])
    early = [datetime(1990, 1, 2, tzinfo=UTC) + timedelta(days=20 * number) for number in range(30)]
    assert not defects_of(tmp_path / "interactions.csv", [seconds(day) for day in early])


@pytest.mark.parametrize("times", [range(30), [f"19{year}-05-01" for year in range(70, 90)], [0, 0, 0]])
def test_times_before_1990_of_unknown_format_are_reported(tmp_path: Path, times: list[object]) -> None:
    (defect,) = defects_of(tmp_path / "interactions.csv", list(times))
    assert defect.kind == "timestamps before 1990"
    assert "every timestamp lies before 1990 (1970-" in defect.message
    assert "they look like" not in defect.message


def test_dates_in_the_future_are_reported_without_a_format(tmp_path: Path) -> None:
    (defect,) = defects_of(tmp_path / "interactions.csv", ["2031-01-01", "2032-01-01"])
    assert (defect.kind, defect.count) == ("timestamps in the future", 2)
    assert "they look like" not in defect.message


def test_one_event_of_today_is_enough_to_believe_the_others(tmp_path: Path) -> None:
    assert not defects_of(tmp_path / "interactions.csv", [*range(20_240_101, 20_240_110), seconds(DAYS[0])])


@pytest.mark.parametrize("raw", [["2024130112"], ["2024013212"], ["x"], [None], ["20240101", "7"]])
def test_numbers_that_only_nearly_fit_are_of_no_form(raw: list[str | None]) -> None:
    assert form_of(pl.Series(raw, dtype=pl.String)) is None


def test_a_day_that_no_calendar_has_is_no_date() -> None:
    forms = [form_of(pl.Series([number])) for number in ("20240131", "20240132", "20241301", "20240101.5")]
    minutes = form_of(pl.Series([28_401_120]))
    assert forms[0] != minutes
    assert forms[1:] == [minutes] * 3


def test_numbers_of_a_parquet_file_are_checked_too() -> None:
    assert form_of(pl.Series([20240101, 20240131])) == form_of(pl.Series(["20240101 ", " 20240131"]))
    assert form_of(pl.Series([True])) is None
