"""An import directory is complete or absent and never replaces other content."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from tests.support.environments import without_coverage
from training.errors import DatasetError, RunBusy
from training.imports.format_names import FormatName
from training.imports.import_directory import new_directory
from training.imports.run_import import run_import
from training.runs.lock import run_lock

FILES = {
    "movies.dat": "1::A [b] (1995)::Comedy\n2::B (1996)::Drama\n",
    "ratings.dat": "1::1::5::978300000\n1::2::5::978300001\n1::1::5::978300002\n1::2::5::978300002\n"
    "9::7::1::978300003\n",
}


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def run(write_source: Callable[..., Path], directory: Path, *, force: bool = False) -> None:
    run_import(FormatName.MOVIELENS, write_source(FILES), directory, force=force)


def test_nothing_else_is_left_beside_it(write_source: Callable[..., Path], tmp_path: Path) -> None:
    run(write_source, tmp_path / "deep/er/shop")
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["shop"]
    assert sorted(content(tmp_path / "deep/er/shop")) == ["import.json", "interactions.parquet", "items.parquet"]
    record = json.loads((tmp_path / "deep/er/shop/import.json").read_text())
    assert (record["format"], record["items"], record["interactions"]) == ("movielens", 2, 4)
    assert record["rows_left_out"] == [
        {"file": "ratings.dat", "reason": "the item is not in the catalogue", "count": 1, "lines": [5]}
    ]


def test_a_directory_with_anything_else_is_left_alone(write_source: Callable[..., Path], tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(DatasetError, match=r"shop: holds 'thesis\.txt' and no import\.json, so no import made it"):
            run(write_source, shop, force=force)
    assert content(shop) == {"thesis.txt": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "source"]


def test_an_earlier_import_is_replaced_only_if_asked(write_source: Callable[..., Path], tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()  # empty is as good as not there
    run(write_source, shop)
    before = content(shop)
    with pytest.raises(DatasetError, match="holds an earlier import; --force replaces it"):
        run(write_source, shop)
    (shop / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds 'notes\.txt', which no import made; move it away"):
        run(write_source, shop, force=True)
    (shop / "notes.txt").unlink()
    (shop / "image-fetches.jsonl").write_text("{}\n")
    (shop / "images").mkdir()
    (shop / "images/fetched.jpg").write_bytes(b"picture")
    run(write_source, shop, force=True)
    assert content(shop) == before | {"image-fetches.jsonl": b"{}\n", "images/fetched.jpg": b"picture"}


@pytest.mark.parametrize("linked", [False, True], ids=["file", "link"])
def test_the_rules_of_events_are_kept(write_source: Callable[..., Path], tmp_path: Path, linked: bool) -> None:
    shop, rules = tmp_path / "shop", b'weight_by = "rating"\n'
    run(write_source, shop)
    (tmp_path / "rules.toml").write_bytes(rules)
    if linked:
        (shop / "events.toml").symlink_to("../rules.toml")
    else:
        (shop / "events.toml").write_bytes(rules)
        (shop / "events.toml").chmod(0o600)
    run(write_source, shop, force=True)
    assert (shop / "events.toml").read_bytes() == rules
    assert (shop / "events.toml").is_symlink() == linked
    assert linked or (shop / "events.toml").stat().st_mode & 0o777 == 0o600


def test_a_file_of_rules_alone_makes_no_import(write_source: Callable[..., Path], tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "events.toml").write_text('weight_by = "type"\n')
    with pytest.raises(DatasetError, match=r"holds 'events\.toml' and no import\.json"):
        run(write_source, shop, force=True)


def test_fetched_pictures_are_copied_where_no_link_can_be_made(
    write_source: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = tmp_path / "shop"
    run(write_source, shop)
    (shop / "image-fetches.jsonl").write_text("{}\n")
    (shop / "images").mkdir()
    (shop / "images/fetched.jpg").write_bytes(b"picture")

    def no_link(*_: object) -> None:
        raise PermissionError("links are not allowed here")

    monkeypatch.setattr(os, "link", no_link)
    run(write_source, shop, force=True)
    assert content(shop)["images/fetched.jpg"] == b"picture"


def test_the_source_is_never_inside(write_source: Callable[..., Path], tmp_path: Path) -> None:
    source = write_source(FILES)
    for directory in (source, tmp_path):
        with pytest.raises(DatasetError, match=r"the source .* lies in it; choose another directory"):
            run_import(FormatName.MOVIELENS, source, directory, force=True)
    run_import(FormatName.MOVIELENS, source, source / "shop")
    assert (source / "shop/items.parquet").is_file()


def test_a_link_or_file_in_its_place(write_source: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "link"):
        with pytest.raises(DatasetError, match="must be a directory or a new path"):
            run(write_source, tmp_path / name)
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("name", ["movielens", "hm", "mind", "amazon-2023", "postgres"])
def test_one_file_of_several_is_not_enough(write_source: Callable[..., Path], tmp_path: Path, name: str) -> None:
    source = write_source(FILES) / "movies.dat"
    with pytest.raises(DatasetError, match=rf"movies\.dat: {name} has several files; give the directory that holds"):
        run_import(FormatName(name), source, tmp_path / "shop")


def test_the_current_directory_is_not_replaced(
    write_source: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(FILES)
    (tmp_path / "shop/inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shop/inner")
    for place in (Path(), Path(".."), tmp_path / "shop"):
        with pytest.raises(DatasetError, match="the current directory lies in it and would be replaced; name a new"):
            run_import(FormatName.MOVIELENS, source, place)
    with pytest.raises(DatasetError, match=r"the source .* lies in it"):
        run_import(FormatName.MOVIELENS, source, Path("/"))
    run_import(FormatName.MOVIELENS, source, Path("new"))
    assert (tmp_path / "shop/inner/new/items.parquet").is_file()


def test_an_error_leaves_nothing(write_source: Callable[..., Path], tmp_path: Path) -> None:
    source = write_source(FILES | {"ratings.dat": FILES["ratings.dat"] + "broken\n"})
    with pytest.raises(DatasetError, match="line 6 has 1 fields"):
        run_import(FormatName.MOVIELENS, source, tmp_path / "shop")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_left_is_an_error(write_source: Callable[..., Path], tmp_path: Path) -> None:
    source = write_source(FILES | {"ratings.dat": "1::7::5::978300000\n"})
    with pytest.raises(
        DatasetError,
        match=r"no interaction is left \(ratings\.dat: 1 rows: the item is not in the catalogue\); check that",
    ):
        run_import(FormatName.MOVIELENS, source, tmp_path / "shop")


def test_two_at_once(write_source: Callable[..., Path], tmp_path: Path) -> None:
    source = write_source(FILES)
    with new_directory(tmp_path / "shop", source, force=False) as aside:
        (aside / "import.json").write_text("{}")
        with pytest.raises(RunBusy, match="another import into this directory is running"):
            run(write_source, tmp_path / "shop")
    assert content(tmp_path / "shop") == {"import.json": b"{}"}


def test_not_while_pictures_are_fetched_for_it(write_source: Callable[..., Path], tmp_path: Path) -> None:
    run(write_source, tmp_path / "shop")
    before = content(tmp_path / "shop")
    with run_lock(tmp_path / "shop"), pytest.raises(RunBusy):
        run(write_source, tmp_path / "shop", force=True)
    assert content(tmp_path / "shop") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "source"]


KILLED = """
import os, signal, sys
from pathlib import Path
from training.imports import import_directory
from training.imports.format_names import FormatName
from training.imports.run_import import run_import

