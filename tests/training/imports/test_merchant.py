"""Google Merchant feeds: RSS, Atom, tabs; malicious XML is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.data_check.check import check_dataset
from training.errors import DatasetError
from training.imports.source_files import LONGEST_RECORD_BYTES

RSS = """<?xml version="1.0"?>
<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel>
<title>Example shop</title><link>https://shop.example</link>
<item>
<g:id>TV_1</g:id><g:title>Google's <![CDATA[TV & more]]></g:title><title>plain title</title>
<description>Bright &lt;b&gt;and&lt;/b&gt; flat, 5" &lt; 6"</description>
<g:link>https://shop.example/tv</g:link><g:image_link>https://img.example/tv.jpg</g:image_link>
<g:additional_image_link>https://img.example/tv2.jpg</g:additional_image_link>
<g:price>1049.99 USD</g:price><g:availability>in_stock</g:availability>
<g:shipping><g:country>US</g:country><g:price>9.99 USD</g:price></g:shipping>
<g:brand>Acme</g:brand><g:gtin>00012345</g:gtin><g:product_type>Home &gt; TV</g:product_type>
</item>
<item><g:id>TV_2</g:id><title>Second</title><g:price>12,50 EUR</g:price></item>
<item><title>without id</title></item>
<item><g:id>TV_1</g:id><title>again</title></item>
</channel></rss>
"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0"><title>Shop</title>
<link rel="self" href="https://shop.example"/>
<entry><g:id>A</g:id><title>Thing</title><summary>Words</summary><link href="https://shop.example/a"/>
<g:image_link>https://img.example/a.jpg</g:image_link>
<g:price>5 EUR</g:price><g:sale_price>4.00 EUR</g:sale_price></entry>
</feed>"""
TABS = (
    "\ufeffid\ttitle\tdescription\tlink\timage link\tprice\tavailability\tcustom\r\n"
    '007\tShirt\t"with ""quotes"" and\nlines"\thttps://shop.example/7\t'
    "https://img.example/7.jpg\t19.00 EUR\tin stock\tx\r\n"
    "008\tHat\t\t\t\t\t\t\r\n"
)
EVENTS = "user_id,item_id,timestamp\n" + "".join(f"u,TV_{1 + n % 2},{1700000000 + n}\n" for n in range(4))


def test_rss(imported: Callable, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text(EVENTS)
    made = imported("google-merchant", {"feed.xml": RSS}, interactions=events)
    items = made.items()
    assert list(items) == ["TV_1", "TV_2"]
    tv = items["TV_1"]
    assert tv["title"] == "Google's TV & more"
    assert tv["text"] == 'Google\'s TV & more\nHome > TV\nBright and flat, 5" < 6"'
    assert tv["image_url"] == "https://img.example/tv.jpg"
    assert (tv["price"], tv["currency"], tv["brand"], tv["gtin"]) == (1049.99, "USD", "Acme", "00012345")
    assert tv["image"] is None
    assert items["TV_2"]["price"] is None, "a price of another spelling is not guessed"
    assert made.left_empty() == {"price must be as '19.99 EUR'; left empty": (1, [13])}
    assert made.left_out() == {
        "item id must have 1 to 256 bytes and no control characters": (1, [14]),
        "the item id is repeated; its first row was kept": (1, [15]),
    }
    assert any(note.endswith("not imported: additional_image_link") for note in made.record.notes)
    assert check_dataset(made.directory).ok
    assert made.events()[0] == ("u", "TV_1", 1700000000)


def test_atom(imported: Callable, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id,timestamp\nu,A,2024-01-31T10:00:00Z\n,A,5\nu,B,2024-01-31\n")
    made = imported("google-merchant", {"feed.xml": ATOM}, interactions=events)
    thing = made.items()["A"]
    assert (thing["title"], thing["text"], thing["link"]) == ("Thing", "Thing\nWords", "https://shop.example/a")
    assert (thing["price"], thing["sale_price"], thing["currency"]) == (5.0, 4.0, "EUR")
    assert made.events() == [("u", "A", 1706695200)]
    assert made.left_out() == {"the user_id is empty": (1, [3]), "the item is not in the catalogue": (1, [4])}


def test_tabs(imported: Callable) -> None:
    made = imported("google-merchant", {"feed.txt": TABS})
    assert made.record.interactions is None
    assert any("--interactions" in note for note in made.record.notes)
    rows = {row["item_id"]: row for row in made.raw_items().to_dicts()}
    assert list(rows) == ["007", "008"]
    assert rows["007"]["text"] == 'Shirt\nwith "quotes" and\nlines'
    assert (rows["007"]["image_url"], rows["007"]["availability"]) == ("https://img.example/7.jpg", "in stock")
    assert rows["008"]["text"] == "Hat"
    assert any("not imported: custom" in note for note in made.record.notes)


LAUGHS = "<!DOCTYPE rss [<!ENTITY a '" + "ha" * 50 + "'>" + "".join(
    f"<!ENTITY {'abcdefghij'[n]} '{('&' + 'abcdefghij'[n - 1] + ';') * 10}'>" for n in range(1, 10)
) + "]>"  # fmt: skip


@pytest.mark.parametrize(
    "declaration",
    [
        LAUGHS,
        "<!DOCTYPE rss [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>",
        "<!DOCTYPE rss SYSTEM 'https://evil.example/feed.dtd'>",
    ],
)
def test_a_document_type_is_refused_before_anything_expands(imported: Callable, declaration: str) -> None:
    feed = RSS.replace('<?xml version="1.0"?>', declaration).replace("plain title", "&j;")
    with pytest.raises(DatasetError, match=r"feed\.xml: line 1: a document type declaration .* is refused"):
        imported("google-merchant", {"feed.xml": feed})


def test_depth_and_size_are_bounded(imported: Callable) -> None:
    with pytest.raises(DatasetError, match="nested deeper than 64"):
        imported("google-merchant", {"feed.xml": RSS.replace("plain title", "<x>" * 70 + "</x>" * 70)})
    with pytest.raises(DatasetError, match="an element is larger than 16 MiB"):
        imported("google-merchant", {"feed.xml": RSS.replace("<title>plain", f'<title x="{"y" * (20 << 20)}">plain')})
    with pytest.raises(DatasetError, match="a product is larger than 16 MiB"):
        imported("google-merchant", {"feed.xml": RSS.replace("plain title", "y\n" * (9 << 20))})


@pytest.mark.parametrize("cut", ["</item>\n<item><g:id>TV_2", "g:price>12,50 EUR</g:price></item>"])
def test_a_feed_that_is_cut_short_or_broken(imported: Callable, cut: str) -> None:
    with pytest.raises(DatasetError, match=r"feed\.xml: line \d+: is no well-formed XML \(.+\); check that the feed"):
        imported("google-merchant", {"feed.xml": RSS[: RSS.index(cut) + 3]})


@pytest.mark.parametrize("encoding", ["nonsense", "gb18030", "utf-16"])
def test_an_encoding_that_cannot_be_read(imported: Callable, encoding: str) -> None:
    feed = RSS.replace('version="1.0"?>', f'version="1.0" encoding="{encoding}"?>')
    with pytest.raises(DatasetError, match=r"feed\.xml: line 1: "):
        imported("google-merchant", {"feed.xml": feed})


def test_an_older_encoding(imported: Callable) -> None:
    feed = RSS.replace('version="1.0"?>', 'version="1.0" encoding="windows-1252"?>').replace("Second", "Café – 5 €")
    made = imported("google-merchant", {"feed.xml": feed.encode("windows-1252")})
    assert made.raw_items()["title"].to_list()[1] == "Café – 5 €"


def test_a_feed_on_one_line_longer_than_a_record_may_be(imported: Callable) -> None:
    item = "<item><g:id>{}</g:id><title>" + "word " * 200 + "</title></item>"
    feed = RSS.replace("\n", "").replace("</channel>", "".join(item.format(n) for n in range(20_000)) + "</channel>")
    assert len(feed) > LONGEST_RECORD_BYTES
    made = imported("google-merchant", {"feed.xml": feed})
    assert made.record.items == 20_002
