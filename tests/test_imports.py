"""The import contracts at run time: what a process really loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environments import without_coverage

TRAINING_STACK = ["torch", "transformers", "peft", "accelerate", "polars", "sklearn", "onnx"]
ENGINES = ["obstore", "fsspec", "simpy", "pymilvus", "ray", "confluent_kafka"]
"""Of other extras, which the default does without."""


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    return set(printed(code).split())


def printed(code: str) -> str:
    """What a new process prints; nothing but imports is run in it, and each takes a third longer under coverage."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=without_coverage()).stdout


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import service.app", [*TRAINING_STACK, *ENGINES, "jinja2"]),
        ("import service.server", [*TRAINING_STACK, *ENGINES]),
        ("import cli.app", [*TRAINING_STACK, *ENGINES, "faiss", "onnxruntime", "fastapi", "redis", "numpy"]),
        ("import index.bundle.registry, index.bundle.bundle", [*TRAINING_STACK, *ENGINES, "fastapi", "redis"]),
        ("import training.data.dataset", ["torch", "transformers", *ENGINES, "fastapi", "redis", "faiss"]),
    ],
)
def test_loads_nothing_that_it_should_not(statement: str, forbidden: list[str]) -> None:
    loaded = loaded_after(statement)
    assert "index" in loaded or "training" in loaded
    assert loaded.isdisjoint(forbidden), loaded & set(forbidden)


def test_a_service_has_no_use_for_parquet() -> None:
    """By itself it takes 9 MiB."""
    code = "import service.server, sys; print('pyarrow' in sys.modules, 'pyarrow.parquet' in sys.modules)"
    assert printed(code).split() == ["True", "False"]


def test_a_local_registry_needs_no_file_systems() -> None:
    code = "import index.bundle.registry as r, sys; print(r.Registry('bundles').root, 'fsspec' in sys.modules)"
    assert printed(code).split() == [str(Path("bundles").absolute()), "False"]


def test_a_service_starts_without_full_garbage_collections(tmp_path: Path) -> None:
    """They would visit everything that modules made again and again. There is no bundle, so the command ends then."""
    code = f"""
import gc, sys
from cli.main import main
full = []
gc.callbacks.append(lambda phase, info: full.append(phase) if info["generation"] == 2 else None)
sys.argv = ["vlm2rec", "serve", "--registry", {str(tmp_path)!r}, "--workers", "1", "--port", "0"]
try:
    main()
except SystemExit as ended:
    print(ended.code, len(full), "service.server" in sys.modules, gc.isenabled())
"""
    assert printed(code).split() == ["2", "0", "True", "True"]


def test_would_notice_a_forbidden_import() -> None:
    assert "polars" in loaded_after("import training.data.dataset")
