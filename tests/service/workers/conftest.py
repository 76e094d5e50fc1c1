"""A parent process of workers that runs in the tests' own."""

import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from structlog import get_logger

from service.settings.load import load_settings
from service.settings.worker_place import WorkerPlace
from service.workers.supervisor import Supervisor


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Supervisor]:
    """A parent of two workers that are not started."""
    settings = load_settings(registry="r", workers=2, drain_s=60)
    places = [WorkerPlace(number=number, count=2, directory=tmp_path) for number in (1, 2)]
    with socket.socket() as one, socket.socket() as two:
        made = Supervisor(
            settings, [settings.for_worker(place) for place in places], [one, two], log=get_logger(), ready=list
        )
        yield made
        for end in chain.from_iterable(made._inboxes):
            end.close()
