"""Installs each peer's pinned environment under bench/.venvs, again when its list changes."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

_HERE = Path(__file__).parents[1]
_STAMP = ".installed"


class CannotInstall(Exception):
    """A peer's packages cannot be installed; the message says why."""


def python_for(peer: str) -> Path:
    """The interpreter of a peer; its environment is made first if it is missing or outdated.

    Raises:
        CannotInstall: pip fails.
    """
    listed = _HERE / "requirements" / f"{peer}.txt"
    home = _HERE / ".venvs" / peer
    python = home / "bin" / "python"
    digest = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    stamp = home / _STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return python
    venv.create(home, clear=True, with_pip=True)
    ran = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--requirement", listed],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if "ERROR" in line]
        raise CannotInstall((lines or ran.stderr.splitlines() or ["pip failed"])[-1])
    stamp.write_text(digest)  # last, so that an install which was broken off is done again
    return python
