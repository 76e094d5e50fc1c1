"""Reads secrets from files, as Docker and Kubernetes provide them, and never shows them."""

from pathlib import Path

from service.errors import SettingsError

KEY_RULE = "every key must have 16 to 512 ASCII characters"
_MAX_BYTES = 65_536
_MIN_KEY, _MAX_KEY = 16, 512

Signature = tuple[int, int, int]


def is_key(text: str) -> bool:
    """Whether a text may be an API key."""
    return _MIN_KEY <= len(text) <= _MAX_KEY and text.isascii()


def read_secret(path: Path, setting: str) -> str:
    """The text of a file.

    Args:
        path: at most 64 KiB of UTF-8.
        setting: name of the setting that names the file, for the message.

    Raises:
        SettingsError: the file cannot be read; the message does not quote it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{setting} must name a file that can be read, got {path} ({error.strerror})") from None
    if len(content) > _MAX_BYTES:
        raise SettingsError(f"{setting} must name a file of at most {_MAX_BYTES} bytes, got {path}")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{setting} must name a file in UTF-8, got {path}") from None


def read_keys(path: Path, setting: str) -> tuple[str, ...]:
    """The API keys in a file, one per line; empty lines and lines that start with ``#`` are ignored.

    Raises:
        SettingsError: the file cannot be read, has no key, or has a key that breaks the rule for keys.
    """
    lines = [line.strip() for line in read_secret(path, setting).splitlines()]
    keys = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not keys:
        raise SettingsError(f"{setting} must name a file with at least one key, got {path}, which has none")
    if not all(map(is_key, keys)):
        raise SettingsError(f"{setting}: {KEY_RULE}, one per line; a key in {path} breaks this rule")
    return keys


def signature(path: Path) -> Signature | None:
    """A value that changes when the file is written or replaced; None if the file cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
