"""A real service with pictures and hostile titles, and a real Chromium that looks at it."""

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build import build_bundle
from index.item_table import ItemTable
from index.probes import Probes
from index.registry import Registry
from index.thumbnails import Thumbnails, write_thumbnails

HOSTILE = '<img src=x onerror="window.hacked = 1"> \'</script>'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = Path(__file__).parents[2] / ".screenshots"


class Served:
    """A running `vlm2rec serve`; may be ended and begun again at the same address."""

    def __init__(self, registry: Path, **environment: str) -> None:
        self._registry = registry
        self._environment = {**os.environ, "VLM2REC_ACCESS_LOG": "off", "VLM2REC_LOG_LEVEL": "error", **environment}
        self._port = "0"
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(self._registry), "--port", self._port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        assert self._process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", self._process.stdout.readline())
        assert found is not None
        self._port = found[1]
        self.url = f"http://127.0.0.1:{self._port}/"

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=20)


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
    probes = Probes(np.array([[1, 2, 4], [10, 11, -1], [20, -1, -1]]), np.array([5, 12, 21]))
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
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page in a profile of its own; a broken policy or an error in a script fails the test at its end."""
    contexts = []
    troubles: list[str] = []

    def opened(url: str, *, wait: bool = True, **profile: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **profile}
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(url)
        if wait:
            page.locator("#grid .card[data-item]").first.wait_for()
        return page

    opened.troubles = troubles  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def page(open_page: Callable[..., Any], served: Served) -> Any:
    return open_page(served.url)
