"""Parts of a run are replaced whole or not at all, wherever the process is killed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from training.runs.adoption import adopt, finish_adoption
from training.runs.lock import run_lock

DIRECTORIES = ("embeddings", "encoder", "train")
STEPS = [(Path, "rename"), (Path, "replace"), (Path, "mkdir"), (Path, "rmdir"), (shutil, "rmtree")]


def run_with_job(place: Path) -> tuple[Path, Path]:
    run, made = place, place / "retrain" / "made"
    for where, text in ((run, "old"), (made, "new")):
        for name in DIRECTORIES:
            (where / name).mkdir(parents=True)
            (where / name / "file").write_text(text)
        (where / "config.toml").write_text(text)
    (run / "bundles").mkdir()
    return run, made


def parts(run: Path) -> list[str]:
    return [(run / name).read_text() for name in ("config.toml", *(f"{name}/file" for name in DIRECTORIES))]


def whole_somewhere(run: Path, made: Path) -> bool:
    """Whether all new parts exist, in place or aside."""
    asides = [made, run / ".adopted", run]
    files = ["config.toml", *(f"{name}/file" for name in DIRECTORIES)]
    return all(
        any((aside / file).is_file() and (aside / file).read_text() == "new" for aside in asides) for file in files
    )


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before (even) or after (odd) the step of a number, and does nothing later."""
    done = -1

    def step(whole: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if 2 * done >= number:
                raise KeyboardInterrupt
            result = whole(*arguments, **options)
            if 2 * done + 1 >= number:
                raise KeyboardInterrupt
            return result

        return stepped

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, step(getattr(owner, name)))


@pytest.mark.parametrize("anew", [False, True], ids=["going on", "the next job begins anew"])
def test_killed_before_or_after_any_step_the_run_is_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    killed = outcomes = 0
    while True:
        run, made = run_with_job(tmp_path / f"run{killed}")
        try:
            with monkeypatch.context() as patched:
                kill_at(killed, patched)
                adopt(made, run)
        except KeyboardInterrupt:
            killed += 1
        else:
            break
        assert whole_somewhere(run, made)
        if anew:
            shutil.rmtree(run / "retrain")
        else:
            adopt(made, run)
        with run_lock(run):
            found = parts(run)
        assert found in (["old"] * 4, ["new"] * 4)
        assert anew or found == ["new"] * 4
        outcomes += found == ["old"] * 4
        assert {path.name for path in run.iterdir()} - {"retrain"} == {*DIRECTORIES, "config.toml", "bundles"}
    assert killed > 20
    assert outcomes == (1 if anew else 0), "only before the first step"


def test_figures_of_the_replaced_encoder_are_set_aside_wherever_the_job_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = 0
    while True:
        run, made = run_with_job(tmp_path / f"run{killed}")
        (run / "evaluation.json").write_text("figures")
        try:
            with monkeypatch.context() as patched:
                kill_at(killed, patched)
                adopt(made, run)
        except KeyboardInterrupt:
            killed += 1
        else:
            break
        with run_lock(run):
            new = parts(run) == ["new"] * 4
        assert (run / "evaluation.json").exists() != new
        assert (run / "evaluation-outdated.json").exists() == new
    assert killed > 20
    assert (run / "evaluation-outdated.json").read_text() == "figures"
    assert not (run / "evaluation.json").exists()


def test_the_next_writer_finishes_it_and_a_reader_does_not(tmp_path: Path) -> None:
    run, made = run_with_job(tmp_path / "run")
    made.rename(run / ".adopted")
    with run_lock(run, shared=True):
        assert parts(run) == ["old"] * 4
    with run_lock(run):
        assert parts(run) == ["new"] * 4
    finish_adoption(run)
    assert parts(run) == ["new"] * 4


@pytest.mark.parametrize("command", ["train", "embed"])
def test_a_command_that_reads_the_run_before_it_locks_it_finishes_it_first(tmp_path: Path, command: str) -> None:
    run, made = run_with_job(tmp_path / "run")
    made.rename(run / ".adopted")
    (run / "train").rename(tmp_path / "replaced")  # as a kill leaves it
    result = CliRunner().invoke(app, [command, str(tmp_path / "nowhere"), "--run", str(run)])
    assert "nowhere" in str(result.exception)
    assert parts(run) == ["new"] * 4


def test_a_run_without_those_parts_has_them_afterwards(tmp_path: Path) -> None:
    run, made = run_with_job(tmp_path / "run")
    for name in DIRECTORIES:
        shutil.rmtree(run / name)
    (run / "config.toml").unlink()
    adopt(made, run)
    assert parts(run) == ["new"] * 4
    adopt(made, run)
    assert parts(run) == ["new"] * 4
