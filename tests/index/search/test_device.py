"""Device `auto`: CUDA only where driver, ONNX Runtime and FAISS all have it."""

from pathlib import Path

import faiss
import onnxruntime as ort
import pytest

from index.search.device import available_device


@pytest.mark.parametrize(
    ("gpu", "provider", "faiss_gpu", "device"),
    [
        (True, True, True, "cuda"),
        (False, True, True, "cpu"),
        (True, False, True, "cpu"),
        (True, True, False, "cpu"),
    ],
)
def test_all_three_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, provider: bool, faiss_gpu: bool, device: str
) -> None:
    (tmp_path / "proc/driver/nvidia/gpus" / ("0000:01:00.0" if gpu else "")).mkdir(parents=True)
    providers = [*(["CUDAExecutionProvider"] if provider else []), "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    if faiss_gpu:
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    else:
        monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    assert available_device(tmp_path) == device


def test_without_a_driver_it_is_the_cpu(tmp_path: Path) -> None:
    assert available_device(tmp_path) == "cpu"


def test_it_is_determined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    asked = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: asked.append(1) or ["CUDAExecutionProvider"])
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    assert [available_device(tmp_path) for _ in range(3)] == ["cuda"] * 3
    assert len(asked) == 1
