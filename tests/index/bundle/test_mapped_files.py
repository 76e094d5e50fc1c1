"""A write to a mapped file is detected; files are read ahead to their end, unless they are too large."""

import os
import threading
from pathlib import Path

import pytest

from index.bundle import mapped_files
from index.bundle.mapped_files import MappedFiles, read_ahead
from index.errors import BundleInvalid


def test_a_shorter_file_and_a_write_are_detected_also_after_a_rename(tmp_path):
    path, moved = tmp_path / "file", tmp_path / "moved"
    path.write_bytes(b"12345")
    files = MappedFiles([path])
    assert files.written() is False
    path.rename(moved)
    path.write_bytes(b"1")  # another file under the old name
    assert files.written() is False
    with moved.open("r+b") as file:
        file.write(b"123456")
    assert files.written() is True
    assert files.written() is False
    os.truncate(moved, 4)
    with pytest.raises(BundleInvalid, match=r"has 4 bytes, but 5 are mapped.*copy a file aside and rename it"):
        files.check_sizes()
    with pytest.raises(BundleInvalid, match="none: cannot be opened"):
        MappedFiles([tmp_path / "none"])


def test_the_descriptors_are_closed_with_their_owner(tmp_path):
    path = tmp_path / "file"
    path.touch()
    files = MappedFiles([path])
    (descriptor,) = files._descriptors.values()
    os.fstat(descriptor)
    del files
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def write_in_background(fifo: Path, content: bytes) -> threading.Thread:
    """Start a thread that ends when all of its content, which is more than a pipe holds, was read."""
    writer = threading.Thread(target=fifo.write_bytes, args=(content,), daemon=True)
    writer.start()
    return writer


def test_every_file_is_read_to_its_end(tmp_path: Path) -> None:
    pipes = [tmp_path / "one", tmp_path / "two"]
    for pipe in pipes:
        os.mkfifo(pipe)
    writers = [write_in_background(pipe, b"x" * (9 << 20)) for pipe in pipes]
    read_ahead(pipes)
    for writer in writers:
        writer.join(20)
        assert not writer.is_alive()


def test_files_larger_than_the_memory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, pipe = tmp_path / "large", tmp_path / "pipe"
    large.write_bytes(b"x" * 1001)
    os.mkfifo(pipe)
    monkeypatch.setattr(mapped_files, "_memory_bytes", lambda: 2000)
    writer = write_in_background(pipe, b"x")
    mapped_files._read((large, pipe))
    assert writer.is_alive()
    assert pipe.read_bytes() == b"x"  # which also ends the writer
    writer.join(20)


def test_a_missing_file_is_skipped(tmp_path: Path) -> None:
    mapped_files._read((tmp_path / "missing",))
