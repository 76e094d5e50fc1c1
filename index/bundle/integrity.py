"""Verification of a bundle's files: hashes once, afterwards a stamp of sizes and times.

Hashing gigabytes at every start would cost seconds, so publishing hashes everything and leaves a stamp beside the
bundle (``<bundle>.stamp.json``: size and modification time per file, and the manifest's hash). Loading hashes only what
is small or does not fit the stamp. A file changed in place with its size and time kept passes the stamp; ``full`` finds
it, and so does :func:`hash_files` beside a service that is answering already.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from index.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from index.errors import BundleInvalid, BundleNotFound

Verify = Literal["stamp", "full"]

_STAMP_FORMAT = 1
_LARGEST_STAMP = 64 << 20
_SMALL = 1 << 20  # bytes; smaller files are hashed at every load
_BLOCK = 1 << 20  # bytes hashed between two looks at whether to stop, about half a millisecond


class _Stopped(Exception):
    """Hashing was told to stop; never leaves this module."""


def _nothing() -> None:
    pass


def sha256_of(path: Path, between: Callable[[], None] = _nothing) -> str:
    """sha256 of a file's content, hexadecimal.

    Args:
        path: the file.
        between: called before every block of a megabyte; what it raises ends the work.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        between()
        while block := file.read(_BLOCK):
            digest.update(block)
            between()
    return digest.hexdigest()


def stamp_path(bundle: Path) -> Path:
    """Where the stamp of a bundle lies: beside it, because a published bundle is never written to."""
    return bundle.with_name(f"{bundle.name}.stamp.json")


def write_stamp(bundle: Path, manifest: Manifest) -> None:
    """Record sizes and times of files that were just verified in full; replaces an earlier stamp atomically."""
    files = {name: _signature(bundle / name) for name in manifest.files}
    stamp = {"format": _STAMP_FORMAT, "manifest": sha256_of(bundle / MANIFEST_FILE), "files": files}
    write_durably(stamp_path(bundle), json.dumps(stamp, indent=1, sort_keys=True).encode())


def verify_files(
    bundle: Path,
    manifest: Manifest,
    verify: Verify = "stamp",
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Hold every file of a bundle to its manifest.

    Args:
        bundle: the bundle's directory.
        manifest: its manifest.
        verify: ``stamp`` trusts files that fit the stamp beside the bundle, ``full`` hashes every one.
        progress: called with a file name and the share of bytes looked at so far.

    Raises:
        BundleInvalid: a file is missing, not a regular file, of another size or content.
    """
    trusted = {} if verify == "full" else _read_stamp(bundle)
    total = sum(entry.size for entry in manifest.files.values()) or 1
    done = 0
    for name, entry in manifest.files.items():
        _check_size(bundle / name, entry)
    for name, entry in manifest.files.items():
        path = bundle / name
        if entry.size <= _SMALL or trusted.get(name) != _signature(path):
            _check_hash(path, entry)
        done += entry.size
        if progress is not None:
            progress(name, done / total)


def verify_file(bundle: Path, manifest: Manifest, name: str) -> None:
    """Hold one file of a bundle to its size and hash.

    Args:
        bundle: the bundle's directory.
        manifest: its manifest.
        name: of a file that the manifest lists.

    Raises:
        BundleInvalid: it is missing, not a regular file, of another size or content.
    """
    _check_size(bundle / name, manifest.files[name])
    _check_hash(bundle / name, manifest.files[name])


def hash_files(bundle: Path, manifest: Manifest, stop: Callable[[], bool]) -> bool:
    """Hold every file of a bundle to its manifest by its content, whatever a stamp says, for as long as it may run.

    Args:
        bundle: the bundle's directory.
        manifest: its manifest.
        stop: asked before every block of a megabyte; True ends the work.

    Returns:
        True when every file is whole, False when it was stopped before it knew.

    Raises:
        BundleNotFound: the bundle was deleted meanwhile.
        BundleInvalid: a file is missing, not a regular file, of another size or content.
    """

    def watch() -> None:
        if stop():
            raise _Stopped

    try:
        for name, entry in manifest.files.items():
            _check_size(bundle / name, entry)
            _check_hash(bundle / name, entry, watch)
    except _Stopped:
        return False
    except BundleInvalid as error:
        if not bundle.is_dir():
            raise BundleNotFound(f"{bundle}: the bundle was deleted while it was verified") from error
        raise
    return True


def write_durably(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to the disk and put it in place in one step; the old content stays until then.

    Args:
        path: the file; its directory exists.
        content: all of it.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Flush one file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_stamp(bundle: Path) -> dict[str, list[int]]:
    """What the stamp vouches for; nothing if it is missing, unreadable or belongs to another manifest."""
    path = stamp_path(bundle)
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_STAMP:
            return {}
        stamp = json.loads(path.read_bytes())
        if stamp["format"] != _STAMP_FORMAT or stamp["manifest"] != sha256_of(bundle / MANIFEST_FILE):
            return {}
        return dict(stamp["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        status = path.lstat()
    except OSError as error:
        raise BundleInvalid(f"{path}: the file is missing ({error.strerror}); publish the bundle again") from error
    if not path.is_file() or path.is_symlink():
        raise BundleInvalid(f"{path}: must be a regular file; publish the bundle again")
    if status.st_size != entry.size:
        raise BundleInvalid(
            f"{path}: has {status.st_size} bytes, the manifest says {entry.size}; publish the bundle again"
        )


def _check_hash(path: Path, entry: FileEntry, between: Callable[[], None] = _nothing) -> None:
    try:
        found = sha256_of(path, between)
    except OSError as error:
        raise BundleInvalid(f"{path}: cannot be read ({error}); publish the bundle again") from error
    if found != entry.sha256:
        raise BundleInvalid(
            f"{path}: its content was altered (sha256 {found[:12]}…, the manifest says {entry.sha256[:12]}…); publish "
            "the bundle again"
        )
