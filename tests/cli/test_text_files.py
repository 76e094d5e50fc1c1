"""Files and outputs of the command line.

A file is replaced whole, but a device, a pipe or an open file is written as it is.
"""

import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app, run
from cli.offline.reindex import _check_files
from index.machine.disk import is_stream
from index.machine.text_files import replace_text
from training.errors import EvaluationError, ReindexError
from training.ranking.saved_ranks import save_ranks


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_pipe_gets_the_text_and_stays_a_pipe(pipe: Path) -> None:
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    replace_text(pipe, "all of it\n")
    reader.join()
    assert received == ["all of it\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(pipe.parent.iterdir()) == [pipe]


def test_the_standard_output_gets_the_text_whatever_it_is(tmp_path: Path) -> None:
    script = "from pathlib import Path; from index.machine.text_files import replace_text; "
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        command = [sys.executable, "-c", f"{script} replace_text(Path('{name}'), 'all of it\\n')"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.stdout == "all of it\n", (name, ran.stderr)
        with (tmp_path / "out").open("w") as out:
            subprocess.run(command, stdout=out, check=True)
        assert (tmp_path / "out").read_text() == "all of it\n"


def test_what_is_a_stream(pipe: Path) -> None:
    for path in (Path("/dev/null"), Path("/dev/stdout"), Path("/dev/fd/1"), pipe):
        assert is_stream(path), path
    (pipe.parent / "file").touch()
    (pipe.parent / "link").symlink_to("file")
    for name in (".", "file", "link", "absent", "absent/too"):
        assert not is_stream(pipe.parent / name), name


def test_other_files_are_not_written_to_a_stream(pipe: Path) -> None:
    with pytest.raises(EvaluationError, match="pipe: ranks are saved to a file; name one"):
        save_ranks(pipe, [])
    with pytest.raises(ReindexError, match="pipe: cannot be written; name a file"):
        _check_files(None, pipe)
    _check_files(pipe, pipe.parent / "metrics.prom")


def test_ranks_to_a_stream_are_refused_before_anything_is_read(pipe: Path) -> None:
    words = ["evaluate", str(pipe.parent / "no-data"), "--run", str(pipe.parent / "no-run"), "--save-ranks", str(pipe)]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, EvaluationError)
    assert "ranks are saved to a file" in str(result.exception)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "items \\xd7"), ("latin-1", "items ×"), ("utf-8", "items ×")]
)
def test_a_character_that_the_output_cannot_have_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    """As in a Latin-1 locale, or where `PYTHONIOENCODING` is set; an error would end a job."""
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding, write_through=True))
    monkeypatch.setattr("sys.argv", ["vlm2rec", "plan", "--items", "1M", "--users", "5M", "--rps", "2k"])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0
    assert shown in content.getvalue().decode(encoding)
