"""Files are read to their end in the background, unless they are too large; trouble is left to whoever opens them."""

import os
import threading
from pathlib import Path

import pytest

from index.items import read_ahead as module
from index.items.read_ahead import read_ahead


def read_to_the_end(fifo: Path, content: bytes) -> threading.Thread:
    """A thread that ends when somebody has read all that it writes, which is more than a pipe holds."""
    writer = threading.Thread(target=fifo.write_bytes, args=(content,), daemon=True)
    writer.start()
    return writer


def test_every_file_is_read_to_its_end(tmp_path: Path) -> None:
    pipes = [tmp_path / "one", tmp_path / "two"]
    for pipe in pipes:
        os.mkfifo(pipe)
    writers = [read_to_the_end(pipe, b"x" * (9 << 20)) for pipe in pipes]
    read_ahead(pipes)
    for writer in writers:
        writer.join(20)
        assert not writer.is_alive()


def test_what_the_memory_cannot_hold_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, pipe = tmp_path / "large", tmp_path / "pipe"
    large.write_bytes(b"x" * 1001)
    os.mkfifo(pipe)
    monkeypatch.setattr(module, "_memory_bytes", lambda: 2000)
    writer = read_to_the_end(pipe, b"x")
    module._read((large, pipe))
    assert writer.is_alive()
    assert pipe.read_bytes() == b"x"  # which also ends the writer
    writer.join(20)


def test_a_missing_file_is_no_trouble(tmp_path: Path) -> None:
    module._read((tmp_path / "missing",))
