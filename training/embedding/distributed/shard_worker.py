"""Makes single shards of a plan in a process of its own, on any machine that sees the data set and the run.

A run is seen on a shared disk, or through an object store (`training.embedding.distributed.shard_storage`).
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.items.item_table import ITEM_ID
from training.backbones.identity import differences
from training.backbones.trained_model import TrainedModel
from training.data.dataset import load_dataset
from training.data.tables.row_lookup import RowLookup
from training.embedding.catalogue_encoder import RowEncoder, catalogue_encoder
from training.embedding.content_hashes import PICTURE_HASH, TEXT_HASH, read_contents
from training.embedding.distributed.shard_storage import ShardStorage
from training.embedding.job import encode_shard
from training.embedding.shards import Shard
from training.errors import EmbeddingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PlannedItem = tuple[str, str | None, str | None]
"""Item id and the hashes of its text and picture, as in the plan."""


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to know.

    Attributes:
        data: absolute path or URL of the data set.
        run: the run directory with the trained model.
        plan: directory of the plan, which receives the shards.
        model: provenance of the model that the plan was made for.
        batch_items: items encoded at a time.
        threads: CPU threads of a worker; another number may change the last digits.
        interactions: file of the interactions, as the catalogue is read with one; None: that of the data set. A path
            that is not absolute lies in the run.
        storage: URL of the plan's objects, from which the run comes and to which shards go; None: both paths are on a
            shared disk.
    """

    data: str | Path
    run: Path
    plan: Path
    model: dict[str, Any]
    batch_items: int
    threads: int
    interactions: Path | None = None
    storage: str | None = None


class ShardWorker:
    """Encodes shards one after another; makes the same bytes as the job in one process.

    Args:
        job: what is to be encoded, and where it goes.
    """

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        self._encoder: RowEncoder | None = None
        self._storage: ShardStorage | None = None

    def prepare(self) -> str:
        """Load data set and model; returns the name of the machine and the number of the process.

        Raises:
            TrainingError: the machine does not see them, or they are not the planned ones.
        """
        import torch

        torch.set_num_threads(self._job.threads)
        run, interactions = self._run(), self._job.interactions
        self._dataset = load_dataset(self._job.data, interactions=None if interactions is None else run / interactions)
        self._rows = RowLookup(self._dataset.items[ITEM_ID])
        embedding = TrainedModel.of(run).load()
        if differences(embedding.model, self._job.model):
            raise EmbeddingsError(f"{self._job.run}: has another model on this machine than the job began with")
        self._encoder = catalogue_encoder(embedding, self._dataset)
        return f"{socket.gethostname()}, process {os.getpid()}"

    def encode(self, number: int, planned: Sequence[PlannedItem]) -> int:
        """Make a shard; :meth:`prepare` comes first.

        Args:
            number: of the shard.
            planned: its items, in order.

        Returns:
            The number.

        Raises:
            EmbeddingsError: an item is missing here or has another text or picture than was planned, or the model gives
                a value that is not finite.
            OSError: the shard cannot be written.
        """
        if self._encoder is None:
            raise EmbeddingsError("the worker has not loaded its model; start the job again")
        ids = [item_id for item_id, _, _ in planned]
        rows = self._rows.find(ids)
        self._check(planned, rows)
        vectors = encode_shard(self._encoder, rows, self._job.batch_items)
        unreadable = self._encoder.unreadable
        reasons = {ids[at]: unreadable[row] for at, row in enumerate(rows.tolist()) if row in unreadable}
        shard = Shard(ids, vectors, reasons)
        if self._storage is None:
            shard.save(self._job.plan / f"{number:06d}.npz")
        else:
            self._storage.put(number, shard)
        return number

    def _run(self) -> Path:
        """The run directory, or a copy of what the job has sent of it.

        Raises:
            TrainingError: this machine sees neither the plan nor the object store.
        """
        if self._job.storage is not None:
            self._storage = ShardStorage(self._job.storage)
            return self._storage.run()
        if not self._job.plan.is_dir():
            raise EmbeddingsError(
                f"{self._job.plan}: is not on this machine; data set and run must be on a shared disk, or the run "
                "passed through an object store with --ray-storage"
            )
        return self._job.run

    def _check(self, planned: Sequence[PlannedItem], rows: "NDArray[np.int64]") -> None:
        """Compare the items on this machine with the planned ones.

        Raises:
            EmbeddingsError: one differs.
        """
        found: list[PlannedItem] = []
        if (rows >= 0).all():
            part = replace(self._dataset, items=self._dataset.items[rows.tolist()])
            found = read_contents(part, threads=self._job.threads).frame.select(ITEM_ID, TEXT_HASH, PICTURE_HASH).rows()
        for number, item in enumerate(planned):
            if not found or found[number] != item:
                raise EmbeddingsError(
                    f"{self._job.data}: item {item[0]!r} is missing on {socket.gethostname()} or differs from the "
                    "planned one; the data set must be the same on every machine and may not change meanwhile"
                )
