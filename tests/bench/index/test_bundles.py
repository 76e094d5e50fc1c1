"""Bundles of the benches are found where they are, and built anew where their encoder is another one."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.index import encoder
from bench.index.bundles import published
from bench.index.catalogues import LAYOUT
from bench.index.encoder import made_encoder, record_of, shape, size_name
from bench.measurements import Measurements
from bench.serving.serving import prepare
from index.bundle.encoder_pair import encoder_hash
from index.bundle.manifest import ENCODER_FILE, Manifest
from tests.support.mean_encoder import write_mean_encoder

Make = Callable[[int], list[Path]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Let the benches make encoders of a width without PyTorch; gives the list of those that are made from then on."""

    def of_width(width: int) -> list[Path]:
        made: list[Path] = []
        size = {**shape(), "width": width}

        def run(command: list[str], **_: object) -> None:
            made.append(Path(command[-1]))
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            write_mean_encoder(LAYOUT, width, made[-1])  # the width stands in the file as the longest history
            record_of(made[-1]).write_text(json.dumps(size))

        monkeypatch.setattr(encoder, "shape", lambda: size)
        monkeypatch.setattr(encoder, "subprocess", SimpleNamespace(run=run))
        return made

    return of_width


def said(stages: list[str]) -> Callable[[str, float], None]:
    return lambda stage, _share: stages.append(stage)


def test_an_encoder_of_another_or_an_unknown_size_is_made_again(tmp_path: Path, make: Make) -> None:
    made = make(32)
    path = made_encoder(tmp_path)
    assert made == [path]
    assert made_encoder(tmp_path) == path
    assert len(made) == 1
    record_of(path).unlink()  # as of earlier versions
    made_encoder(tmp_path)
    assert len(made) == 2
    before, made = encoder_hash(path), make(48)
    made_encoder(tmp_path)
    assert len(made) == 1
    assert encoder_hash(path) != before


def test_a_bundle_is_kept_and_built_anew_for_another_encoder(tmp_path: Path, make: Make) -> None:
    make(32)
    stages: list[str] = []
    first = published(1000, tmp_path / "old", said(stages))
    assert stages
    (tmp_path / "old").rename(tmp_path / "new")  # the folder is found where it is
    stages.clear()
    again = published(1000, tmp_path / "new", said(stages))
    assert stages == []
    assert again.registry == str(tmp_path / "new" / "catalogue-1000" / "registry")
    assert Path(again.bundle).parent == Path(again.registry)
    assert (again.kind, again.rows, again.encoder) == (first.kind, 1000, size_name())
    make(48)
    other = published(1000, tmp_path / "new", said(stages))
    assert stages
    manifest = Manifest.read(Path(other.bundle))
    assert manifest.files[ENCODER_FILE].sha256.startswith(encoder_hash(tmp_path / "new" / "encoder.onnx"))
    assert not Path(again.bundle).exists()


def test_a_bundle_that_is_gone_is_built_anew(tmp_path: Path, make: Make) -> None:
    make(32)
    first = published(1000, tmp_path, said([]))
    Path(first.bundle).rename(tmp_path / "elsewhere")
    assert Path(published(1000, tmp_path, said([])).bundle).is_dir()


def test_results_of_another_encoder_are_not_gone_on_with(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(32)
    results = Measurements(tmp_path / "r.json", {}, fresh=True)
    prepare([1000], results, tmp_path, 0)
    assert results["bundle/1000"]["encoder"] == size_name()
    prepare([1000], results, tmp_path, 0)
    monkeypatch.setattr("bench.index.bundles.size_name", lambda: "3 x 7")
    with pytest.raises(SystemExit, match="of an encoder of 2 x 64, today's is 3 x 7; begin anew with --fresh"):
        prepare([1000], results, tmp_path, 0)
