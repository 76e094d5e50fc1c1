"""Dates that Parquet holds and Python has not are refused where they are read."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from training.data.dataset import Dataset, read_interactions, read_items
from training.data_check.check import check_dataset
from training.errors import DatasetError

BEYOND = {
    "infinity": pl.Series([0, 2**63 - 1], dtype=pl.Int64).cast(pl.Datetime("us")),
    "milliseconds": pl.Series([0, 9 * 10**18], dtype=pl.Int64).cast(pl.Datetime("ms")),
    "before year 1": pl.Series([0, -(10**17)], dtype=pl.Int64).cast(pl.Datetime("us")),
    "day": pl.Series([0, 2**31 - 2], dtype=pl.Int32).cast(pl.Date),
    "Tokyo": pl.Series([0, 253402300799000], dtype=pl.Int64).cast(pl.Datetime("ms", "Asia/Tokyo")),
}


@pytest.mark.parametrize("dates", BEYOND.values(), ids=BEYOND)
def test_refuses_dates_outside_the_years_1_to_9999(tmp_path: Path, dates: pl.Series) -> None:
    """Databases write infinity so; the service failed with 500 on every answer with such a field."""
    events = tmp_path / "events.parquet"
    pl.DataFrame({"user_id": ["u", "u"], "item_id": ["b", "c"], "timestamp": dates}).write_parquet(events)
    with pytest.raises(DatasetError, match="'timestamp' must hold dates of the years 1 to 9999, row 2;"):
        read_interactions(events)
    for values in (dates, dates.reshape((2, 1)).cast(pl.List(dates.dtype))):
        items = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "until": values})
        items.write_parquet(tmp_path / "items.parquet")
        with pytest.raises(DatasetError, match="'until' must hold dates of the years 1 to 9999, row 2;"):
            read_items(tmp_path / "items.parquet")
        report = check_dataset(tmp_path, interactions=events)
        assert {"unusable dates", "unusable interactions file"} <= {defect.kind for defect in report.defects}


def test_the_last_day_and_nanoseconds_are_metadata(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    last = pl.Series([253402300799000], dtype=pl.Int64).cast(pl.Datetime("ms", "UTC"))
    fine = pl.Series([1_700_000_000_123_456_789], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC"))
    pl.DataFrame({"item_id": ["a"], "last": last, "fine": fine}).write_parquet(path)
    items = read_items(path)
    assert Dataset(tmp_path, items, items).metadata().select(["last", "fine"]).to_pylist() == [
        {
            "last": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
            "fine": datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC),
        }
    ]
