"""Stores measurements in one JSON file, one at a time, so that a run can stop at any moment and continue."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bench.serving.results import ServingResults

_FORMAT = 2


class Measurements:
    """The measurements of one run.

    Args:
        path: the file; what it holds already is kept.
        settings: of the run; a file of a run with others is not gone on with.
        fresh: begin anew, whatever the file holds.

    Raises:
        SystemExit: the file is of another run.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, fresh: bool) -> None:
        self.path = path
        about = {"format": _FORMAT, "settings": json.loads(json.dumps(settings)), "machine": machine()}
        found = {} if fresh or not path.exists() else json.loads(path.read_text())
        if found.get("format") == _FORMAT and any(found[name] != about[name] for name in about):
            raise SystemExit(f"{path} is of a run with other settings or on another machine; begin anew with --fresh")
        measured = found.get("measurements", {}) if found.get("format") == _FORMAT else {}
        self._all: dict[str, Any] = about | {"measurements": measured}

    def __contains__(self, key: object) -> bool:
        """Whether a measurement is stored; a failed one is measured again."""
        found = self._all["measurements"].get(key)
        return found is not None and "failed" not in found

    def was_tried(self, key: str) -> bool:
        """Whether a measurement is stored, or the reason why it failed."""
        return key in self._all["measurements"]

    def __getitem__(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._all["measurements"][key]
        return found

    def forget(self, stage: str) -> None:
        """Drop the measurements of a stage, so that they are made again; the file is rewritten at the next one."""
        kept = {key: found for key, found in self._all["measurements"].items() if key.partition("/")[0] != stage}
        self._all["measurements"] = kept

    def is_of_today(self, stage: str) -> bool:
        """Whether all measurements of a stage were made today and on the commit that is checked out."""
        found = [one for key, one in self._all["measurements"].items() if key.partition("/")[0] == stage]
        today, now = time.strftime("%Y-%m-%d", time.gmtime()), commit().rstrip("+")
        return all(one["at"][:10] == today and one["commit"].rstrip("+") == now for one in found)

    def read(self) -> ServingResults:
        """The measurements so far, for medians and ratios."""
        return ServingResults(self._all)

    def put(self, key: str, measured: Mapping[str, Any], *, took_s: float) -> None:
        """Store a measurement at once, with the commit and how busy the machine was."""
        about = {
            "took_s": round(took_s, 1),
            "commit": commit(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "load_average": round(os.getloadavg()[0], 2),
        }
        self._all["measurements"][key] = rounded(measured) | about
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.part")
        partial.write_text(json.dumps(self._all, indent=1, ensure_ascii=False) + "\n")
        partial.replace(self.path)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": (models or [platform.machine()])[0],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit checked out, with a + when files differ from it other than pages and results, which a bench writes."""
    ran = _git("rev-parse", "--short", "HEAD")
    if ran.returncode:
        return "unknown"
    differs = _git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)bench/results", ":(top,exclude)docs")
    return ran.stdout.strip() + ("+" if differs.returncode else "")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def rounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Numbers with six digits, so that the file stays readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value
