"""A data set in an object store is read as the same files in a directory, and every fault of the store is one line."""

import dataclasses
import io
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import PREFIX, URL, put
from training.data.data_place import DataPlace
from training.data.dataset import Dataset, load_dataset
from training.data.impressions import read_impressions
from training.data_check.check import check_dataset
from training.embedding.baseline_features import embed_without_vlm
from training.embedding.content_hashes import read_contents
from training.errors import DatasetError
from training.events.catalogue_state import catalogue_state

COLUMNS = ("item_id", "text", "picture", "image")


def refusal(url: str = URL) -> str:
    with pytest.raises(DatasetError) as caught:
        load_dataset(url)
    return one_line(caught.value)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    assert "a-secret-for-tests" not in message
    assert "AKIDEXAMPLE" not in message
    return message


def parquet(**columns: object) -> bytes:
    content = io.BytesIO()
    pl.DataFrame(columns).write_parquet(content)
    return content.getvalue()


def test_it_is_read_as_the_same_files_in_a_directory(stored: S3Server, shop: Dataset) -> None:
    dataset = load_dataset(URL)
    assert dataset.items.equals(shop.items)
    assert dataset.interactions.equals(shop.interactions)
    assert stored.asked("GET", ".png") == 0
    found, expected = read_contents(dataset), read_contents(shop)
    assert found.frame.select(COLUMNS).equals(expected.frame.select(COLUMNS))
    made, wanted = embed_without_vlm(dataset), embed_without_vlm(shop)
    assert {name: block.tobytes() for name, block in made.vectors.items()} == {
        name: block.tobytes() for name, block in wanted.vectors.items()
    }
    assert made.unreadable.keys() == wanted.unreadable.keys() != set()
    assert all("some/data/images" in reason for reason in made.unreadable.values())


def test_tables_are_copied_once_for_each_of_their_versions(stored: S3Server, cache: Path) -> None:
    first = load_dataset(URL)
    load_dataset(URL)
    assert stored.asked("GET", "items.csv") == 1
    content = stored.objects[f"{PREFIX}items.csv"][0]
    put(stored, "items.csv", content + b"new,New,,\n", day=2)
    assert len(load_dataset(URL)) == len(first) + 1
    assert first.directory.is_dir()  # another data set still reads it
    del first
    assert len(load_dataset(URL)) == len(content.splitlines())
    (root,) = cache.iterdir()
    assert len(list(root.glob("tables-*"))) == 1


def test_a_picture_is_fetched_once_and_its_stamp_not_at_all(stored: S3Server) -> None:
    dataset = load_dataset(URL)
    contents = read_contents(dataset)
    pictures = stored.asked("GET", ".png")
    assert pictures == contents.frame["picture"].drop_nulls().len()
    shutil.rmtree(dataset.directory.parent / "pictures")
    again = read_contents(load_dataset(URL), trusted=contents)
    assert again.frame.equals(contents.frame)
    assert stored.asked("GET", ".png") == pictures
    state = catalogue_state(URL)
    put(stored, "images/0.png", b"other", day=3)
    assert catalogue_state(URL) != state
    assert stored.asked("GET", ".png") == pictures


