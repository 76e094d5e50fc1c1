"""Identifies the model that embeds a catalogue by its files alone, without loading anything heavy."""

# A trained model lies in ``RUN/train/model`` with ``vlm2rec.json`` beside its weights. Its provenance names
# everything that an embedding depends on besides the item itself; runs with the same provenance embed the same item
# alike.

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.backbones.prompts import prompt_hash
from training.data.pictures import PREPROCESSING_VERSION
from training.errors import BackboneError

MODEL_DIRECTORY = "model"
DESCRIPTION_FILE = "vlm2rec.json"
MODEL_FORMAT = 1
KIND = "vlm"
LICENCES = "licences"
"""Key of a provenance: the licences of the pretrained models."""
_WEIGHTS = ("**/*.safetensors", "config.json", "adapter/adapter_config.json")
_PROCESSORS = ("preprocessor_config.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json")
_SAME_SPACE = ("kind", "family", "id", "revision", "weights", "prompts", "preprocessing")


@dataclass(frozen=True)
class ModelDescription:
    """The content of ``vlm2rec.json``.

    Attributes:
        source: directory or hub id of the pretrained backbone; None if it was made from scratch.
        revision: commit of a hub id.
        adapted: only LoRA adapters are stored, the backbone is read from ``source``.
        max_text_tokens: tokens kept of an item's text.
        max_history: items of a history that it was trained on.
    """

    source: str | None
    revision: str | None
    adapted: bool
    max_text_tokens: int
    max_history: int

    @classmethod
    def read(cls, directory: Path) -> "ModelDescription":
        """Read ``vlm2rec.json``.

        Raises:
            BackboneError: the file is missing or unreadable, or the prompts have changed since the model was trained.
        """
        path = directory / DESCRIPTION_FILE
        if not path.is_file():
            raise BackboneError(f"{directory}: no trained model here; run `vlm2rec train` first")
        found = read_json(path)
        if found.get("format") != MODEL_FORMAT or found.get("prompts") != prompt_hash():
            raise BackboneError(
                f"{directory}: trained with format {found.get('format')!r} and prompts {found.get('prompts')!r}, this "
                f"version has {MODEL_FORMAT} and {prompt_hash()!r}; train again"
            )
        try:
            limits = int(found["max_text_tokens"]), int(found["max_history"])
        except (KeyError, TypeError, ValueError) as error:
            raise BackboneError(f"{path}: cannot be read ({error}); train the model again") from error
        return cls(found.get("source"), found.get("revision"), bool(found.get("adapter")), *limits)

    def write(self, directory: Path) -> None:
        """Write ``vlm2rec.json``, with the hash of the current prompts."""
        described = {
            "format": MODEL_FORMAT,
            "source": self.source,
            "revision": self.revision,
            "adapter": self.adapted,
            "max_text_tokens": self.max_text_tokens,
            "max_history": self.max_history,
            "prompts": prompt_hash(),
        }
        (directory / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def provenance(directory: Path, *, dtype: str, attention: str) -> dict[str, Any]:
    """Everything that an embedding depends on besides the item.

    Args:
        directory: of a trained model.
        dtype: of the weights when they are loaded.
        attention: implementation of attention.

    Returns:
        JSON-able: kind, id, revision, ``weights`` (adapters, and the backbone where it is a local directory),
        ``prompts``, ``preprocessing`` (processors and limits), dtype and attention. A hub model counts by its revision.

    Raises:
        BackboneError: there is no such model, or a file cannot be read.
    """
    description = ModelDescription.read(directory)
    source = description.source
    local = [Path(source)] if description.adapted and source is not None and Path(source).is_dir() else []
    model_type = None if description.adapted else read_json(directory / "config.json").get("model_type")
    try:
        weights = _files_hash([directory, *local], _WEIGHTS)
        processors = _files_hash([directory, *local], _PROCESSORS)
    except OSError as error:
        raise BackboneError(f"{directory}: the model cannot be read ({error}); check its files") from error
    preprocessing = f"{PREPROCESSING_VERSION} {description.max_text_tokens} {processors}"
    return {
        "kind": KIND,
        "id": source or f"{model_type} from scratch",
        "revision": description.revision,
        "weights": weights,
        "prompts": prompt_hash(),
        "preprocessing": hashlib.sha256(preprocessing.encode()).hexdigest()[:16],
        "dtype": dtype,
        "attention": attention,
    }


def backbone_provenance(
    source: str | Path, revision: str | None, *, dtype: str, attention: str, limits: Sequence[int]
) -> dict[str, Any]:
    """Everything that the vectors of a model before its training depend on besides the item.

    Args:
        source: directory or hub id.
        revision: commit or tag of a hub id.
        dtype: of the weights when they are loaded.
        attention: implementation of attention.
        limits: other limits on an item: pixels, tokens.

    Returns:
        JSON-able, as :func:`provenance`.

    Raises:
        BackboneError: a file cannot be read.
    """
    local = [Path(source)] if Path(source).is_dir() else []
    try:
        weights, processors = _files_hash(local, _WEIGHTS), _files_hash(local, _PROCESSORS)
    except OSError as error:
        raise BackboneError(f"{source}: the model cannot be read ({error}); check its files") from error
    preprocessing = f"{PREPROCESSING_VERSION} {list(limits)} {processors}"
    return {
        "kind": KIND,
        "id": Path(source).name if local else str(source),
        "revision": revision,
        "weights": weights,
        "prompts": prompt_hash(),
        "preprocessing": hashlib.sha256(preprocessing.encode()).hexdigest()[:16],
        "dtype": dtype,
        "attention": attention,
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the parts of two provenances that differ, sorted.

    ``inputs`` describes the items and ``licences`` the right to use the model; neither changes a vector.
    """
    return sorted(name for name in {*one, *other} - {"inputs", LICENCES} if one.get(name) != other.get(name))


def other_space(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the parts that differ and make vectors incomparable; dtype and attention only affect rounding."""
    return [name for name in differences(one, other) if name in _SAME_SPACE]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BackboneError: it cannot be read.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: cannot be read ({error}); train the model again") from error
    if not isinstance(loaded, dict):
        raise BackboneError(f"{path}: must hold a JSON object; train the model again")
    return loaded


def _files_hash(directories: Iterable[Path], patterns: Iterable[str]) -> str:
    """16 hex digits over names and contents of the files that match a pattern."""
    digest = hashlib.sha256()
    for directory in directories:
        found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
        for path in sorted(found):
            digest.update(f"{path.relative_to(directory).as_posix()}\0".encode("utf-8", "surrogatepass"))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def files_hash(directories: Iterable[Path]) -> str:
    """16 hex digits over the files of model directories: weights, configuration, tokenizer and image processor."""
    return _files_hash(directories, (*_WEIGHTS, *_PROCESSORS))
