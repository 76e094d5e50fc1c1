"""The nightly job makes thumbnails of changed pictures and keeps the others."""

import dataclasses
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from training.backbones.trained_model import TrainedModel
from training.data import thumbnails
from training.embedding.content_hashes import ContentHashes
from training.encoder.loaded import FittedEncoder
from training.nightly.item_updates import KeptTable

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Shop


def pictures(shop: "Shop") -> dict[str, bytes | None]:
    bundle = shop.bundle()
    assert bundle.thumbnails is not None
    return {bundle.ids.id(row): bundle.thumbnails.get(row) for row in range(len(bundle))}


def test_pictures_of_changed_items_are_made_and_the_others_kept(
    nightly: "Shop", monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pictures(nightly)
    assert 20 < sum(picture is not None for picture in before.values()) < 30
    Image.new("RGB", (16, 16), "white").save(nightly.data / "images" / "9.png")
    nightly.edit(lambda rows: rows[1:])
    made: list[str] = []
    make = thumbnails.make_thumbnail

    def counted(path: "Path") -> bytes | None:
        made.append(path.name)
        return make(path)

    monkeypatch.setattr(thumbnails, "make_thumbnail", counted)
    nightly.reindex()
    after = pictures(nightly)
    assert made == ["9.png"]
    changed = after.pop("i09")
    assert changed is not None
    assert np.asarray(Image.open(io.BytesIO(changed))).min() > 250
    assert after == {item_id: picture for item_id, picture in before.items() if item_id in after}
    assert not list((nightly.run / "reindex").glob("thumbnails*"))


def test_thumbnails_of_another_version_or_unknown_files_are_made_again(own: "Shop") -> None:
    fitted, model = FittedEncoder.load(own.run), TrainedModel.of(own.run).provenance
    kept = KeptTable.newest(own.run / "reindex", fitted, model)
    contents = ContentHashes.load(own.run / "encoder" / "contents.parquet")
    found, was = kept.pictures(contents)
    assert found is not None
    assert was.tolist() == list(range(30))
    earlier = dataclasses.replace(kept.table, model={**kept.table.model, "thumbnails": "0"})
    assert dataclasses.replace(kept, table=earlier).pictures(contents)[0] is None
    assert dataclasses.replace(kept, contents=None).pictures(contents)[1].tolist() == [-1] * 30
