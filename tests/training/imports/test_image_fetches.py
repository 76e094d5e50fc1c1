"""The fetch job stores paths, resumes after an interruption and sends no needless request."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from cli.app import app
from tests.support.environments import without_coverage
from tests.support.picture_server import TLS, PictureServer, answer, fetcher, picture, serving
from training.data_check.check import check_dataset
from training.errors import DatasetError, RunBusy
from training.imports.fetching.image_fetches import FetchSummary, fetch_images
from training.runs.lock import run_lock


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with serving() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path, server: PictureServer) -> Path:
    """Five items: two with one address, one with its own picture, one whose address is gone, one without."""
    (tmp_path / "own.png").write_bytes(picture("PNG"))
    at = f"http://img.test:{server.port}"
    rows = [
        ("i0", "", f"{at}/0.jpg"), ("i1", "", f"{at}/0.jpg"), ("i2", "own.png", f"{at}/2.jpg"),
        ("i3", "gone.png", f"{at}/3.jpg"), ("i4", "", ""),
    ]  # fmt: skip
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title", "image", "image_url", "code")])
        csv.writer(file).writerows((item, f'"{item}", a', image, url, "007") for item, image, url in rows)
    events = "".join(f"u,i{n},{n}\n" for n in range(5))
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + events)
    for path in ("/0.jpg", "/2.jpg"):
        server.answers[path] = answer(picture())
    return tmp_path


def run(server: PictureServer, shop: Path, **options: object) -> FetchSummary:
    return fetch_images(shop, lambda: fetcher(server), **options)


def images(shop: Path) -> list[str | None]:
    return pl.read_csv(shop / "items.csv", infer_schema=False)["image"].to_list()


def name_of(server: PictureServer, path: str) -> str:
    return f"images/{hashlib.sha256(f'http://img.test:{server.port}{path}'.encode()).hexdigest()[:32]}.jpg"


def test_pictures_are_fetched_once_and_named(server: PictureServer, shop: Path) -> None:
    before = pl.read_csv(shop / "items.csv", infer_schema=False)
    reported: list[tuple[int, int]] = []
    summary = run(server, shop, progress=lambda done, total: reported.append((done, total)))
    first = name_of(server, "/0.jpg")
    assert images(shop) == [first, first, "own.png", "gone.png", None]
    assert (shop / first).read_bytes() == picture()
    assert sorted(path for path, _ in server.asked) == ["/0.jpg", "/3.jpg"]
    url = f"http://img.test:{server.port}/3.jpg"
    assert summary == FetchSummary(wanted=2, fetched=1, failed={"the server answers 404": [url]}, named=4)
    assert reported == [(1, 2), (2, 2)]
    after = pl.read_csv(shop / "items.csv", infer_schema=False)
    assert after.drop("image").equals(before.drop("image")), "nothing else changed"
    report = check_dataset(shop)
    assert report.ok
    assert report.images is not None
    assert (report.images.readable, report.images.missing) == (3, 1)


def test_a_second_job_requests_only_retryable_addresses(server: PictureServer, shop: Path) -> None:
    server.answers["/0.jpg"] = answer(b"", 503)
    assert run(server, shop).failed.keys() == {"the server answers 503", "the server answers 404"}
    server.asked.clear()
    server.answers["/0.jpg"] = server.answers["/3.jpg"] = answer(picture())
    second = run(server, shop)
    assert [path for path, _ in server.asked] == ["/0.jpg"], "404 is for good, 503 is not"
    assert (second.fetched, second.skipped) == (1, 1)
    third = run(server, shop, again=True)
    assert third == FetchSummary(wanted=1, fetched=1, named=4)
    server.asked.clear()
    assert run(server, shop) == FetchSummary(named=4)
    assert server.asked == []


@pytest.mark.parametrize("cut", [False, True])
def test_a_picture_that_was_lost_is_fetched_again(server: PictureServer, shop: Path, cut: bool) -> None:
    run(server, shop)
    first = name_of(server, "/0.jpg")
    (shop / first).write_bytes(picture()[:-9]) if cut else (shop / first).unlink()
    if cut:  # an item that names a file which is there is left alone, so it must not name it yet
        items = pl.read_csv(shop / "items.csv", infer_schema=False)
        items.with_columns(pl.lit(None, pl.String).alias("image")).write_csv(shop / "items.csv")
        server.answers.pop("/2.jpg")
    server.asked.clear()
    assert run(server, shop).fetched == 1
    assert {path for path, _ in server.asked} == ({"/0.jpg", "/2.jpg"} if cut else {"/0.jpg"})  # in any order
    assert (shop / first).read_bytes() == picture()


def test_a_bounded_number_and_the_rest_later(server: PictureServer, shop: Path) -> None:
    first = run(server, shop, most=1)
    assert (first.fetched, first.left) == (1, 1)
    assert len(server.asked) == 1
    assert run(server, shop, most=1).failed.keys() == {"the server answers 404"}


def test_parquet_keeps_its_types(server: PictureServer, shop: Path) -> None:
    (shop / "items.csv").unlink()
    items = pl.DataFrame(
        {
            "item_id": ["i0", "i1"],
            "image_url": [f"http://img.test:{server.port}/0.jpg", None],
            "tags": [["a"], []],
            "n": [1, 2],
        }
    )
    items.write_parquet(shop / "items.parquet")
    run(server, shop)
    after = pl.read_parquet(shop / "items.parquet")
    assert after["image"].to_list() == [name_of(server, "/0.jpg"), None]
    assert after.drop("image").equals(items)


def test_an_import_that_is_renewed_keeps_its_pictures(
    server: PictureServer, imported: Callable, tmp_path: Path
) -> None:
    feed = "id\ttitle\timage_link\n" + f"a\tA\thttp://img.test:{server.port}/0.jpg\n"
    server.answers["/0.jpg"] = answer(picture())
    made = imported("google-merchant", {"feed.tsv": feed})
    assert run(server, made.directory).fetched == 1
    again = imported("google-merchant", {"feed.tsv": feed + "b\tB\t\n"}, force=True)
    assert again.raw_items()["image"].to_list() == [None, None]
    server.asked.clear()
    assert run(server, again.directory) == FetchSummary(wanted=1, kept=1, named=1)
    assert server.asked == []
    assert again.raw_items()["image"].to_list() == [name_of(server, "/0.jpg"), None]


def test_a_line_cut_by_a_kill_is_written_again(server: PictureServer, shop: Path) -> None:
    run(server, shop)
    fetches = shop / "image-fetches.jsonl"
    whole = fetches.read_bytes()
    assert len(whole.splitlines()) == 2
    fetches.write_bytes(whole + b'{"url": "http://im')
    (shop / "images/.half.jpg.part").write_bytes(b"half")
    run(server, shop)
    assert fetches.read_bytes() == whole
    assert not (shop / "images/.half.jpg.part").exists()
    fetches.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(DatasetError, match=r"image-fetches\.jsonl: line 1 is not what a fetch writes"):
        run(server, shop)


KILLED = """
import os, signal, socket, sys
from pathlib import Path
from tests.support.picture_server import Names, loopback_too, trusting
from training.imports.fetching.image_fetches import fetch_images
from training.imports.fetching.picture_fetcher import FetchLimits, PictureFetcher
limits = FetchLimits(ports=frozenset({int(sys.argv[2])}))
make = lambda: PictureFetcher(limits, rule=loopback_too, resolver=Names(), tls=trusting())
def stop(done, total):
    if done == 3:
        os.kill(os.getpid(), int(sys.argv[3]))