def test_copies_of_pictures_are_bounded_and_an_open_one_stays_readable(
    stored: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM2REC_DATA_CACHE_MB", "1")
    content = {name: bytes([number]) * 300_000 for number, name in enumerate("abcdef")}
    for name, picture in content.items():
        put(stored, f"{name}.jpg", picture)
    place = DataPlace.open(URL)
    opened = {}
    for name in content:
        found = place.picture(f"./x/../{name}.jpg")
        assert found is not None
        assert found.stat().st_size == 300_000
        opened[name] = found.open("rb")
        assert sum(path.stat().st_size for path in cache.rglob("pictures/*/*")) <= 1 << 20
    assert {name: file.read() for name, file in opened.items()} == content
    for file in opened.values():
        file.close()
    asked = stored.asked("GET", ".jpg")
    for name in ("f", "a"):
        found = place.picture(f"{name}.jpg")
        assert found is not None
        with found.open("rb") as file:
            assert file.read() == content[name]
    assert stored.asked("GET", ".jpg") == asked + 1  # f was still there


def test_copies_of_several_processes_are_bounded_together(
    stored: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM2REC_DATA_CACHE_MB", "1")
    for number in range(80):
        put(stored, f"{number}.jpg", bytes([number]) * 30_000)
    places = [DataPlace.open(URL) for _ in range(2)]
    most = 0
    for number in range(80):
        found = places[number % 2].picture(f"{number}.jpg")
        assert found is not None
        with found.open("rb") as file:
            assert file.read() == bytes([number]) * 30_000
        most = max(most, sum(path.stat().st_size for path in cache.rglob("pictures/*/*")))
    assert 0.8 * (1 << 20) < most <= 1.1 * (1 << 20)


def test_a_picture_that_is_replaced_by_one_of_the_same_size_and_second_is_another(stored: S3Server) -> None:
    put(stored, "images/0.png", b"first")
    contents, state = read_contents(load_dataset(URL)), catalogue_state(URL)
    put(stored, "images/0.png", b"other")
    after = DataPlace.open(URL).picture("images/0.png")
    assert after is not None
    with after.open("rb") as file:
        assert file.read() == b"other"
    assert catalogue_state(URL) != state
    again = read_contents(load_dataset(URL), trusted=contents)
    assert again.digest() == read_contents(load_dataset(URL)).digest() != contents.digest()
    put(stored, "images/0.png", b"third")
    shutil.rmtree(load_dataset(URL).directory.parent / "pictures")
    with pytest.raises(DatasetError, match=r"images/0\.png: was replaced while the data set was being read"):
        after.open("rb")


@pytest.mark.parametrize(
    "name", [None, "", " ", "/items.csv", "../data/items.csv", "a/../../x", ".", "images", "no.png"]
)
def test_paths_out_of_the_prefix_and_unknown_ones_are_no_pictures(stored: S3Server, name: str | None) -> None:
    stored.objects["x"] = stored.objects[f"{PREFIX}items.csv"]
    assert DataPlace.open(URL).picture(name) is None


def test_the_check_names_the_store_and_not_the_copy(stored: S3Server, shop_directory: Path, cache: Path) -> None:
    put(stored, "items.csv", b"item_id,title,image\ni01,A,images/1.png\ni01,B,https://a/b.png\ni02,C,../x.png\n")
    report = check_dataset(URL)
    assert report.directory == URL
    assert {"duplicate item ids", "addresses as images", "images outside the dataset"} <= {
        defect.kind for defect in report.defects
    }
    put(stored, "items.csv", b"\x1f\x8b", day=2)
    (defect,) = [defect for defect in check_dataset(URL).defects if defect.kind == "unusable items file"]
    assert defect.message.startswith(f"{URL}/items.csv: is gzip-compressed")
    assert str(cache) not in str(check_dataset(URL).to_json())
    local = check_dataset(shop_directory)
    assert local.directory == str(shop_directory)


def test_faults_that_are_found_after_reading_name_the_store(stored: S3Server) -> None:
    types = b'weight_by = "type"\n'
    put(stored, "events.toml", types)
    put(stored, "interactions.csv", b"user_id,item_id,timestamp,type\nu,i01,1,view\n")
    dataset = load_dataset(URL)
    (dataset.directory / "interactions.csv").unlink()
    with pytest.raises(DatasetError) as caught:
        read_impressions(dataset)
    assert one_line(caught.value) == f"{URL}/interactions.csv: no such file"
    with pytest.raises(DatasetError) as caught:
        read_impressions(dataclasses.replace(dataset, rules=None))
    assert one_line(caught.value).startswith(f"{URL}: encoder.impression_negatives needs events of several types")


def test_folders_of_files_are_tables_there_too(stored: S3Server) -> None:
    del stored.objects[f"{PREFIX}interactions.csv"]
    for day, item in (("2026-01-01", "i01"), ("2026-01-02", "i02")):
        rows = parquet(user_id=["u", "v"], item_id=[item, "i03"], timestamp=[5, 6])
        put(stored, f"interactions/day={day}/part-0.parquet", rows)
    put(stored, "interactions/_SUCCESS", b"")
    assert load_dataset(URL).interactions.rows() == [("u", "i01", 5), ("u", "i02", 5), ("v", "i03", 6), ("v", "i03", 6)]
    put(stored, "interactions/day=2026-01-03/part-0.parquet", parquet(user_id=[1], item_id=["i01"], timestamp=[5]))
    assert refusal() == (
        f"{URL}/interactions/day=2026-01-03/part-0.parquet: column 'user_id' holds Int64, in "
        f"{URL}/interactions/day=2026-01-01/part-0.parquet it holds String; write all files of a table with the same "
        "types"
    )


def test_a_folder_beside_a_file_of_the_same_name_holds_pictures_and_is_not_copied(stored: S3Server) -> None:
    put(stored, "items.csv", b"item_id,title,image\ni01,A,items/1.png\ni02,B,items/2.png\n")
    for name in ("items/1.png", "items/2.png", "interactions/x.png"):
        put(stored, name, stored.objects[f"{PREFIX}images/1.png"][0])
    dataset = load_dataset(URL)
    assert dataset.item_ids() == ["i01", "i02"]
    assert stored.asked("GET", ".png") == 0
    assert sorted(path.name for path in dataset.directory.iterdir()) == ["interactions.csv", "items.csv"]
    assert [name.rpartition("/")[2] for name in map(str, map(dataset.image_path, range(2)))] == ["1.png", "2.png"]


def test_a_folder_of_a_table_is_copied_as_far_as_it_is_read(stored: S3Server) -> None:
    for folder in ("interactions", "items"):
        del stored.objects[f"{PREFIX}{folder}.csv"]
    for item in ("i01", "i02"):
        events = parquet(user_id=["u"], item_id=[item], timestamp=[5])
        put(stored, f"interactions/day={item}/part-0.parquet", events)
        put(stored, f"items.parquet/part-{item}.parquet/0.parquet", parquet(item_id=[item]))
    for marker in ("interactions/", "interactions/day=i01/", "items.parquet/", "items.parquet/part-i01.parquet/"):
        put(stored, marker, b"")
    for name in ("_temporary/0/half.csv", "day=i01/.part-0.parquet.crc", "_SUCCESS", ".hidden/x.parquet"):
        put(stored, f"interactions/{name}", b"left out")
    dataset = load_dataset(URL)
    assert dataset.interactions.rows() == [("u", "i01", 5), ("u", "i02", 5)]
    assert dataset.item_ids() == ["i01", "i02"]
    assert sorted(path.relative_to(dataset.directory).as_posix() for path in dataset.directory.rglob("*.*")) == [
        "interactions/day=i01/part-0.parquet",
        "interactions/day=i02/part-0.parquet",
        "items.parquet",
        "items.parquet/part-i01.parquet",
        "items.parquet/part-i01.parquet/0.parquet",
        "items.parquet/part-i02.parquet",
        "items.parquet/part-i02.parquet/0.parquet",
    ]


def test_of_a_folder_with_other_files_one_of_them_is_copied_and_named(stored: S3Server) -> None:
    del stored.objects[f"{PREFIX}items.csv"]
    for name in ("a.parquet", "b.png", "c.png"):
        put(stored, f"items/{name}", b"content")
    assert refusal() == (
        f"{URL}/items/b.png: the folder of a table holds .parquet files only; remove it, or convert it to Parquet"
    )
    assert stored.asked("GET", ".png") == 1


def test_a_folder_is_no_picture_though_it_has_an_object_of_its_own(stored: S3Server) -> None:
    put(stored, "images/", b"")
    put(stored, "empty.png", b"")
    place = DataPlace.open(URL)
    assert place.picture("images") is None
    assert place.picture("empty.png") is not None


def test_a_copy_that_broke_off_goes_on_at_the_byte_where_it_ended(
    stored: S3Server, monkeypatch: pytest.MonkeyPatch, shop: Dataset
) -> None:
    monkeypatch.setattr("training.data.stored.data_store.BLOCK_BYTES", 256)
    left = [3]

    def breaks(method: str, key: str) -> str | None:
        if method == "GET" and key.endswith("items.csv"):
            left[0] -= 1
            return "denied" if left[0] < 0 else None
        return None

    with stored.faulty(breaks):
        refusal()
    before = len(stored.requests)
    assert load_dataset(URL).items.equals(shop.items)
    ranges = [asked for method, key, asked in stored.requests[before:] if key.endswith("items.csv") and method == "GET"]
    assert ranges[0] == "bytes=768-1023"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", "start again once the store answers: what has arrived is kept"),
        ("denied", "check AWS_ACCESS_KEY_ID"),
        ("no bucket", "check the name of the bucket and AWS_ENDPOINT_URL"),
        (5.0, "start again once the store answers: what has arrived is kept"),
    ],
)
def test_a_store_that_is_gone_slow_or_refuses_is_one_line(stored: S3Server, fault: str | float, words: str) -> None:
    with stored.faulty(lambda _method, _key: fault):
        message = refusal()
    assert message.startswith(URL)
    assert message.endswith(words)


