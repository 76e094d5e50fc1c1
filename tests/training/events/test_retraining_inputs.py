"""The frozen interactions of a retraining: joined, split by time, and gone with the job."""

import json
import math
import shutil
from pathlib import Path

import polars as pl
import pytest

from index.event_export.directory import ExportDirectory
from index.event_export.erasures import user_hash
from index.event_export.stream_ids import StreamId
from tests.support.stores.stream_entries import stream_entry
from training.errors import DatasetError
from training.events.retraining_inputs import RetrainingInputs, freeze_inputs

DAY = 86_400
ARRIVAL = 20_000 * DAY


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data set with events before and after the export began, and an export with a late one."""
    (tmp_path / "shop" / "images").mkdir(parents=True)
    (tmp_path / "shop" / "images" / "a.png").write_bytes(b"one")
    (tmp_path / "shop" / "items.csv").write_text("item_id,title,image\na,first,images/a.png\nb,second,images/b.png\n")
    export = ExportDirectory.open_or_create(tmp_path / "export")
    rows = [("anna", "b", 0), ("bob", "c", -3 * DAY), ("anna", "d", 2 * DAY), ("bob", "e", 9 * DAY)]
    entries = [
        stream_entry(
            (ARRIVAL + max(at, 0)) * 1000,
            n,
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
    export.commit([export.write_entries(0, [stream_entry((ARRIVAL + 9 * DAY) * 1000, 9, new)])])
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


def test_an_erasure_by_a_clock_that_is_behind_makes_a_killed_job_begin_anew(shop: Path) -> None:
    """As of a node of a cluster: anna was erased before, and another user later by the clock of another node."""
    export = ExportDirectory(shop.parent / "export")
    anna = user_hash(export.key, "anna")
    export.add_erasures(0, {anna: StreamId(1, 0)})
    export.add_erasures(1, {user_hash(export.key, "carl"): StreamId(2**60, 0)})
    frozen(shop)
    export.add_erasures(0, {anna: StreamId(2**59, 0)})
    again = frozen(shop)
    assert not again.resumed
    assert set(pl.read_parquet(again.everything).filter(pl.col("type") == "view")["user_id"]) == {"bob"}
    assert frozen(shop).resumed


@pytest.mark.parametrize("change", ["row", "price", "picture", "new picture", "lost picture"])
def test_a_changed_catalogue_is_noticed_and_the_interactions_stay(shop: Path, change: str) -> None:
    job, dropped = shop.parent / "job", list[str]()

    def drop() -> None:
        dropped.append(json.loads((job / "inputs.json").read_text())["catalogue"])

    def again() -> RetrainingInputs:
        return freeze_inputs(job, shop, shop.parent / "export", days=7.0, mark="recipe", drop_outdated=drop)

    first = again()
    before = first.everything.read_bytes()
    assert not again().outdated
    assert not dropped
    items, picture = shop / "items.csv", shop / "images" / "a.png"
    if change == "row":
        items.write_text(items.read_text() + "c,third,\n")
    elif change == "price":
        items.write_text(items.read_text().replace("first", "First"))
    elif change == "picture":
        picture.write_bytes(b"another")
    elif change == "new picture":
        (shop / "images" / "b.png").write_bytes(b"two")
    else:
        picture.unlink()
    found = again()
    assert found.resumed
    assert found.outdated
    assert found.everything.read_bytes() == before
    assert dropped == [first.record["catalogue"]], "what was made of it is deleted before the new state is recorded"
    assert not again().outdated
    items.write_text("item_id\na\na\n")
    with pytest.raises(DatasetError, match="item ids must be unique"):
        again()


def test_a_job_that_was_killed_while_it_was_deleted_begins_anew(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = frozen(shop)

    def killed(directory: Path) -> None:
        (directory / "everything.parquet").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            inputs.end()
    again = frozen(shop)
    assert not again.resumed
    assert items(again.everything) == ["a", "c", "b", "d", "e"]


def test_a_shop_without_interactions_of_its_own(shop: Path) -> None:
    (shop / "interactions.csv").unlink()
    assert items(frozen(shop).everything) == ["c", "b", "d", "e"]


def test_types_of_the_data_set_are_kept(shop: Path) -> None:
    rows = [f"anna,a,{ARRIVAL - 9 * DAY},purchase", f"bob,z,{ARRIVAL - 8 * DAY},"]
    (shop / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    frame = pl.read_parquet(frozen(shop).everything)
    assert frame.select("item_id", "type").rows()[:2] == [("a", "purchase"), ("z", None)]
    assert frame["timestamp"][0] == ARRIVAL - 9 * DAY


def test_fractions_of_a_second_order_the_events_of_the_data_set(shop: Path) -> None:
    at = ARRIVAL - 9 * DAY
    rows = [f"anna,{item},{at}.{fraction},view" for item, fraction in (("second", 7), ("first", 2), ("third", 9))]
    (shop / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    assert items(frozen(shop).everything)[:3] == ["first", "second", "third"]


def test_an_empty_export_and_too_many_days_are_named(shop: Path, tmp_path: Path) -> None:
    for days in (100, 1e300, math.inf):
        with pytest.raises(DatasetError, match="none is left to learn from before them; give fewer --measure-days"):
            frozen(shop, days=days)
    (shop / "interactions.csv").unlink()
    ExportDirectory.open_or_create(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"neither the export nor .* has an interaction"):
        freeze_inputs(tmp_path / "job", shop, tmp_path / "empty", days=7, mark="m")
    with pytest.raises(DatasetError, match="there is no export"):
        freeze_inputs(tmp_path / "job", shop, tmp_path / "nowhere", days=7, mark="m")
