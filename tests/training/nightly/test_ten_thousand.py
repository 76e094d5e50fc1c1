"""In a catalogue of 10,000 items of which 1 % changes, only the changed items are embedded."""

import csv
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Shop

ITEMS = 10_000
CHANGED = sorted(np.random.default_rng(1).choice(ITEMS, 100, replace=False).tolist())
TEXTS, PICTURES = set(CHANGED[:40]), CHANGED[40:]


@pytest.fixture(scope="module")
def large_home(
    backbone_directory: Path,
    make_run: Callable[..., None],
    shop_at: "type[Shop]",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """10,000 items of one text and one picture each, 2,000 users, indexed once; never write into it."""
    shop = shop_at(tmp_path_factory.mktemp("large") / "home")
    (shop.data / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row, pixels in enumerate(rng.integers(0, 256, (ITEMS, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(shop.data / "images" / f"{row}.png", compress_level=0)
    with (shop.data / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "image"])
        writer.writerows([f"i{row:05d}", f"thing {row}", f"images/{row}.png"] for row in range(ITEMS))
    with (shop.data / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(2_000):
            writer.writerows([f"u{user}", f"i{rng.integers(ITEMS):05d}", 1_000 + step] for step in range(6))
    make_run(shop.data, shop.run, backbone_directory, 1_024, 256)
    assert shop.reindex()["items"]["unchanged"] == ITEMS
    return shop.home


@pytest.fixture
def large(large_home: Path, shop_at: "type[Shop]", tmp_path: Path) -> "Shop":
    """A copy of that shop of which 1 % has changed: 40 texts, and 60 pictures of the same name and size."""
    shop = shop_at(Path(shutil.copytree(large_home, tmp_path / "home")))
    for row in PICTURES:
        path = shop.data / "images" / f"{row}.png"
        size = path.stat().st_size
        Image.fromarray(np.full((8, 8, 3), row % 256, dtype=np.uint8)).save(path, compress_level=0)
        assert path.stat().st_size == size
    shop.edit(lambda rows: [{**one, "text": f"other {row}"} if row in TEXTS else one for row, one in enumerate(rows)])
    return shop


@pytest.mark.slow
def test_exactly_the_one_percent_that_changed_is_embedded(large: "Shop", encoded: list[list[int]]) -> None:
    before = large.rows()
    summary = large.reindex()
    assert sorted(row for rows in encoded for row in rows) == CHANGED
    assert summary["embedding"] == {"needed": 100, "encoded": 100, "resumed": 0, "saved": 0.99, "reused": 0}
    assert (summary["items"]["changed"], summary["items"]["unchanged"]) == (100, 9_900)
    after = large.rows()
    assert sorted(item_id for item_id in after if after[item_id] != before[item_id]) == [
        f"i{row:05d}" for row in CHANGED
    ]


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_vectors_are_the_same(
    large: "Shop", shop_at: "type[Shop]", tmp_path: Path
) -> None:
    unbroken = shop_at(Path(shutil.copytree(large.home, tmp_path / "unbroken")))
    assert unbroken.run_through("--help") == 0  # the process that is forked has imported everything then
    started = time.monotonic()
    assert unbroken.run_through() == 0
    seconds = time.monotonic() - started
    moments = np.random.default_rng(2).uniform(0.1, 1.0, 10) * seconds
    assert sum(large.killed_after(moment) for moment in moments) >= 1
    assert large.run_through() == 0
    assert large.bundle().path.joinpath("vectors.npy").read_bytes() == (
        unbroken.bundle().path.joinpath("vectors.npy").read_bytes()
    )
    assert len(large.registry.list()) == 2
