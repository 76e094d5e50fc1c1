"""The nightly job of a run that was fitted on exported events, which its data set does not have."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from typer.testing import CliRunner

from cli.app import app
from index.items.item_table import ItemTable
from training.data.dataset import load_dataset
from training.encoder.loaded import FittedEncoder

if TYPE_CHECKING:
    from conftest import Shop


def publish_with_exported_counts(shop: "Shop") -> np.ndarray:
    """Publish a bundle of a table with three times as many events as the data set has, as a retraining makes it."""
    directory = shop.run / "encoder"
    record = json.loads((directory / "fit.json").read_text())
    (directory / "fit.json").write_text(json.dumps(record | {"counted_on_export": True}))
    table = ItemTable.load(directory / "table")
    counts = 3 * table.popularity + 1
    replace(table, popularity=counts, vectors=np.array(table.vectors)).save(directory / "table")
    words = ["index", "build", "--run", str(shop.run), "--publish", str(shop.home / "bundles"), "--bound", "recall=0.5"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return counts


def test_exported_counts_stay_and_are_not_missed_in_the_data_set(own: "Shop") -> None:
    counts = publish_with_exported_counts(own)
    own.edit(lambda rows: [*rows, {**rows[1], "item_id": "new"}])
    events = (own.data / "interactions.csv").read_text().rstrip("\n")
    (own.data / "interactions.csv").write_text(f"{events}\nnobody,new,9999999999\n")
    assert own.reindex()["outcome"] == "published"
    np.testing.assert_array_equal(own.bundle().popularity, [*counts, 1])
    table = ItemTable.load(own.run / "encoder" / "table")
    few = table.popularity.copy()
    few[2] = 0  # fitted without an event, exported or not; the data set has some now
    fitted = FittedEncoder.load(own.run)
    anew = replace(fitted, table=replace(table, popularity=few)).counts(load_dataset(own.data))
    assert anew[2] == (table.popularity[2] - 1) // 3 > 0
    own.edit(lambda rows: rows[1:])
    dataset = load_dataset(own.data)
    np.testing.assert_array_equal(FittedEncoder.load(own.run).counts(dataset), [*counts[1:], 1])
