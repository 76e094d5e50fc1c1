"""Defines the layout of a training run's directory, and reserves it for one run and one process."""

# ``fingerprint`` (settings and data that determine the result), ``launch`` (the launcher of the processes that train),
# ``start`` (a backbone made from scratch), ``checkpoints``, ``log.jsonl`` (a line every few steps), ``events`` (the
# same for TensorBoard), ``newest_event.json`` (time of the newest event that decides the weights), ``diverged.json``
# (the batch whose loss was not finite, if any) and at the end ``model``. Files are written to a temporary name and
# renamed, so that a killed run can always be resumed.

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from index.machine.locks import file_lock
from training.backbones.items.source import ItemSource
from training.backbones.prompts import prompt_hash
from training.backbones.trained_model import FEATURES_DIRECTORY
from training.config.renamed_keys import former_key
from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.sequences import Sequences, Targets
from training.errors import ConfigError

_WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "vlm": ("attention", "activation_checkpointing", "licence"),
    "train": (
        "cached_gradients", "checkpoint_seconds", "checkpoint_steps", "chunk_patches", "chunk_tokens",
        "diagnose_every", "keep_checkpoints", "log_every", "picture_memory_mib", "workers",
    ),
}  # fmt: skip
"""Keys that change the cost of a run but not its result (up to rounding and to the weights that dropout draws)."""
_OF_ITEM_ENCODERS = ("family", "vector_length", "towers", "heads", "adapters")
_ADDED: Mapping[str, tuple[str, ...]] = {
    "vlm": ("adapters",),
    "loss": ("wpcl_kind", "hardness", "negative_shift", "relation_positive"),
    "train": ("shard", "text_layers_rate", "adapters_rate"),
}
"""Keys that earlier versions did not have."""
_WITHOUT_VALIDATION = ("patience", "validate_every", "validation_items", "validation_users")


def run_fingerprint(dataset: Dataset, train: Sequences, validation: Targets | None, config: RunConfig) -> str:
    """16 hex digits over everything that determines the result of a run.

    Args:
        dataset: the catalogue.
        train: training histories.
        validation: held-out events that the run is validated on, if it is.
        config: of the run.
    """
    digest = hashlib.sha256(prompt_hash().encode())
    digest.update(json.dumps(_decisive_settings(config), sort_keys=True).encode())
    if config.vlm.encodes_items:
        digest.update(json.dumps(ItemSource.of(config.vlm).provenance(), sort_keys=True).encode())
    digest.update(f"[{json.dumps(dataset.item_ids())}, [".encode())
    for row, text in enumerate(dataset.texts()):
        digest.update(f"{', ' if row else ''}{json.dumps(text)}".encode())
    digest.update(b"]]")
    digest.update(train.offsets.tobytes() + train.rows.tobytes())
    if config.train.validate_every and validation is not None:
        digest.update(np.concatenate([validation.targets, *validation.histories]).tobytes())
    return digest.hexdigest()[:16]


def _decisive_settings(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The settings that change the result of a run; a renamed key keeps its former name here."""
    sections = config.model_dump(mode="json", include={"vlm", "loss", "train"})
    for section, names in _WITHOUT_EFFECT.items():
        for name in names:
            del sections[section][name]
    if not config.vlm.encodes_items:  # so that runs of earlier versions keep their fingerprint
        for name in _OF_ITEM_ENCODERS:
            del sections["vlm"][name]
    defaults = RunConfig().model_dump(mode="json")
    for section, names in _ADDED.items():  # also so that runs of earlier versions keep theirs
        for name in names:
            if sections[section].get(name) == defaults[section][name]:
                del sections[section][name]
    towers = sections["vlm"].get("towers", {})
    if towers.get("trained_text_layers") == 0:
        del towers["trained_text_layers"]
    if not config.train.validate_every:
        for name in _WITHOUT_VALIDATION:
            del sections["train"][name]
    return {
        section: {former_key(f"{section}.{key}").rpartition(".")[2]: value for key, value in values.items()}
        for section, values in sections.items()
    }


class RunDirectory:
    """The directory of one run.

    Attributes:
        path: the directory.
        start: the backbone that a run from scratch started with, or the untrained heads.
        features: stored vectors of a frozen encoder.
        checkpoints: of the run.
        model: the trained model.
        log: one JSON object a line.
        events: the same for TensorBoard.
        diverged: record of the batch whose loss was not finite.
        fingerprint: see :func:`run_fingerprint`.
        launch: name of the launch that trains or trained last, see :func:`training.finetune.distributed.launch_name`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = path / "start"
        self.features = path / FEATURES_DIRECTORY
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.log = path / "log.jsonl"
        self.events = path / "events"
        self.diverged = path / "diverged.json"
        self.fingerprint = path / "fingerprint"
        self.launch = path / "launch"

    @contextlib.contextmanager
    def claimed(self, fingerprint: str, *, resume: bool, launch: str | None = None) -> Iterator[None]:
        """Reserve the directory for this run and this process; the lock ends with the process.

        Args:
            fingerprint: of the run.
            resume: go on with a run that is here.
            launch: name of the launcher that started this process; processes that it starts again resume its own run.

        Raises:
            ConfigError: it is of another run, or of this run without ``resume``, or a process is training in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / "lock"))
            except Timeout as error:
                raise ConfigError(
                    f"{self.path}: another process is training here; wait for it or end it, or use another --run"
                ) from error
            self._check(fingerprint, resume=resume or self._was_launched_by(launch))
            if launch is not None:
                self.launch.write_text(launch + "\n", encoding="utf-8")
            yield

    def _was_launched_by(self, launch: str | None) -> bool:
        return (
            launch is not None and self.launch.is_file() and self.launch.read_text(encoding="utf-8").strip() == launch
        )

    def _check(self, fingerprint: str, *, resume: bool) -> None:
        mark = self.fingerprint
        if any(part.is_dir() for part in (self.start, self.checkpoints, self.model)):
            if not resume:
                raise ConfigError(
                    f"{self.path}: a training run is here already; go on with --resume, or use another --run"
                )
            found = mark.read_text(encoding="utf-8").strip() if mark.is_file() else "unknown"
            if found != fingerprint:
                raise ConfigError(
                    f"{self.path}: this run was started with another configuration or other data ({found}, now "
                    f"{fingerprint}); resume it with the same ones, or use another --run"
                )
            return
        mark.write_text(fingerprint + "\n", encoding="utf-8")

    def make(self, target: Path, write: Callable[[Path], None]) -> None:
        """Write a directory under a temporary name and rename it once it is complete."""
        aside = target.with_name(f".{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        aside.rename(target)
