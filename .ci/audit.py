#!/usr/bin/env python3
"""Hold every pinned version to the known vulnerabilities, by pip-audit and PyPI's advisories.

Exit codes: 0 none is known; 1 something is found; 3 not audited, wholly or in part, because the advisory service or
pip-audit itself could not be reached. Only standard library: it runs before anything is installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, NamedTuple

CLEAN, FOUND, NOT_AUDITED = 0, 1, 3
PIP_AUDIT = "pip-audit==2.10.1"
TIMEOUT_S = 300
UNREACHABLE = "not audited: the advisory service cannot be reached"


class Verdict(NamedTuple):
    """What an audit came to: the exit code, and the lines that say why."""

    code: int
    lines: list[str]


def pins_of(constraints: str) -> list[str]:
    """The pinned versions of a constraints file, without local parts such as `+cpu`, which no advisory names."""
    lines = (line.split("#", 1)[0].strip() for line in constraints.splitlines())
    return [line.partition("+")[0] for line in lines if "==" in line]


def judge(report: dict[str, Any], pins: list[str]) -> Verdict:
    """Judge pip-audit's report in JSON.

    Args:
        report: what it wrote.
        pins: what it was asked about, as `name==version`.
    """
    dependencies = report.get("dependencies", [])
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in dependencies
        for flaw in package.get("vulns", ())
    ]
    if found:
        return Verdict(FOUND, [f"{len(found)} known vulnerabilities:", *found])
    audited = [package["name"] for package in dependencies if "skip_reason" not in package]
    if not audited:
        return Verdict(NOT_AUDITED, [UNREACHABLE])
    if len(audited) < len(pins):
        left = sorted(package["name"] for package in dependencies if "skip_reason" in package)
        return Verdict(NOT_AUDITED, [f"not audited: {len(pins) - len(audited)} of {len(pins)} packages", *left])
    return Verdict(CLEAN, [f"no known vulnerability in {len(pins)} packages"])


def audit(pins: list[str], program: Path) -> Verdict:
    """Ask pip-audit about pinned versions."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins) + "\n")
        file.flush()
        asked = [str(program), "-r", file.name, "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off"]
        try:
            ran = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            return judge(json.loads(ran.stdout), pins)
        except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError):
            return Verdict(NOT_AUDITED, [UNREACHABLE])


def installed(environment: Path) -> Path | None:
    """Path of pip-audit in an environment of its own, made where it is missing; None where that fails."""
    program = environment / "bin" / "pip-audit"
    if not program.exists():
        venv.create(environment, with_pip=True)
        install = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--retries", "1", PIP_AUDIT]
        try:
            subprocess.run(install, timeout=TIMEOUT_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
    return program


def main() -> int:
    """Audit, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("--environment", type=Path, default=Path(".audit"))
    chosen = parser.parse_args()
    program = installed(chosen.environment)
    if program is None:
        verdict = Verdict(NOT_AUDITED, [f"not audited: {PIP_AUDIT} cannot be installed"])
    else:
        verdict = audit(pins_of(chosen.constraints.read_text()), program)
    sys.stdout.write("audit: " + "\n  ".join(verdict.lines) + "\n")
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
