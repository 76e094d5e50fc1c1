"""A pipe of keys is read once, and nothing waits for its writer."""

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import pytest

from service.access.key_file import KeyFile, Scopes, digest_of

OLD, NEW = "old-key-0123456789", "new-key-0123456789"


class Source:
    """Keys of a path, a clock that a test sets, and the reported errors."""

    def __init__(self, path: Path) -> None:
        self.now, self.errors = 0.0, list[str]()
        self._keys = KeyFile(
            "api_keys_file", (), path, scoped=True, on_error=self.errors.append, clock=lambda: self.now
        )

    def scopes_later(self) -> Mapping[bytes, Scopes] | None:
        """The scopes after a check, unless it takes seconds, in which the event loop would answer nothing."""
        self.now += 1.1
        found: list[Mapping[bytes, Scopes]] = []
        thread = Thread(target=lambda: found.append(self._keys.scopes()), daemon=True)
        thread.start()
        thread.join(5)
        return found[0] if found else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_pipe_is_read_once(path: Path) -> None:
    """As a password manager mounts a file, and as `<(command)` of a shell is one; opening it waits for a writer."""
    os.mkfifo(path)
    writer = Thread(target=path.write_text, args=(OLD,))
    writer.start()
    source = Source(path)
    writer.join()
    for _ in range(2):
        os.utime(path)
        assert source.scopes_later() == {digest_of(OLD): None}
    assert source.errors == []
    aside = path.with_suffix(".new")
    aside.write_text(NEW)
    aside.replace(path)
    assert source.scopes_later() == {digest_of(NEW): None}


def test_a_pipe_in_place_of_the_file_changes_nothing(path: Path) -> None:
    path.write_text(OLD)
    source = Source(path)
    path.unlink()
    os.mkfifo(path)
    for _ in range(2):
        assert source.scopes_later() == {digest_of(OLD): None}
    (error,) = source.errors
    assert error == f"api_keys_file must name a regular file to be read again, got {path}; the keys stay as they were"