fetch_images(Path(sys.argv[1]), make, parallel=1, progress=stop)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_job_resumes(server: PictureServer, tmp_path: Path, number: int) -> None:
    urls = [f"http://img.test:{server.port}/{n}.jpg" for n in range(8)]
    pl.DataFrame({"item_id": [str(n) for n in range(8)], "image_url": urls}).write_parquet(tmp_path / "items.parquet")
    for n in range(8):
        server.answers[f"/{n}.jpg"] = answer(picture(side=n + 1))
    args = [sys.executable, "-c", KILLED, str(tmp_path), str(server.port), str(int(number))]
    stopped = subprocess.run(args, check=False, capture_output=True, text=True, env=without_coverage())
    assert stopped.returncode in (-number, 130), stopped.stderr
    asked = len(server.asked)
    done = [json.loads(line)["file"] for line in (tmp_path / "image-fetches.jsonl").read_text().splitlines()]
    assert 3 <= len(done) <= asked
    if number == signal.SIGINT:
        names = pl.read_parquet(tmp_path / "items.parquet")["image"].drop_nulls().to_list()
        assert names == done, "what was fetched is named even so"
    server.asked.clear()
    summary = run(server, tmp_path)
    assert summary.kept + summary.fetched + (number == signal.SIGINT) * len(done) == 8
    assert len(server.asked) == summary.fetched <= 8 - len(done)
    assert pl.read_parquet(tmp_path / "items.parquet")["image"].null_count() == 0
    assert [path.name for path in (tmp_path / "images").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["directory outside", "nothing", "file"])
def test_nothing_is_fetched_into_a_place_that_is_not_read(server: PictureServer, shop: Path, kind: str) -> None:
    outside = shop.parent / f"{shop.name}-outside"
    if kind == "directory outside":
        outside.mkdir()
    if kind == "file":
        (shop / "images").write_text("")
    else:
        (shop / "images").symlink_to(outside)
    with pytest.raises(DatasetError, match="images: must be a directory in the data set, as no other is read"):
        run(server, shop)
    assert not server.asked
    assert not outside.exists() or not list(outside.iterdir())


def test_a_link_to_another_directory_of_the_data_set_is_followed(server: PictureServer, shop: Path) -> None:
    (shop / "large").mkdir()
    (shop / "images").symlink_to("large")
    assert run(server, shop).fetched == 1
    assert images(shop)[:2] == [name_of(server, "/0.jpg")] * 2


