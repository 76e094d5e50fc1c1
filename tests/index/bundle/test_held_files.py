"""HeldFiles: a write to a mapped file is noticed, a shorter file above all."""

import os

import pytest

from index.bundle.held_files import HeldFiles
from index.errors import BundleInvalid


def test_held_files_tell_shorter_from_written_and_follow_a_file_that_was_moved(tmp_path):
    path, moved = tmp_path / "file", tmp_path / "moved"
    path.write_bytes(b"12345")
    files = HeldFiles([path])
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
        HeldFiles([tmp_path / "none"])


def test_the_descriptors_are_closed_with_their_owner(tmp_path):
    path = tmp_path / "file"
    path.touch()
    files = HeldFiles([path])
    (descriptor,) = files._files.values()
    os.fstat(descriptor)
    del files
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
