"""Makes a small shop for the fuzzing and the soak: bundles of a made catalogue and a running service.

Four bundles of the same items, built once a size; some items have ids that are hard to put into a path.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bench.index.catalogues import another_night, make_catalogue
from bench.index.encoder import made_encoder
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.encoder_pair import encoder_hash
from index.bundle.gate import Bounds
from index.bundle.index_spec import IndexSpec
from index.bundle.integrity import write_durably
from index.bundle.pointer import POINTER_FILE
from index.bundle.registry import Registry
from index.items.item_ids import ItemIds

ODD_IDS = ("ein Tee/grün", "a%2Fb", "👟", "..", "a b?c#d", "'; DROP TABLE items;--", "é" * 128, "x" * 256)
WORKER_ENDED = '"worker ended"'
"""Part of a log line: a worker process died and is started again."""
_BUNDLES = 4
_PATIENCE_S = 60.0
_LIBC = ctypes.CDLL(None)
_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class Shop:
    """A registry with all bundles, the first of them current.

    Attributes:
        registry: its directory.
        bundles: ids, oldest first.
        items: item ids.
    """

    registry: Path
    bundles: list[str]
    items: list[str]

    def point_to(self, bundle: str) -> None:
        """Move the registry's pointer alone, as publishing would do at its end."""
        pointer = {"format": 1, "current": bundle, "previous": []}
        write_durably(self.registry / POINTER_FILE, json.dumps(pointer).encode())


def open_shop(work: Path, items: int, scratch: Path) -> Shop:
    """The shop of a size in a registry of its own; its bundles are built once.

    Args:
        work: where built bundles are kept between runs.
        items: rows of the catalogue.
        scratch: gets the registry.
    """
    built = _built(work / f"shop-{items}", items)
    registry = Registry(scratch / "registry")
    for bundle in reversed(built):  # so that the pointer ends at the first
        registry.publish(bundle, force=True)
    first = Bundle.load(registry.path(built[0].name))
    return Shop(registry.root, [bundle.name for bundle in built], [first.ids.id(row) for row in range(len(first))])


def _built(home: Path, items: int) -> Sequence[Path]:
    done, encoder = home / "done", made_encoder(home.parent)
    if not done.exists() or done.read_text() != encoder_hash(encoder):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        made = make_catalogue(items, queries=min(200, items))
        names = [*ODD_IDS, *(f"item-{row}" for row in range(len(ODD_IDS), items))]
        for day in range(_BUNDLES):
            print(f"building bundle {day + 1} of {_BUNDLES} with {items:,} items", file=sys.stderr)
            table = replace(another_night(made.table, day), ids=ItemIds(names))
            now = datetime(2026, 1, 1 + day, tzinfo=UTC)
            build_bundle(table, encoder, made.queries, home, IndexSpec(bounds=Bounds(recall=None)), now=now)
        done.write_text(encoder_hash(encoder))
    return sorted(path for path in home.glob("*Z-*") if path.is_dir())


class ServiceDidNotStart(Exception):
    """The service ended, or did not say that it serves; the message has the end of its log."""


class Service:
    """A running `vlm2rec serve` for as long as the context lasts.

    Args:
        registry: of its bundles.
        redis: URL.
        log: file for its log lines.
        witness: file for `bench.faults.watched_service`, which then runs the service; None: it runs alone.
        settings: further ones, as ``VLM2REC_*`` without the prefix.

    Attributes:
        port: where it listens.
        process: to watch.

    Raises:
        ServiceDidNotStart: on entering.
    """

    def __init__(self, registry: Path, redis: str, log: Path, *, witness: Path | None = None, **settings: str) -> None:
        self._log = log
        program = ["cli.main"] if witness is None else ["bench.faults.watched_service", str(witness)]
        self._command = [sys.executable, "-m", *program, "serve", "--registry", str(registry), "--redis", redis]
        own = {"VLM2REC_DIRECTIVES_FILE": str(log.with_suffix(".directives.json")), "VLM2REC_LOG_LEVEL": "error"}
        own["VLM2REC_WORKERS"] = "1"
        given = {f"VLM2REC_{name.upper()}": value for name, value in settings.items()}
        self._variables = {**os.environ, **own, **given}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [*self._command, "--port", "0"],
                env=self._variables,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=_end_with_us,
            )
        line = self.process.stdout.readline().decode()
        found = re.search(r"http://[\d.]+:(\d+)", line)
        if found is None:
            self.__exit__(None, None, None)
            raise ServiceDidNotStart(f"the service did not start: {self.errors()[-3:]}")
        self.port = int(found[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(psutil.Error):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_PATIENCE_S)
        except psutil.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def processes(self) -> list[psutil.Process]:
        """The process, and its workers where it has several."""
        return [self.process, *self.process.children()]

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def errors(self) -> list[str]:
        """The lines of its log: at level error, unless another was set."""
        return self._log.read_text(errors="replace").splitlines()


def _end_with_us() -> None:
    """Runs in the new process: asks the kernel for SIGTERM when the bench is killed (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