@pytest.mark.parametrize("fault", ["half", "lie"])
def test_half_of_a_table_is_never_read(stored: S3Server, fault: str, cache: Path) -> None:
    with stored.faulty(lambda method, key: fault if method == "GET" and key.endswith("items.csv") else None):
        message = refusal()
    assert message.startswith(f"{URL}/items.csv: ")
    assert not list(cache.rglob("tables-*"))


def test_an_object_that_is_deleted_or_replaced_after_it_was_listed_is_named(stored: S3Server) -> None:
    with stored.faulty(lambda method, key: "missing" if method == "GET" and key.endswith("items.csv") else None):
        assert refusal() == f"{URL}/items.csv: was deleted while the data set was being read; start again"

    def replaces(method: str, key: str) -> None:
        if method == "GET" and key.endswith("items.csv"):
            put(stored, "items.csv", b"item_id\nother\n", day=2)

    with stored.faulty(replaces):
        assert refusal() == f"{URL}/items.csv: was replaced while the data set was being read; start again"
    assert DataPlace.open(URL).directory.joinpath("items.csv").read_bytes() == b"item_id\nother\n"


def test_a_store_that_goes_while_pictures_are_read_ends_the_job_and_no_picture_counts_as_unreadable(
    stored: S3Server,
) -> None:
    dataset = load_dataset(URL)
    for fault, words in (
        ("gone", "start again once the store answers: what has arrived is kept"),
        ("missing", "was deleted while the data set was being read; start again"),
    ):
        with (
            stored.faulty(lambda _method, key, fault=fault: fault if key.endswith(".png") else None),
            pytest.raises(DatasetError) as caught,
        ):
            embed_without_vlm(dataset)
        assert one_line(caught.value).startswith(f"{URL}/images/")
        assert one_line(caught.value).endswith(words)
    with (
        stored.faulty(lambda _method, key: "gone" if key.endswith(".png") else None),
        pytest.raises(DatasetError, match="start again once the store answers"),
    ):
        check_dataset(URL)


