"""Reads the API keys of one kind from the settings and from a file, again when the file changes."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic

from service.access.scopes import SCOPES, KeyScope
from service.errors import SettingsError
from service.settings.secret_files import KeyLine, read_keys, signature

Scopes = frozenset[KeyScope] | None
"""What a key opens; None: every route of its kind."""

_CHECK_S = 1.0


class KeyFile:
    """Digests of the keys of one kind, with their scopes.

    The file is checked at most once a second, when they are read. If it cannot be read any more, or has no valid
    key, the keys stay: a mistake in it must neither open the service nor lock all clients out.

    Args:
        setting: name of the setting that names the file, for messages.
        given: keys from the settings.
        file: more keys, one a line, each with its scopes where it has not all.
        scoped: whether keys of this kind may have scopes.
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
        scoped: bool = False,
        on_error: Callable[[str], None] = lambda _reason: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._setting = setting
        self._given: dict[bytes, Scopes] = dict.fromkeys(map(digest_of, given))
        self._scoped = scoped
        self._file = file
        self._on_error = on_error
        self._clock = clock
        self._apart_from: tuple[KeyFile, ...] = ()
        self._signature = None if file is None else signature(file)
        self._scopes = self._given if file is None else self._read(file)
        self._next_check = clock() + _CHECK_S
        self.configured = bool(self._given) or file is not None

    def keep_apart_from(self, *others: "KeyFile") -> None:
        """Refuse keys that another kind has too, now and in every file read later.

        Raises:
            SettingsError: two have a key in common now.
        """
        self._apart_from = others
        self._check_apart(self._scopes)

    def scopes(self) -> Mapping[bytes, Scopes]:
        """The scopes of each key by its digest, as they are now."""
        if self._file is not None and (now := self._clock()) >= self._next_check:
            self._next_check = now + _CHECK_S
            self._check(self._file)
        return self._scopes

    def _check(self, file: Path) -> None:
        found = signature(file)
        if found == self._signature:
            return
        self._signature = found
        try:
            self._scopes = self._check_apart(self._read(file))
        except SettingsError as error:
            self._on_error(f"{error}; the keys stay as they were")

    def _read(self, file: Path) -> dict[bytes, Scopes]:
        found = self._given.copy()
        for line in read_keys(file, self._setting):
            digest, scopes = digest_of(line.key), self._scopes_in(line, file)
            if found.setdefault(digest, scopes) != scopes:
                raise SettingsError(
                    f"{self._setting}: a key must have one set of scopes; that on line {line.number} of {file} is "
                    "given elsewhere with another one"
                )
        return found

    def _scopes_in(self, line: KeyLine, file: Path) -> Scopes:
        """The scopes of a line, whose names are not quoted: the line may be a key that looks like this."""
        if line.scopes is None:
            return None
        if not self._scoped:
            raise SettingsError(
                f"{self._setting}: only API keys may have scopes; line {line.number} of {file} has some"
            )
        found = frozenset(scope for scope in SCOPES if scope in line.scopes)
        if len(found) < len(set(line.scopes)):
            raise SettingsError(
                f"{self._setting}: scopes must be some of {', '.join(SCOPES)}, with commas and no spaces between them; "
                f"line {line.number} of {file} has another one"
            )
        return found

    def _check_apart(self, scopes: dict[bytes, Scopes]) -> dict[bytes, Scopes]:
        if any(not scopes.keys().isdisjoint(other.scopes()) for other in self._apart_from):
            raise SettingsError(
                f"{self._setting}: a key must be of one kind only: an API key, an admin key or a metrics key"
            )
        return scopes


def digest_of(key: str) -> bytes:
    """SHA-256 of a key: digests have one length, so that comparing takes constant time."""
    return hashlib.sha256(key.encode()).digest()
