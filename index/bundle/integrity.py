"""Verifies the files of a bundle: by hash when it is published, later by a stamp of sizes and times.

Hashing gigabytes at every start would take seconds. Publishing therefore hashes every file and writes a stamp beside
the bundle (``<bundle>.stamp.json``: size and modification time per file, and the manifest's hash). Loading hashes only
small files and files that do not match the stamp. The stamp misses a change in place that keeps size and time;
``full`` verification detects it, and so does :func:`hash_files`, which runs in the background of a service.
"""

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from index.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from index.errors import BundleInvalid, BundleNotFound, lacks_resources, reading_failed

Verify = Literal["stamp", "full"]

_STAMP_FORMAT = 1
_LARGEST_STAMP = 64 << 20
_SMALL = 1 << 20  # bytes; smaller files are hashed at every load
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_BLOCK = 1 << 20  # bytes hashed between two checks of whether to stop, about half a millisecond


class _Stopped(Exception):
    """The caller stopped the hashing; never leaves this module."""


def _nothing() -> None:
    pass


def sha256_of(path: Path, between: Callable[[], None] = _nothing) -> str:
    """sha256 of a file's content, hexadecimal.

    Args:
        path: the file.
        between: called before every block of a megabyte; may raise to stop the hashing.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        between()
        while block := file.read(_BLOCK):
            digest.update(block)
            between()
    return digest.hexdigest()


def stamp_path(bundle: Path) -> Path:
    """Path of a bundle's stamp; it lies beside the bundle, because a published bundle is never written to."""
    return bundle.with_name(f"{bundle.name}.stamp.json")


def write_stamp(bundle: Path, manifest: Manifest) -> None:
    """Record sizes and times of files that were just verified by hash; replaces an earlier stamp atomically."""
    files = {name: _signature(bundle / name) for name in manifest.files}
    stamp = {"format": _STAMP_FORMAT, "manifest": sha256_of(bundle / MANIFEST_FILE), "files": files}
    write_durably(stamp_path(bundle), json.dumps(stamp, indent=1, sort_keys=True).encode())


def verify_files(
    bundle: Path,
    manifest: Manifest,
    verify: Verify = "stamp",
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Check every file of a bundle against its manifest.

    Args:
        bundle: the bundle's directory.
        manifest: the bundle's manifest.
        verify: ``stamp`` trusts files that match the stamp beside the bundle, ``full`` hashes every file.
        progress: called with a file name and the share of bytes verified so far, 0 … 1.

    Raises:
        BundleInvalid: a file is missing, not a regular file, or of another size or content.
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
    """Check size and hash of one file of a bundle.

    Args:
        bundle: the bundle's directory.
        manifest: the bundle's manifest.
        name: name of a file that the manifest lists.

    Raises:
        BundleInvalid: the file is missing, not a regular file, or of another size or content.
    """
    _check_size(bundle / name, manifest.files[name])
    _check_hash(bundle / name, manifest.files[name])


def hash_files(bundle: Path, manifest: Manifest, stop: Callable[[], bool]) -> bool:
    """Hash every file of a bundle and compare it with the manifest, ignoring the stamp; can be stopped.

    Args:
        bundle: the bundle's directory.
        manifest: the bundle's manifest.
        stop: called before every block of a megabyte; True stops the hashing.

    Returns:
        True if every file is intact, False if the hashing was stopped.

    Raises:
        BundleNotFound: the bundle was deleted in the meantime.
        BundleInvalid: a file is missing, not a regular file, or of another size or content.
    """

    def check_stop() -> None:
        if stop():
            raise _Stopped

    try:
        for name, entry in manifest.files.items():
            _check_size(bundle / name, entry)
            _check_hash(bundle / name, entry, check_stop)
    except _Stopped:
        return False
    except BundleInvalid as error:
        if not bundle.is_dir():
            raise BundleNotFound(f"{bundle}: the bundle was deleted while it was verified") from error
        raise
    return True


def write_durably(path: Path, content: bytes, *, flush_name: bool = True) -> None:
    """Replace a file atomically: write a temporary file, flush it to the disk, rename it.

    Args:
        path: the file; its directory must exist.
        content: the whole new content.
        flush_name: flush the directory, too; False: the caller does, once for several files.

    Raises:
        OSError: the file cannot be written; the old content stays.
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
    if flush_name:
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Flush the content of a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Flush the entries of a directory to the disk, so that a rename survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_stamp(bundle: Path) -> dict[str, list[int]]:
    """Signatures by file name from the stamp; empty if it is missing, unreadable or of another manifest."""
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
        what = "the file is missing" if error.errno in _ABSENT else "cannot be read"
        raise BundleInvalid(f"{path}: {what} ({error.strerror or error}); {_remedy(error)}") from error
    if not path.is_file() or path.is_symlink():
        raise BundleInvalid(f"{path}: must be a regular file; publish the bundle again")
    if status.st_size != entry.size:
        raise BundleInvalid(
            f"{path}: has {status.st_size} bytes, the manifest says {entry.size}; publish the bundle again"
        )


def _remedy(error: OSError) -> str:
    if lacks_resources(error):
        return "raise the limit on open files (ulimit -n) or on memory"
    if reading_failed(error):
        return "check the disk and its mount"
    return "check its owner and permissions" if error.errno in _FORBIDDEN else "publish the bundle again"


def _check_hash(path: Path, entry: FileEntry, between: Callable[[], None] = _nothing) -> None:
    try:
        digest = sha256_of(path, between)
    except OSError as error:
        raise BundleInvalid(f"{path}: cannot be read ({error.strerror or error}); {_remedy(error)}") from error
    if digest != entry.sha256:
        raise BundleInvalid(
            f"{path}: its content was altered (sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…); publish "
            "the bundle again"
        )
