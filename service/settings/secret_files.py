"""Reads secrets from files, as Docker and Kubernetes provide them, and never shows them."""

import os
import re
from pathlib import Path
from stat import S_ISFIFO, S_ISREG
from typing import Final, NamedTuple

from service.errors import SettingsError

KEY_RULE = "every key must have 16 to 512 ASCII characters, no spaces, and must not be a name that lacks its key"
NAME_RULE: Final = "the name of a key must have 1 to 64 of the characters a-z, A-Z, 0-9, . _ - and @"
_MAX_BYTES = 65_536
_MOST_SHOWN: Final = 200
_KEY: Final = re.compile(r"[!-~]{16,512}")
# These can be guessed: scopes, a name, a label, or a variable before the place of the key.
_NO_KEY: Final = re.compile(r"(?i:(?:scope|name)s?=.*)|[A-Za-z][\w.-]*:|[A-Z][A-Z0-9]*(_[A-Z0-9]+)+=")
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_ATTRIBUTES: Final = re.compile(r"(\S+)((?:\s+(?:scopes|name)=\S*)+)")

Signature = tuple[int, int, int]


def is_key(text: str) -> bool:
    """Whether a text may be an API key."""
    return _KEY.fullmatch(text) is not None and _NO_KEY.fullmatch(text) is None


def is_key_name(text: str) -> bool:
    """Whether a text may be the name of a key."""
    return _NAME.fullmatch(text) is not None


def read_secret(path: Path, setting: str, *, again: bool = False) -> str:
    """The text of a file.

    Args:
        path: at most 64 KiB of UTF-8.
        setting: name of the setting that names the file, for the message.
        again: it was read before, and the caller cannot wait: a pipe is refused, as it waits for its writer.

    Raises:
        SettingsError: the file cannot be read; the message does not quote it.
    """
    try:
        with open(path, "rb", opener=_opened_at_once if again else None) as file:
            if again and not S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SettingsError(f"{setting} must name a regular file to be read again, got {_shown(path)}")
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            f"{setting} must name a file that can be read, got {_shown(path)} ({error.strerror})"
        ) from None
    if len(content) > _MAX_BYTES:
        raise SettingsError(f"{setting} must name a file of at most {_MAX_BYTES} bytes, got {_shown(path)}")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{setting} must name a file in UTF-8, got {_shown(path)}") from None


def is_pipe(path: Path) -> bool:
    """Whether a file is a pipe, which gives its text once, and only while there is a writer."""
    try:
        return S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def _opened_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _shown(path: Path) -> str:
    """A path in one line of a message."""
    text = str(path)[:_MOST_SHOWN]
    return text if text.isprintable() and text.strip() else ascii(text)


class KeyLine(NamedTuple):
    """A line of a file with keys.

    Attributes:
        number: of the line, counted from 1.
        key: the API key.
        scopes: names after ``scopes=``; None: the line has none.
        name: after ``name=``; None: the line has none.
    """

    number: int
    key: str
    scopes: tuple[str, ...] | None = None
    name: str | None = None


def read_keys(path: Path, setting: str, *, again: bool = False) -> tuple[KeyLine, ...]:
    """The API keys in a file, one per line; empty lines and lines that start with ``#`` are ignored.

    Args:
        path: the file.
        setting: as for :func:`read_secret`.
        again: as for :func:`read_secret`.

    Raises:
        SettingsError: the file cannot be read, has no key, or has a line whose key or name breaks a rule. The
            message has the number of the line and does not quote it.
    """
    lines = [
        (number, line.strip()) for number, line in enumerate(read_secret(path, setting, again=again).splitlines(), 1)
    ]
    keys = tuple(key_line(line, number) for number, line in lines if line and not line.startswith("#"))
    if not keys:
        raise SettingsError(f"{setting} must name a file with at least one key, got {path}, which has none")
    for line in keys:
        if not is_key(line.key):
            rule = f"{KEY_RULE}; a line is KEY, KEY scopes=NAMES, KEY name=NAME or with both, and # begins a comment"
            raise SettingsError(f"{setting}: {rule}; line {line.number} of {path} breaks this rule")
        if line.name is not None and not is_key_name(line.name):
            raise SettingsError(f"{setting}: {NAME_RULE}; line {line.number} of {path} breaks this rule")
    return keys


def key_line(line: str, number: int = 1) -> KeyLine:
    """A key with what is said of it; a line of another form is one key, which no rule allows.

    Args:
        line: ``KEY``, with ``scopes=NAMES`` and ``name=NAME`` after it in any order.
        number: of the line.
    """
    found = _ATTRIBUTES.fullmatch(line)
    if found is None:
        return KeyLine(number, line)
    pairs = [part.split("=", 1) for part in found[2].split()]
    said = dict(pairs)
    if len(said) < len(pairs):
        return KeyLine(number, line)
    return KeyLine(number, found[1], tuple(said["scopes"].split(",")) if "scopes" in said else None, said.get("name"))


def read_properties(path: Path, setting: str) -> dict[str, str]:
    """The lines ``name=value`` of a file; empty ones and those that start with ``#`` are ignored.

    Raises:
        SettingsError: the file cannot be read, or a line has another form; the message does not quote it.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, read_secret(path, setting).splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"{setting}: line {number} of {path} must be name=value")
        found[name.strip()] = value.strip()
    return found


def signature(path: Path) -> Signature | None:
    """A value that changes when the file is written or replaced; None if it cannot be seen or is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not S_ISREG(status.st_mode):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
