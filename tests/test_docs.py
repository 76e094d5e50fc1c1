"""The pages list what exists: every setting, every route, every bound, every command, every path."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.app import app
from cli.offline import reindex
from cli.online.index import app as index_commands
from index.bundle.gate import LICENCES_BOUND, Bounds
from service.app import create_app
from service.settings.load import GROUP_OF, Settings, load_settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "adr")]
WRITTEN = [page for page in PAGES if page.name not in {"benchmarks.md", "method-results.md"}]  # a bench makes these
LONGEST_README = 110
LONGEST_LINE = 120


def commands(page: Path) -> Iterator[str]:
    """Each command line of a page's shell blocks, without its comment."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"(^|\s)#.*", "", line).strip()


@pytest.mark.parametrize("name", sorted(GROUP_OF))
def test_every_setting_has_a_row(name: str) -> None:
    field = Settings.model_fields[GROUP_OF[name]].annotation.model_fields[name]
    row = next(line for line in (DOCS / "settings.md").read_text().splitlines() if f"`VLM2REC_{name.upper()}`" in line)
    assert str(field.description) in row


def test_no_setting_is_listed_that_does_not_exist() -> None:
    listed = {
        line.split("`")[1].removeprefix("VLM2REC_").lower()
        for line in (DOCS / "settings.md").read_text().splitlines()
        if line.startswith("| `VLM2REC_")
    }
    assert listed == {*GROUP_OF, "config"}


def test_every_route_is_documented(tmp_path: Path) -> None:
    page = (DOCS / "http.md").read_text()
    paths = create_app(load_settings(registry=str(tmp_path))).openapi()["paths"]
    assert paths
    for path in paths:
        shown = path.replace("{user_id}", "{id}").replace("{item_id}", "{id}")
        assert f"`{shown}`" in page or f" {shown}`" in page, path


def test_every_bound_has_a_row_and_is_offered() -> None:
    rows = [line for line in (DOCS / "bundles.md").read_text().splitlines() if line.startswith("| `")]
    shown = " ".join(CliRunner().invoke(index_commands, ["build", "--help"], env={"COLUMNS": "300"}).stdout.split())
    for bound in fields(Bounds):
        name = LICENCES_BOUND if bound.name == "licences" else bound.name
        assert any(f"`{name}`" in row or f"`{name}.SLOT`" in row for row in rows), name
        assert name in shown, name


def test_every_option_and_exit_code_of_the_nightly_job_is_documented() -> None:
    page = (DOCS / "reindex.md").read_text()
    options = {
        flag for option in get_command(app).commands["reindex"].params for flag in option.opts if flag[:2] == "--"
    }
    assert options >= {"--run", "--dry-run"}
    for option in options:
        assert f"`{option}" in page, option
    for name, code in vars(reindex).items():
        if name.startswith("_EXIT_"):
            assert f"\n| {code} | " in page, name


def test_every_invariant_names_tests_that_exist() -> None:
    lines = (ROOT / "docs/invariants.md").read_text().splitlines()
    rows = [line for line in lines if "`tests/" in line and "|" in line]
    assert len(rows) >= 8
    for row in rows:
        file = ""
        for named in re.findall(r"`((?:tests/[\w/]+\.py)?::\w+)`", row):
            file, test = (named.split("::")[0] or file), named.split("::")[1]
            assert f"def {test}(" in (ROOT / file).read_text(), named


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    defined = {test for file in files for test in re.findall(r"def (test_\w+)\(", file.read_text())}
    text = page.read_text()
    assert set(re.findall(r"\b(test_\w+\.py)", text)) <= {file.name for file in files}
    assert set(re.findall(r"::(test_\w+)", text)) <= defined


def test_the_architecture_names_every_room() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for package in ("index", "service", "training"):
        part = page[page.index(f"| `{package}/` |") :].split("\n\n")[0]
        rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert set(re.findall(r"`(\w+)/`", part)) - {package} == rooms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        words = shlex.split(line)
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        elif words[:1] == ["vlm2rec"]:
            command: Any = get_command(app)
            while hasattr(command, "commands"):
                words = words[1:]
                assert words[0] in command.commands, line
                command = command.commands[words[0]]
            known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path) -> None:
    text = re.sub(r"^```.*?^```|<!--.*-->.*?<!--.*-->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:\.ci|bench|cli|demo|docs|index|ops|service|tests|training)/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
    linked = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []
