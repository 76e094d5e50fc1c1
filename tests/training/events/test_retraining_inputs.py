"""The frozen interactions of a retraining: joined, split by time, and gone with the job."""

from pathlib import Path

import polars as pl
import pytest

from index.event_export.directory import ExportDirectory
from index.event_export.erasures import user_hash
from index.event_export.stream_ids import StreamId
from training.errors import DatasetError
from training.events.retraining_inputs import RetrainingInputs, freeze_inputs

DAY = 86_400
ARRIVAL = 20_000 * DAY


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data set with events before and after the export began, and an export with a late one."""
    (tmp_path / "shop").mkdir()
    export = ExportDirectory.open_or_create(tmp_path / "export")
    rows = [("anna", "b", 0), ("bob", "c", -3 * DAY), ("anna", "d", 2 * DAY), ("bob", "e", 9 * DAY)]
    entries = [
        (
            StreamId((ARRIVAL + max(at, 0)) * 1000, n),
            {"user_id": user, "item_id": item, "timestamp": f"{ARRIVAL + at}.5", "type": "view"},
        )
        for n, (user, item, at) in enumerate(rows)
    ]
    export.commit([export.write_entries(0, entries)])
    own = [("anna", "a", -5 * DAY), ("bob", "c", -3 * DAY), ("anna", "x", DAY)]
    lines = [f"{user},{item},{ARRIVAL + at}" for user, item, at in own]
    (tmp_path / "shop" / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return tmp_path / "shop"


def frozen(shop: Path, *, days: float = 7.0, mark: str = "recipe") -> RetrainingInputs:
    return freeze_inputs(shop.parent / "job", shop, shop.parent / "export", days=days, mark=mark)


def items(path: Path) -> list[str]:
    return list(pl.read_parquet(path)["item_id"].to_list())


def test_the_data_set_counts_until_the_export_begins(shop: Path) -> None:
    inputs = frozen(shop)
    assert items(inputs.everything) == ["a", "c", "b", "d", "e"]
    assert items(inputs.before) == ["a", "c", "b"]  # the cut-off is a day and a half after the export began
    assert inputs.cutoff == ARRIVAL + 2 * DAY
    assert pl.read_parquet(inputs.everything)["type"].to_list() == [None, "view", "view", "view", "view"]
    record = inputs.record
    assert (record["from_data_set"], record["replaced"], record["exported"]["late"]) == (1, 2, 1)
    assert record["until"] == f"{(ARRIVAL + 9 * DAY) * 1000}-3"


def test_a_killed_job_goes_on_with_what_it_began_with(shop: Path) -> None:
    assert not frozen(shop).resumed
    export = ExportDirectory(shop.parent / "export")
    new = {"user_id": "anna", "item_id": "new", "timestamp": str(ARRIVAL + 9 * DAY)}
    export.commit([export.write_entries(0, [(StreamId((ARRIVAL + 9 * DAY) * 1000, 9), new)])])
    again = frozen(shop)
    assert again.resumed
    assert "new" not in items(again.everything)
    assert not frozen(shop, mark="another recipe").resumed
    again = frozen(shop, mark="another recipe")
    assert again.resumed
    assert "new" in items(again.everything)
    again.end()
    assert not again.directory.exists()


def test_an_erasure_makes_a_killed_job_begin_anew(shop: Path) -> None:
    frozen(shop)
    export = ExportDirectory(shop.parent / "export")
    export.add_erasures(0, {user_hash(export.key, "anna"): StreamId(2**60, 0)})
    again = frozen(shop)
    assert not again.resumed
    assert set(pl.read_parquet(again.everything).filter(pl.col("type") == "view")["user_id"]) == {"bob"}


def test_a_shop_without_interactions_of_its_own(shop: Path) -> None:
    (shop / "interactions.csv").unlink()
    assert items(frozen(shop).everything) == ["c", "b", "d", "e"]


def test_types_of_the_data_set_are_kept(shop: Path) -> None:
    rows = [f"anna,a,{ARRIVAL - 9 * DAY},purchase", f"bob,z,{ARRIVAL - 8 * DAY},"]
    (shop / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    frame = pl.read_parquet(frozen(shop).everything)
    assert frame.select("item_id", "type").rows()[:2] == [("a", "purchase"), ("z", None)]
    assert frame["timestamp"][0] == ARRIVAL - 9 * DAY


def test_an_empty_export_and_too_many_days_are_named(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none is left to learn from before them; give fewer --measure-days"):
        frozen(shop, days=100)
    (shop / "interactions.csv").unlink()
    ExportDirectory.open_or_create(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"neither the export nor .* has an interaction"):
        freeze_inputs(tmp_path / "job", shop, tmp_path / "empty", days=7, mark="m")
    with pytest.raises(DatasetError, match="there is no export"):
        freeze_inputs(tmp_path / "job", shop, tmp_path / "nowhere", days=7, mark="m")
