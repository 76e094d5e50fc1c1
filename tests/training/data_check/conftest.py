"""A small data set, written and checked."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from training.data_check.check import check_dataset
from training.data_check.report import DatasetReport

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ITEMS = "item_id,title,image\n" + "".join(f"i{n},Thing {n},i{n}.png\n" for n in range(4))
EVENTS = "user_id,item_id,timestamp\n" + "".join(
    f"u{u},i{i},{1_700_000_000 + u * 10 + i}\n" for u in range(3) for i in range(4)
)

Check = Callable[..., DatasetReport]


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    """Write a dataset with four readable pictures (unless other files are given) and check it."""

    def run(items: str | bytes = ITEMS, events: str | bytes = EVENTS, suffix: str = "csv") -> DatasetReport:
        for old in tmp_path.glob("items.*"):
            old.unlink()
        for name, content in ((f"items.{suffix}", items), ("interactions.csv", events)):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for n in range(4):
            if not (tmp_path / f"i{n}.png").exists():
                Image.new("RGB", (3, 2), (n, 0, 0)).save(tmp_path / f"i{n}.png")
        return check_dataset(tmp_path, now=NOW)

    return run
