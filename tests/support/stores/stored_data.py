"""A data set in the S3 server of the tests."""

from datetime import UTC, datetime
from pathlib import Path

from tests.support.stores.s3_server import S3Server

URL = "s3://shop/some/data"
PREFIX = "some/data/"


def put(s3: S3Server, name: str, content: bytes, day: int = 1) -> None:
    """Put an object below the prefix, written on a day of January 2026."""
    s3.objects[PREFIX + name] = (content, datetime(2026, 1, day, tzinfo=UTC))


def upload(s3: S3Server, directory: Path) -> None:
    """Put the files of a directory below the prefix."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            put(s3, path.relative_to(directory).as_posix(), path.read_bytes())