def test_a_prefix_without_tables_and_one_without_items_are_named(stored: S3Server) -> None:
    assert refusal("s3://shop/nothing") == (
        "s3://shop/nothing: there is no table below this prefix, such as items.parquet; check the bucket and the prefix"
    )
    del stored.objects[f"{PREFIX}items.csv"]
    assert refusal().startswith(f"{URL}: a dataset needs items.csv or items.jsonl or items.parquet, found none")


def test_missing_credentials_are_named(stored: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", stored.url)
    with stored.faulty(lambda _method, _key: "denied"):
        message = refusal()
    assert message.endswith("no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


@pytest.mark.usefixtures("cache")
def test_other_places_are_refused_without_quoting_a_password(
    shop_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("gs://shop/data", "az://shop/data", "http://shop/data"):
        assert (
            refusal(url)
            == f"{url[: url.index(':')]}:… is no place of a data set: name a directory, or s3://BUCKET/PREFIX"
        )
    for url in ("s3://user:a-secret-for-tests@shop/data", "s3://shop/data?x=1", "s3:shop", "s3://shop/../x"):
        assert refusal(url).startswith("an object store must be named as s3://bucket/prefix")
    assert len(load_dataset(f"file://{shop_directory}")) == len(load_dataset(str(shop_directory)))
    assert refusal("file://host/data").startswith("a data set on this machine must be named as file:///path")
    monkeypatch.setenv("VLM2REC_DATA_CACHE_MB", "0")
    monkeypatch.setenv("AWS_PROFILE", "x")
    assert "AWS_PROFILE is set" in refusal()


def test_a_bound_that_is_no_number_and_a_full_disk_are_named(
    stored: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.objects
    monkeypatch.setenv("VLM2REC_DATA_CACHE_MB", "many")
    assert refusal() == "VLM2REC_DATA_CACHE_MB must be a number of MiB of at least 1, got 'many'; correct it"
    monkeypatch.delenv("VLM2REC_DATA_CACHE_MB")
    shutil.rmtree(cache)
    cache.write_text("a file")
    message = refusal()
    assert f"the tables of {URL} cannot be written" in message
    assert "VLM2REC_DATA_CACHE" in message
