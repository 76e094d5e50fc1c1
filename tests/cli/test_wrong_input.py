"""Wrong input on the command line: one line that names the fault and the remedy, never a traceback."""

import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.main import main


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of three items; also the working directory, with a file and an empty directory."""
    (tmp_path / "items.csv").write_text("item_id,title\na,one thing\nb,another thing\nc,a third\n")
    rows = [f"u{user},{item},{100 + at}" for user in range(4) for at, item in enumerate("abc")]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that ends with exit code 2, without line ends and frames."""
    monkeypatch.setattr(sys, "argv", ["vlm2rec", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert ended.value.code == 2, printed
    assert "Traceback" not in printed
    return " ".join(re.sub("[│╭╰─╮╯]", " ", printed).split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit . --run items.csv", "items.csv: cannot be written: File exists"),
        ("train . --run items.csv", "items.csv: cannot be written: File exists"),
        ("embed . --no-vlm --run items.csv", "items.csv: cannot be written: File exists"),
        ("demo items.csv --no-vlm --exit-after-check", "items.csv: cannot be written: File exists"),
        ("fit . --run /proc/new", "/proc/new: cannot be written: No such file or directory"),
        ("fit . --run /sys/new", "/sys/new: cannot be written: "),
        ("train . --run /proc/new", "/proc/new: cannot be written: No such file or directory"),
        ("train . --run=", "--run: must not be empty; give a value, a variable of the shell may be unset"),
        (
            "train . --run new --steps 100000000000000000000",
            "train.steps: input should be less than or equal to 10000000",
        ),
        ("fit . --run new --threads 99999999", "'--threads': Input should be less than or equal to 1024"),
        ("index build --run empty --threads 0", "'--threads': Input should be greater than or equal to 1"),
        ("events export --to items.csv --redis redis://127.0.0.1:1", "items.csv: cannot be written: File exists"),
        ("events compact items.csv", "items.csv: there is no export"),
        ("backup verify items.csv", "items.csv: is no finished backup"),
        ("backup create --to new --no-redis --no-registry", "leave nothing; give at most one of them"),
        ("backup restore --from empty --no-redis --no-registry", "leave nothing; give at most one of them"),
        ("index list --registry items.csv", "items.csv: a registry is a directory, not a file; name another one"),
        (
            "index push --registry empty --milvus http://127.0.0.1:1 --wait 0",
            "'--wait': Input should be greater than or equal to 1",
        ),
        ("export-towers --run empty --out new", "no trained model here; run `vlm2rec train` first"),
        ("index build --run empty", "empty: holds no fitted encoder; run `vlm2rec fit`"),
        ("index build --run empty --memory-mb -5", "'--memory-mb': Input should be greater than or equal to 1"),
        ("data make-demo new --items 8", "items must lie in 12 … 1,000,000 (6 of them have no text and 6 no picture)"),
        ("data make-demo new --items 99999999999999999999", "items must lie in 12 … 1,000,000"),
        ("data make-demo new --users 99999999999999999999", "users must lie in 1 … 10,000,000"),
    ],
)
def test_is_one_line(
    shop: Path, words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(shop.rglob("*"))
    assert said in refusal(words, monkeypatch, capsys)
    assert sorted(shop.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", ".", "--run", ""], "an argument: must not be empty; give a value"),
        (["data", "check", ""], "an argument: must not be empty; give a value"),
        (["reindex", ".", "--run", "r", "--registry", ""], "an argument: must not be empty; give a value"),
        (
            ["fit", ".", "--run", os.fsdecode(b"\xff")],
            r"b'\xff': an argument must be UTF-8; give the path another name",
        ),
        (
            ["data", "check", ".", "--interactions", "n" * 300],
            "File name too long; check the path, or choose another one",
        ),
    ],
)
def test_a_word_that_is_no_path_is_one_line(
    shop: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(shop.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["vlm2rec", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert sorted(shop.rglob("*")) == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("cli.app.app", fail)
    monkeypatch.setattr(sys, "argv", ["vlm2rec"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.match("error: not enough memory: .+ Raise the limit", capsys.readouterr().err)


def test_an_error_that_names_no_cause_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("cli.app.app", fail)
    monkeypatch.setattr(sys, "argv", ["vlm2rec"])
    with pytest.raises(RuntimeError, match="a defect"):
        main()


@pytest.mark.parametrize("command", ["fit", "fit-encoder", "retrain"])
def test_the_help_names_the_section_of_the_configuration(command: str) -> None:
    printed = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output.split())
    assert "section [encoder])" in printed
