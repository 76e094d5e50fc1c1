"""H&M: ids with leading zeros, days, and pictures in folders of three digits."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from training.data_check.check import check_dataset
from training.errors import DatasetError

COLUMNS = (
    "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,"
    "graphical_appearance_name,colour_group_name,department_name,index_group_name,section_name,garment_group_name,"
    "detail_desc\n"
)
ARTICLES = COLUMNS + (
    "0108775015,0108775,Strap top,253,Vest top,Garment Upper body,Solid,Black,Jersey,Ladieswear,Basics,Jersey Basic,"
    '"Jersey top, with narrow straps.\nMade of cotton"\n'
    "0108775044,0108775,Strap top,253,Vest top,Garment Upper body,Solid,White,Jersey,Ladieswear,Basics,Jersey Basic,\n"
    "0111565001,0111565,20 den 1p Stockings,304,Socks,Socks & Tights,Solid,Black,Tights,Ladieswear,Tights,Socks,Nylon\n"
)
PURCHASES = "t_dat,customer_id,article_id,price,sales_channel_id\n" + "".join(
    f"2020-09-{20 + day},c{user},0{article},0.05,2\n"
    for user in (1, 2)
    for day, article in enumerate(("108775015", "108775044", "111565001", "108775015"))
)


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "JPEG")
    return buffer.getvalue()


FILES = {
    "articles.csv": ARTICLES,
    "transactions_train.csv": PURCHASES,
    "images/010/0108775015.jpg": picture("black"),
    "images/011/0111565001.jpg": picture("red"),
}


def test_articles_purchases_and_pictures(imported: Callable) -> None:
    made = imported("hm", FILES)
    items = made.items()
    assert list(items) == ["0108775015", "0108775044", "0111565001"]
    top = items["0108775015"]
    assert top["title"] == "Strap top"
    assert top["text"] == "Strap top\nVest top\nBlack\nSolid\nJersey top, with narrow straps.\nMade of cotton"
    assert (top["colour"], top["department"], top["product_code"]) == ("Black", "Jersey", "0108775")
    assert "price" not in top, "the catalogue has no prices, and those of purchases are scaled"
    assert top["image"] == "images/010/0108775015.jpg"
    assert (made.directory / top["image"]).read_bytes() == FILES["images/010/0108775015.jpg"]
    assert items["0108775044"]["image"] is None
    assert made.left_empty() == {"the picture is not in the source directory; image left empty": (1, [4])}
    assert made.events()[0] == ("c1", "0108775015", 1600560000)
    report = check_dataset(made.directory)
    assert report.ok
    assert report.images is not None
    assert (report.images.named, report.images.readable) == (2, 2)


def test_ids_that_lost_their_zero_get_it_back_and_others_are_left_out(imported: Callable) -> None:
    articles = ARTICLES.replace("0108775015,", "108775015,", 1) + "../../x,1,n,1,t,g,p,c,d,i,s,g,e\n"
    made = imported("hm", FILES | {"articles.csv": articles, "transactions_train.csv": PURCHASES.replace(",0", ",")})
    assert list(made.items()) == ["0108775015", "0108775044", "0111565001"]
    assert made.left_out() == {"article_id must be a number of up to 10 digits": (1, [6])}
    assert made.record.interactions == 8


def test_no_picture_from_outside_the_source(imported: Callable, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture("blue"))
    link = tmp_path / "source/images/010/0108775044.jpg"
    link.parent.mkdir(parents=True)
    link.symlink_to(secret)
    made = imported("hm", FILES)
    assert made.items()["0108775044"]["image"] is None
    assert not (made.directory / "images/010/0108775044.jpg").exists()


def test_without_pictures(imported: Callable) -> None:
    made = imported("hm", {name: FILES[name] for name in ("articles.csv", "transactions_train.csv")})
    assert all(row["image"] is None for row in made.items().values())
    assert made.left_empty() == {}
    assert any("no folder images/" in note for note in made.record.notes)


def test_a_missing_column_is_named(imported: Callable) -> None:
    with pytest.raises(
        DatasetError, match=r"articles\.csv: line 1: column 'detail_desc' is missing, found 'article_id'"
    ):
        imported("hm", FILES | {"articles.csv": ARTICLES.replace(",detail_desc", ",details")})


def test_a_time_that_is_no_day(imported: Callable) -> None:
    made = imported("hm", FILES | {"transactions_train.csv": PURCHASES + "20200920,c1,0108775015,0.05,2\n"})
    assert made.left_out() == {"the time is missing or bad, it must be a day (t_dat) as 2020-09-22": (1, [10])}