name, source, shop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if name == "reading":
    progress = lambda step, share: step == "ratings.dat" and kill()
else:
    progress = lambda *_: None
    original = Path.rename
    def rename(self, target):
        if name == "before the renames":
            kill()
        made = original(self, target)
        if name == "between the renames" and target.name.endswith(".replaced"):
            kill()
        if name == "after the renames" and target.name == "shop":
            kill()
        return made
    Path.rename = rename
run_import(FormatName.MOVIELENS, source, shop, force=True, progress=progress)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "reading",
        pytest.param("before the renames", marks=pytest.mark.slow),
        "between the renames",
        pytest.param("after the renames", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_there_is_the_old_or_the_new_one(
    write_source: Callable[..., Path], tmp_path: Path, moment: str
) -> None:
    shop = tmp_path / "shop"
    run(write_source, shop)
    before = content(shop)
    source = write_source(FILES | {"movies.dat": FILES["movies.dat"] + "3::C (1997)::Drama\n"})
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, str(source), str(shop)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not shop.exists() or content(shop) == before or moment == "after the renames"
    if moment == "between the renames":
        assert content(tmp_path / ".shop.replaced") == before, "the earlier import stands aside whole"
        with pytest.raises(DatasetError, match="holds an earlier import"):
            run_import(FormatName.MOVIELENS, source, shop)
        assert content(shop) == before, "and is put back"
    run_import(FormatName.MOVIELENS, source, shop, force=True)
    assert json.loads((shop / "import.json").read_text())["items"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "source"]


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
sys.argv = ["vlm2rec", "data", "import", *sys.argv[1:]]
from cli.main import main
main()
"""


@pytest.mark.parametrize(("name", "files"), [
    ("movielens", FILES | {"movies.dat": "".join(f"{n}::{os.urandom(99).hex()}::Comedy\n" for n in range(2000))}),
    ("postgres", {
        "items.csv": "item_id,title\n" + "".join(f"{n},{'x' * 99}\n" for n in range(2000)),
        "interactions.csv": "user_id,item_id,timestamp\n1,1,5\n",
    }),
])  # fmt: skip
def test_where_nothing_more_can_be_written_one_line_says_so(
    write_source: Callable[..., Path], tmp_path: Path, name: str, files: dict[str, str]
) -> None:
    shop = tmp_path / "shop"
    ran = subprocess.run(
        [sys.executable, "-c", FULL, name, str(write_source(files)), str(shop)],
        capture_output=True, text=True, check=False, env=without_coverage(),
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "cannot be written (File too large" in ran.stderr
    assert "GiB are free); make room or choose another directory" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_reports_imported_and_skipped_rows(write_source: Callable[..., Path], tmp_path: Path) -> None:
    source = write_source(FILES | {"ratings.dat": FILES["ratings.dat"] + "9::8::1::978300003\n" * 4})
    ran = CliRunner().invoke(app, ["data", "import", "movielens", str(source), str(tmp_path / "shop")])
    assert ran.exit_code == 0, ran.output
    shown = ran.output
    assert "shop: 2 items, 4 interactions" in shown
    assert "rows of ratings.dat: the item is not in the catalogue (lines 5, 6, 7 and 2 more)" in shown
    assert f"next: vlm2rec data check {tmp_path / 'shop'}" in shown
    again = CliRunner().invoke(app, ["data", "check", str(tmp_path / "shop")])
    assert again.exit_code == 0, again.output
