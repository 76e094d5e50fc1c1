"""The audit of pinned versions: what counts as a finding, and what as not audited."""

import importlib.util
import json
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


audit = load()
PINS = ["jinja2==3.1.2", "idna==3.6"]
SKIPPED = {"name": "idna", "skip_reason": "Dependency not found on PyPI and could not be audited: idna (3.6)"}
CLEAN = {"name": "jinja2", "version": "3.1.2", "vulns": []}
FLAWED = {
    "name": "jinja2",
    "version": "3.1.2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.3"], "aliases": [], "description": "bad"}],
}


@pytest.mark.parametrize(
    ("dependencies", "code", "line"),
    [
        ([CLEAN, {**CLEAN, "name": "idna"}], 0, "no known vulnerability in 2 packages"),
        ([FLAWED, {**CLEAN, "name": "idna"}], 1, "1 known vulnerabilities:"),
        ([FLAWED, SKIPPED], 1, "1 known vulnerabilities:"),
        ([CLEAN, SKIPPED], 3, "not audited: 1 of 2 packages"),
        ([CLEAN], 3, "not audited: 1 of 2 packages"),
        ([{**SKIPPED, "name": "jinja2"}, SKIPPED], 3, "not audited: the advisory service cannot be reached"),
        ([], 3, "not audited: the advisory service cannot be reached"),
    ],
)
def test_verdicts(dependencies: list[dict[str, Any]], code: int, line: str) -> None:
    verdict = audit.judge({"dependencies": dependencies, "fixes": []}, PINS)
    assert (verdict.code, verdict.lines[0]) == (code, line)


def test_a_finding_names_package_flaw_and_fix() -> None:
    assert audit.judge({"dependencies": [FLAWED]}, PINS).lines[1] == "jinja2 3.1.2: PYSEC-1, fixed in 3.1.3"


@pytest.mark.parametrize("script", ["echo Traceback >&2; exit 1", "echo not json; exit 0", "exit 0"])
def test_a_pip_audit_that_fails_is_no_clean_bill(tmp_path: Path, script: str) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)
    assert audit.audit(PINS, program).code == 3
    assert audit.audit(PINS, tmp_path / "nowhere").code == 3


def test_it_is_asked_about_every_pin(tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    report = json.dumps({"dependencies": [CLEAN, {**CLEAN, "name": "idna"}]})
    program.write_text(f"#!/bin/sh\ncp \"$2\" {tmp_path}/asked\necho '{report}'\n")
    program.chmod(stat.S_IRWXU)
    assert audit.audit(PINS, program).code == 0
    assert (tmp_path / "asked").read_text().split() == PINS


def test_the_pins_are_those_of_the_constraints() -> None:
    assert audit.pins_of("# a==1\ntorch==2.9.0+cpu\njinja2==3.1.2  # why\n\n") == ["torch==2.9.0", "jinja2==3.1.2"]
    pins = audit.pins_of((ROOT / "constraints" / "cpu.txt").read_text())
    assert len(pins) > 50
    assert any(pin.startswith("fastapi==") for pin in pins)
