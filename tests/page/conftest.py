"""A real service with pictures and hostile titles, and a real Chromium."""

import dataclasses
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build.build import build_bundle
from index.bundle.registry import Registry
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.items.thumbnails import Thumbnails, write_thumbnails
from tests.support.served import CHROMIUM, HOSTILE, Served

_TELL_VIOLATIONS = (
    "addEventListener('securitypolicyviolation', (event) => console.log('policy: ' + event.violatedDirective))"
)


@pytest.fixture(scope="session")
def pictured_registry(tmp_path_factory: pytest.TempPathFactory, small_table: ItemTable, small_encoder: Path) -> Path:
    """The small bundle with a picture of every item but each seventh; items 2 and 12 have hostile titles."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("pictured")
    with write_thumbnails(root / "made.npy", len(small_table)) as writer:
        for row in range(len(small_table)):
            picture = io.BytesIO()
            image.new("RGB", (64, 64), (row * 4, 200 - row * 3, 120)).save(picture, "JPEG")
            writer.add(None if row % 7 == 0 else picture.getvalue())
    titles = small_table.metadata["title"].to_pylist()
    titles[2] = titles[12] = HOSTILE
    place = small_table.metadata.column_names.index("title")
    metadata = small_table.metadata.set_column(place, "title", [titles])
    table = dataclasses.replace(
        small_table, metadata=metadata, thumbnails=Thumbnails.load(root / "made.npy", len(small_table))
    )
    probes = EvaluationQueries(np.array([[1, 2, 4], [10, 11, -1], [20, -1, -1]]), np.array([5, 12, 21]))
    registry = root / "registry"
    Registry(registry).publish(build_bundle(table, small_encoder, probes, root))
    return registry


@pytest.fixture(scope="module")
def served(pictured_registry: Path) -> Iterator[Served]:
    service = Served(pictured_registry)
    yield service
    service.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for one module: while it runs, no other event loop can run in this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, CHROMIUM))), args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page in a profile of its own; a broken policy or an error in a script fails the test at its end."""
    contexts = []
    errors: list[str] = []

    def opened(url: str, *, wait: bool = True, **profile: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **profile}
        contexts.append(browser.new_context(**options))
        contexts[-1].add_init_script(_TELL_VIOLATIONS)
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.text.startswith("policy: ") else None)
        page.goto(url)
        if wait:
            page.locator("#grid .card[data-item]").first.wait_for()
        return page

    opened.errors = errors  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(open_page: Callable[..., Any], served: Served) -> Any:
    return open_page(served.url)