def test_one_job_at_a_time(server: PictureServer, shop: Path) -> None:
    with run_lock(shop), pytest.raises(RunBusy):
        run(server, shop)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", "item_id,image\na,\n", "has no column 'image_url'"),
        ("items.csv", 'item_id,image_url\n"a,\nb,"\n"', "line 2 has 1 field, the header has 2"),
        ("items.csv", "item_id,image_url,title\na,,A\nb,\n", "line 3 has 2 fields, the header has 3"),
        ("items.csv", "item_id,image_url,n,n\na,,1,2\n", "column 'n' appears more than once"),
        ("items.csv", "item_id,image_url,Image\na,,\n", "column 'Image' looks like 'image'"),
        ("items.jsonl", '{"item_id": "a"}\n', "only items.csv and items.parquet are filled in"),
    ],
)
def test_items_that_cannot_be_filled_in(
    server: PictureServer, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        run(server, tmp_path)


def test_a_folder_of_files_is_refused_before_anything_is_fetched(server: PictureServer, tmp_path: Path) -> None:
    (tmp_path / "items.parquet").mkdir()
    items = pl.DataFrame({"item_id": ["a"], "image_url": [f"http://img.test:{server.port}/0.jpg"]})
    items.write_parquet(tmp_path / "items.parquet" / "part-0.parquet")
    with pytest.raises(DatasetError, match="write the items as one such file"):
        run(server, tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_brackets_in_the_path_are_no_pattern(server: PictureServer, tmp_path: Path, suffix: str) -> None:
    shop = tmp_path / "shop[1]*"
    shop.mkdir()
    items = pl.DataFrame({"item_id": ["a"], "image_url": [f"http://img.test:{server.port}/0.jpg"]})
    server.answers["/0.jpg"] = answer(picture())
    if suffix == "csv":
        items.write_csv(shop / "items.csv")
    else:
        items.write_parquet(shop / "items.parquet")
    assert run(server, shop).named == 1


def test_an_export_that_replaces_the_items_meanwhile_is_kept(server: PictureServer, shop: Path) -> None:
    items = shop / "items.csv"
    renewed = items.read_text().replace("007", "new") + "i5,five,,,new\n"

    def export(_done: int, _all: int) -> None:
        items.write_text(renewed)

    run(server, shop, progress=export)
    after = pl.read_csv(items, infer_schema=False)
    assert after["item_id"].to_list() == ["i0", "i1", "i2", "i3", "i4", "i5"]
    assert after["code"].unique().to_list() == ["new"]
    assert images(shop)[0] == name_of(server, "/0.jpg")


def test_link_permissions_and_nameless_columns_stay(server: PictureServer, tmp_path: Path) -> None:
    shop, export = tmp_path / "shop", tmp_path / "export.csv"
    shop.mkdir()
    export.write_text(f'item_id,,image_url,\na,1,http://img.test:{server.port}/0.jpg,2\nb,3,,"4, 5"\n')
    export.chmod(0o640)
    (shop / "items.csv").symlink_to(export)
    server.answers["/0.jpg"] = answer(picture())
    run(server, shop)
    name = name_of(server, "/0.jpg")
    address = f"http://img.test:{server.port}/0.jpg"
    assert export.read_text() == f'item_id,"",image_url,"",image\na,1,{address},2,{name}\nb,3,,"4, 5",\n'
    assert (shop / "items.csv").is_symlink()
    assert export.stat().st_mode & 0o777 == 0o640


def test_the_command_reaches_no_address_of_this_machine(server: PictureServer, tmp_path: Path) -> None:
    """No option and no variable of the environment lets it."""
    urls = [f"http://{host}:{server.port}/0.jpg" for host in ("127.0.0.1", "127.1", "[::ffff:7f00:1]", "0x7f.1")]
    pl.DataFrame({"item_id": list("abcd"), "image_url": urls}).write_parquet(tmp_path / "items.parquet")
    server.answers["/0.jpg"] = answer(picture())
    ran = CliRunner().invoke(
        app,
        ["data", "fetch-images", str(tmp_path), "--port", str(server.port)],
        env={"no_proxy": "*", "COLUMNS": "300"},
    )
    assert ran.exit_code == 1, ran.output
    assert "127.0.0.1 has the address 127.0.0.1, which is loopback: only public addresses are fetched" in ran.output
    assert server.connections == 0
    again = CliRunner().invoke(app, ["data", "fetch-images", str(tmp_path), "--port", str(server.port)])
    assert again.exit_code == 0
    assert "4 failed before, not retried" in again.output


@pytest.mark.slow
def test_a_disk_that_is_full_ends_in_one_line(server: PictureServer, shop: Path) -> None:
    code = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n" + KILLED
    args = [sys.executable, "-c", code, str(shop), str(server.port), str(TLS.parent), "0"]
    ran = subprocess.run(args, check=False, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert ran.stderr.splitlines()[-1].startswith("training.errors.DatasetError: ")
    assert "cannot be written (File too large" in ran.stderr.splitlines()[-1]
    assert run(server, shop).fetched == 1
