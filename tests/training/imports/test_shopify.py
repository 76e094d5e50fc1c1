"""Shopify: several rows per product, for variants and pictures, in both layouts of the export."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.errors import DatasetError

OLD = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,"
    "Variant Price,Image Src,Image Position,Variant Image,Status\n"
    'tee,Green tee,"<p>Soft <b>cotton</b> &amp; more</p>\n<script>track()</script><ul><li>one</li><li>two</li></ul>",'
    'Acme,Clothing,Shirts,"summer, green",TRUE,Size,S,TEE-S,19.00,https://img.example/b.jpg,2,,active\n'
    "tee,,,,,,,,,M,TEE-M,21.50,https://img.example/a.jpg,1,https://img.example/v.jpg,\n"
    "mug,Mug,,Acme,,,,false,Title,Default Title,,8,,,https://img.example/mug.jpg,draft\n"
    "tee,,,,,,,,,,,,https://img.example/c.jpg,3,,\n"
    ",,,,,,,,,,,,https://img.example/c.jpg,3,,\n"
    "ghost,,,,,,,,,,G-1,much,,,,\n"
)
NEW = (
    "Title,URL handle,Description,Vendor,Type,Tags,Published on online store,Status,SKU,Price,Price / International,"
    "Product image URL,Image position\n"
    "Green tee,tee,<p>Soft</p>,Acme,Shirts,summer,TRUE,Active,TEE-S,19.00,99,https://img.example/a.jpg,1\n"
)


def test_variants_and_pictures_become_one_item(imported: Callable) -> None:
    made = imported("shopify", {"products_export_1.csv": OLD})
    rows = {row["item_id"]: row for row in made.raw_items().to_dicts()}
    assert list(rows) == ["tee", "mug", "ghost"]
    assert rows["tee"] == {
        "item_id": "tee",
        "title": "Green tee",
        "text": "Green tee\nShirts\nSoft cotton & more\none\ntwo",
        "image": None,
        "image_url": "https://img.example/a.jpg",
        "price": 19.0,
        "price_highest": 21.5,
        "vendor": "Acme",
        "product_type": "Shirts",
        "category": "Clothing",
        "tags": ["summer", "green"],
        "skus": ["TEE-S", "TEE-M"],
        "status": "active",
        "published": True,
    }
    assert rows["mug"]["image_url"] == "https://img.example/mug.jpg", "the picture of a variant, for want of another"
    assert (rows["mug"]["published"], rows["mug"]["price"], rows["mug"]["skus"]) == (False, 8.0, [])
    assert made.left_out() == {"Handle is empty, so the row belongs to no product": (1, [7])}
    assert made.left_empty() == {
        "the price of a variant must be a number; not counted": (1, [8]),
        "a product has no Title in any of its rows; left empty": (1, [8]),
    }


def test_the_newer_layout(imported: Callable) -> None:
    row = imported("shopify", {"products.csv": NEW}).raw_items().to_dicts()[0]
    assert (row["item_id"], row["title"], row["text"]) == ("tee", "Green tee", "Green tee\nShirts\nSoft")
    assert (row["price"], row["skus"], row["published"]) == (19.0, ["TEE-S"], True)
    assert row["image_url"] == "https://img.example/a.jpg"


def test_with_events_it_is_a_data_set(imported: Callable, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id,timestamp\nu,tee,2024-01-01\nu,mug,2024-01-02\nu,tee,2024-01-03\n")
    made = imported("shopify", {"products.csv": OLD}, interactions=events)
    assert made.events() == [("u", "tee", 1704067200), ("u", "mug", 1704153600), ("u", "tee", 1704240000)]


def test_another_table_is_refused(imported: Callable) -> None:
    with pytest.raises(
        DatasetError, match=r"orders\.csv: line 1: a column 'handle' or 'url handle' is missing; export"
    ):
        imported("shopify", {"orders.csv": "Name,Email\n#1,a@b.example\n"})
