"""Reads the API keys of one kind from the settings and from a file, again when the file changes."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple

from service.access.scopes import SCOPES, KeyScope
from service.errors import SettingsError
from service.settings.secret_files import KeyLine, Signature, key_line, read_keys, signature

Scopes = frozenset[KeyScope] | None
"""What a key opens; None: every route of its kind."""

Names = dict[bytes, str]
"""Names of keys by their digests; of keys that have one."""

_CHECK_S = 1.0
_ONE_KIND: Final = "a key must be of one kind only: an API key, an admin key or a metrics key"


class Change(NamedTuple):
    """What a changed file has.

    Attributes:
        signature: of the file, taken before it was read.
        scopes: of each key by its digest.
        names: of the keys.
    """

    signature: Signature | None
    scopes: dict[bytes, Scopes]
    names: Names


class KeyFile:
    """Digests of the keys of one kind, with their scopes and names.

    The file is checked at most once a second, when they are read, with those of all kinds that are kept apart. If it
    cannot be read any more, or has no valid key, the keys stay: a mistake in it must neither open the service nor lock
    all clients out. A pipe is read once, at the start.

    Args:
        setting: name of the setting that names the file, for messages.
        given: keys from the settings, each with its name where it has one.
        file: more keys, one a line, each with its scopes where it has not all, and its name where it has one.
        scoped: whether keys of this kind may have scopes.
        on_error: called with the reason why a changed file is ignored; it never holds a key.
        clock: seconds, monotonic.

    Attributes:
        setting: as given.
        configured: whether there are keys, or a file for them.
        apart: all kinds that have no key in common with this one, itself included, see :func:`keep_apart`.
        held: the scopes of each key by its digest, as of the last check.
        names: of the keys, as of the last check.

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
        self.setting = setting
        lines = [key_line(text) for text in given]
        self._given: dict[bytes, Scopes] = dict.fromkeys(digest_of(line.key) for line in lines)
        self._given_names: Names = {digest_of(line.key): line.name for line in lines if line.name is not None}
        self._scoped = scoped
        self._file = file
        self._on_error = on_error
        self._clock = clock
        self.apart: tuple[KeyFile, ...] = (self,)
        self._reported: tuple[Signature | None, str] | None = None
        self._signature = None if file is None else signature(file)
        self.held, self.names = (self._given, self._given_names) if file is None else self._read(file)
        self._next_check = clock() + _CHECK_S
        self.configured = bool(self._given) or file is not None

    def scopes(self) -> Mapping[bytes, Scopes]:
        """The scopes of each key by its digest, as they are now."""
        if self._file is not None and self._clock() >= self._next_check:
            _take_changes(self.apart)
        return self.held

    def changed(self) -> Change | None:
        """Read the file; None: nothing is new, or it cannot be read, which is reported.

        A file that was not taken is read again at every check: it may be taken once another file has changed.
        """
        self._next_check = self._clock() + _CHECK_S
        if self._file is None or (found := signature(self._file)) == self._signature:
            return None
        try:
            return Change(found, *self._read(self._file, again=True))
        except SettingsError as error:
            self.report(found, str(error))
            return None

    def take(self, change: Change) -> None:
        """Let what the file has count from now on."""
        self._signature, self.held, self.names, self._reported = *change, None

    def report(self, found: Signature | None, reason: str) -> None:
        """Report once why a file of this signature does not count."""
        if (found, reason) != self._reported:
            self._reported = (found, reason)
            self._on_error(f"{reason}; the keys stay as they were")

    def _read(self, file: Path, *, again: bool = False) -> tuple[dict[bytes, Scopes], Names]:
        found, names = self._given.copy(), self._given_names.copy()
        for line in read_keys(file, self.setting, again=again):
            digest, scopes = digest_of(line.key), self._scopes_in(line, file)
            if found.setdefault(digest, scopes) != scopes:
                raise SettingsError(
                    f"{self.setting}: a key must have one set of scopes; that on line {line.number} of {file} is "
                    "given elsewhere with another one"
                )
            if line.name is not None and names.setdefault(digest, line.name) != line.name:
                raise SettingsError(
                    f"{self.setting}: a key must have one name; that on line {line.number} of {file} is given "
                    "elsewhere with another one"
                )
        return found, names

    def _scopes_in(self, line: KeyLine, file: Path) -> Scopes:
        """The scopes of a line, whose names are not quoted: the line may be a key that looks like this."""
        if line.scopes is None:
            return None
        if not self._scoped:
            raise SettingsError(f"{self.setting}: only API keys may have scopes; line {line.number} of {file} has some")
        found = frozenset(scope for scope in SCOPES if scope in line.scopes)
        if len(found) < len(set(line.scopes)):
            raise SettingsError(
                f"{self.setting}: scopes must be some of {', '.join(SCOPES)}, with commas and no spaces between them; "
                f"line {line.number} of {file} has another one"
            )
        return found


def keep_apart(*kinds: KeyFile) -> None:
    """Refuse keys of two kinds, now and in every file read later; files that change together are taken together.

    Raises:
        SettingsError: two kinds have a key in common now.
    """
    for kind in kinds:
        kind.apart = kinds
    for one, other in combinations(kinds, 2):
        if not _are_apart([one.held, other.held]):
            raise SettingsError(f"{one.setting}, {other.setting}: {_ONE_KIND}")


def _take_changes(kinds: Sequence[KeyFile]) -> None:
    """Take the largest set of changed files with which no key is of two kinds, and report the others.

    All are read at once: a key that moves from one file to another is of two kinds where only one of them is new.
    """
    changes = {kind: change for kind in kinds if (change := kind.changed()) is not None}
    for count in range(len(changes), -1, -1):
        for taken in combinations(changes, count):
            if _are_apart([changes[kind].scopes if kind in taken else kind.held for kind in kinds]):
                for kind, change in changes.items():
                    if kind in taken:
                        kind.take(change)
                    else:
                        kind.report(change.signature, f"{kind.setting}: {_ONE_KIND}")
                return


def _are_apart(scopes: Sequence[Mapping[bytes, Scopes]]) -> bool:
    return all(one.keys().isdisjoint(other) for one, other in combinations(scopes, 2))


def digest_of(key: str) -> bytes:
    """SHA-256 of a key: digests have one length, so that comparing takes constant time."""
    return hashlib.sha256(key.encode()).digest()
