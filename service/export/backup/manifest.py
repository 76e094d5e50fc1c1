"""Defines ``backup.json``, the self-description of a backup, which is written last.

``redis/000001.parquet`` …   keys of Redis in the order in which they were read; a later one replaces an earlier one
``registry/<id>/``           the published bundles, each with its own manifest
``registry/pointer.json``    the current bundle and the order of publication
``backup.json``              hashes of all of them
"""

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from index.bundle.integrity import sha256_of
from index.bundle.manifest import FileEntry, is_bundle_id
from index.bundle.pointer import POINTER_FILE
from service.errors import BackupRefused

MANIFEST_FILE: Final = "backup.json"
REDIS_DIRECTORY: Final = "redis"
REGISTRY_DIRECTORY: Final = "registry"
FORMAT: Final = 1
_LARGEST: Final = 64 << 20
_FILE: Final = re.compile(rf"{REDIS_DIRECTORY}/\d{{6}}\.parquet|{REGISTRY_DIRECTORY}/{re.escape(POINTER_FILE)}")
_AGAIN: Final = "make another backup, or take another copy of this one"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RedisPart(_Part):
    """What was copied from Redis.

    Attributes:
        server: version of the server; another needs at least this version to restore from.
        keys: number of keys that were written, those that were read twice included.
        erased_meanwhile: whether a user was erased while the keys were read.
    """

    server: str
    keys: int = Field(ge=0)
    erased_meanwhile: bool


class RegistryPart(_Part):
    """What was copied from the registry.

    Attributes:
        current: id of the current bundle.
        bundles: content hash by id.
    """

    current: str
    bundles: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> Self:
        if not all(map(is_bundle_id, self.bundles)) or self.current not in self.bundles:
            raise ValueError("must name bundles by their ids, the current one among them")
        return self


class BackupManifest(_Part):
    """The content of ``backup.json``.

    Attributes:
        format: 1; this version refuses any other number.
        content: sha256 of the manifest without this field.
        version: of vlm2rec.
        began: when the reading began, by the clock of this machine.
        ended: when it ended.
        redis: None: without Redis.
        registry: None: without a registry.
        files: hash and size of every file but this one and those of bundles.
    """

    format: Literal[1]
    content: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str
    began: AwareDatetime
    ended: AwareDatetime
    redis: RedisPart | None
    registry: RegistryPart | None
    files: dict[str, FileEntry]

    @field_validator("files")
    @classmethod
    def _known(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if not _FILE.fullmatch(name):
                raise ValueError(f"{name[:60]!r} is no file of a backup")
        return files

    @property
    def key_files(self) -> list[str]:
        """Names of the files of keys, in order."""
        return sorted(name for name in self.files if name.startswith(f"{REDIS_DIRECTORY}/"))

    @classmethod
    def seal(cls, **parts: Any) -> Self:  # noqa: ANN401 - the fields above
        """A manifest with its format and content hash filled in."""
        draft = cls(format=FORMAT, content="0" * 64, **parts)
        return draft.model_copy(update={"content": _content_hash(json.loads(draft.model_dump_json()))})

    def to_json(self) -> bytes:
        """The text of ``backup.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def read(cls, backup: Path) -> Self:
        """Read and check the manifest.

        Raises:
            BackupRefused: there is none, it was altered, or is of another format.
        """
        path = backup / MANIFEST_FILE
        try:
            status = path.stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # reading it may never end
                raise BackupRefused(f"{path}: is no regular file; {_AGAIN}")
            if status.st_size > _LARGEST:
                raise BackupRefused(f"{path}: larger than {_LARGEST} bytes, not a manifest; {_AGAIN}")
            raw = json.loads(text := path.read_bytes())
            number = raw["format"]
            if number != FORMAT or isinstance(number, bool):
                raise BackupRefused(
                    f"{path}: backup format {number!r}, this version reads {FORMAT}; restore it with the version that "
                    "made it"
                )
            manifest = cls.model_validate_json(text)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BackupRefused(
                f"{backup}: is no finished backup, {MANIFEST_FILE} is missing; it was interrupted, or the name is wrong"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "as a whole"
            raise BackupRefused(f"{path}: {where}: {first['msg']}; {_AGAIN}") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BackupRefused(f"{path}: cannot be read ({error}); {_AGAIN}") from error
        if manifest.content != _content_hash(raw):
            raise BackupRefused(f"{path}: does not fit its own hash, so it was altered; {_AGAIN}")
        return manifest

    def check_file(self, backup: Path, name: str) -> None:
        """Compare a file with its hash.

        Raises:
            BackupRefused: it is missing or differs.
        """
        path, entry = backup / name, self.files[name]
        try:
            status = path.stat()
            fits = stat.S_ISREG(status.st_mode) and status.st_size == entry.size
            altered = not fits or sha256_of(path) != entry.sha256
        except OSError as error:
            raise BackupRefused(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
        if altered:
            raise BackupRefused(f"{path}: its content was altered; {_AGAIN}")


def _content_hash(raw: dict[str, Any]) -> str:
    kept = {name: value for name, value in raw.items() if name != "content"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
