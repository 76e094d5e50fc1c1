"""Reads the API keys of one kind from the settings and from a file, again when the file changes."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic

from service.errors import SettingsError
from service.settings.secret_files import read_keys, signature

_CHECK_S = 1.0


class KeyFile:
    """Digests of the keys of one kind.

    The file is checked at most once a second, when the digests are read. If it cannot be read any more, or has no valid
    key, the keys stay: a mistake in it must neither open the service nor lock all clients out.

    Args:
        setting: name of the setting that names the file, for messages.
        given: keys from the settings.
        file: more keys, one a line.
        on_error: called with the reason why a changed file is ignored; it never holds a key.
        clock: seconds, monotonic.

    Attributes:
        configured: whether there are keys, or a file for them.

    Raises:
        SettingsError: the file cannot be read, or breaks a rule.
    """

    def __init__(
        self,
        setting: str,
        given: Iterable[str] = (),
        file: Path | None = None,
        *,
        on_error: Callable[[str], None] = lambda _reason: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._setting = setting
        self._given = tuple(digest_of(key) for key in given)
        self._file = file
        self._on_error = on_error
        self._clock = clock
        self._apart_from: tuple[KeyFile, ...] = ()
        self._signature = None if file is None else signature(file)
        self._digests = self._given if file is None else self._read(file)
        self._next_check = clock() + _CHECK_S
        self.configured = bool(self._given) or file is not None

    def keep_apart_from(self, *others: "KeyFile") -> None:
        """Refuse keys that another kind has too, now and in every file read later.

        Raises:
            SettingsError: two have a key in common now.
        """
        self._apart_from = others
        self._check_apart(self._digests)

    def digests(self) -> tuple[bytes, ...]:
        """The digests of all keys, as they are now."""
        if self._file is not None and (now := self._clock()) >= self._next_check:
            self._next_check = now + _CHECK_S
            self._check(self._file)
        return self._digests

    def _check(self, file: Path) -> None:
        found = signature(file)
        if found == self._signature:
            return
        self._signature = found
        try:
            self._digests = self._check_apart(self._read(file))
        except SettingsError as error:
            self._on_error(f"{error}; the keys stay as they were")

    def _read(self, file: Path) -> tuple[bytes, ...]:
        return (*self._given, *(digest_of(key) for key in read_keys(file, self._setting)))

    def _check_apart(self, digests: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if any(not set(digests).isdisjoint(other.digests()) for other in self._apart_from):
            raise SettingsError(
                f"{self._setting}: a key must be of one kind only: an API key, an admin key or a metrics key"
            )
        return digests


def digest_of(key: str) -> bytes:
    """SHA-256 of a key: digests have one length, so that comparing takes constant time."""
    return hashlib.sha256(key.encode()).digest()
