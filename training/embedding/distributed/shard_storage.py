"""Passes a model to workers and their shards back through an object store, where they share no disk with the run.

Below the URL lies ``<plan>/``, which goes when the shards are put together:

``run/``         model and configuration of the run, stored vectors that workers read, and other interactions
``run.json``     hashes of these files; written after them, so that a job that goes on sends nothing twice
``NNNNNN.npz``   finished shards, with the bytes that they have on a disk

A store shows an object whole or not at all, so two workers may make the same shard.
"""

import contextlib
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from index.bundle.integrity import sha256_of, sync_directory, sync_file
from index.bundle.store.object_store import ObjectStore
from index.errors import RegistryError, StoreUnavailable
from training.backbones.identity import MODEL_DIRECTORY
from training.backbones.trained_model import FEATURES_DIRECTORY, TRAINING_DIRECTORY
from training.config.run_config import CONFIG_FILE
from training.data.stored.data_store import DataStore
from training.data.stored.object_copies import ObjectCopy
from training.data.tables.mapped_table import data_cache
from training.embedding.shards import Shard
from training.errors import EmbeddingsError

_RUN: Final = "run"
_HASHES: Final = "run.json"
_LARGEST_HASHES: Final = 16 << 20
_SHARD: Final = ".npz"
_MODEL: Final = f"{TRAINING_DIRECTORY}/{MODEL_DIRECTORY}"
_FEATURES: Final = f"{TRAINING_DIRECTORY}/{FEATURES_DIRECTORY}"


class ShardStorage:
    """The objects of one plan.

    Args:
        url: ``s3://bucket/prefix`` of the plan.

    Raises:
        EmbeddingsError: the URL has another form, or the extra is missing.
    """

    def __init__(self, url: str) -> None:
        with _translated():
            self._objects = ObjectStore(url)
        self._store = DataStore(url)
        self.url = self._objects.url

    @classmethod
    def of_plan(cls, url: str, plan: Path) -> "ShardStorage":
        """The storage of a plan.

        Args:
            url: below which every plan has a prefix of its own.
            plan: directory of the plan.
        """
        return cls(f"{url.rstrip('/')}/{plan.name}")

    def check_writable(self) -> None:
        """Check before hours of work that objects can be written here; nothing is left behind.

        Raises:
            EmbeddingsError: the store does not answer, or does not permit it.
        """
        key = f"write-{uuid.uuid4().hex}"
        with _translated():
            self._objects.write(key, b"1")
            self._objects.delete([key])

    def put_run(self, run: Path, interactions: Path | None = None, *, features: Path | None) -> Path | None:
        """Send what workers need, unless it is there already.

        Args:
            run: the run directory.
            interactions: a file or folder outside the data set.
            features: see :func:`training.embedding.distributed.read_features.features_read`.

        Returns:
            Its path below :meth:`run`.

        Raises:
            EmbeddingsError: the store does not take it.
            OSError: a file cannot be read.
        """
        parts = {CONFIG_FILE: run / CONFIG_FILE, _MODEL: run / _MODEL}
        parts |= {} if features is None else {_FEATURES: features}
        files = {f"{part}{below}": path for part, place in parts.items() for below, path in _files(place)}
        sent = None
        if interactions is not None:
            sent = Path(f"interactions{interactions.suffix}")
            files |= {f"{sent}{below}": path for below, path in _files(interactions)}
        hashes = json.dumps({name: sha256_of(path) for name, path in sorted(files.items())}).encode()
        with _translated():
            there = self._objects.read(_HASHES, limit=_LARGEST_HASHES)
            if there is None or there.content != hashes:
                self._objects.delete([one.key for one in self._objects.objects(_RUN)])
                for name, path in files.items():
                    self._objects.write(f"{_RUN}/{name}", path)
                self._objects.write(_HASHES, hashes)
        return sent

    def run(self) -> Path:
        """A copy of what :meth:`put_run` sent, which the processes of a machine share.

        Raises:
            DatasetError: the store does not answer, or the disk refuses the copy.
        """
        jobs = self.url.rpartition("/")[0]  # so that the copy of an earlier job is removed
        root = data_cache() / hashlib.sha256(jobs.encode()).hexdigest()[:12]
        listed = sorted((one for block in self._store.listed(_RUN) for one in block), key=lambda one: one.key)
        self._copy = ObjectCopy(self._store, root, _RUN, listed)
        return self._copy.directory / _RUN

    def put(self, number: int, shard: Shard) -> None:
        """Send a finished shard.

        Raises:
            EmbeddingsError: the store does not take it.
            OSError: the disk has no room for its bytes.
        """
        with tempfile.TemporaryDirectory() as directory, _translated():
            path = Path(directory) / _name(number)
            shard.save(path)
            self._objects.write(path.name, path)

    def finished(self) -> Sequence[int]:
        """Numbers of the shards that are there.

        Raises:
            DatasetError: the store does not answer.
        """
        names = [one.key for block in self._store.listed("") for one in block if "/" not in one.key]
        return sorted(int(name.removesuffix(_SHARD)) for name in names if name.endswith(_SHARD))

    def fetch(self, number: int, plan: Path) -> None:
        """Copy a shard into the directory of the plan, if it is there.

        Raises:
            DatasetError: it does not arrive.
            OSError: the disk has no room for it.
        """
        name = _name(number)
        listed = self._store.head(name)
        if listed is None:
            return
        partial = plan / f"{number:06d}-{uuid.uuid4().hex[:8]}.part"
        try:
            with partial.open("wb") as file:
                self._store.fetch(listed, file)
            sync_file(partial)
            partial.replace(plan / name)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(plan)

    def remove(self) -> None:
        """Delete all objects.

        Raises:
            EmbeddingsError: the store does not answer or does not permit it.
        """
        with _translated():
            self._objects.delete([one.key for one in self._objects.objects("")])


def _name(number: int) -> str:
    return f"{number:06d}{_SHARD}"


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files at a path, each with what follows the path; one of an empty name for a file."""
    if path.is_file():
        yield "", path
    elif path.is_dir():
        for found in sorted(path.rglob("*")):
            if found.is_file():
                yield f"/{found.relative_to(path).as_posix()}", found


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise EmbeddingsError(
            f"{error}; --ray-storage needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject. Start the "
            "same command again to go on"
        ) from None
    except RegistryError as error:
        raise EmbeddingsError(str(error)) from None
