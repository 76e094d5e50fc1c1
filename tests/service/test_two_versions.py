"""Replicas of this version and an earlier one on one Redis and registry: an upgrade and a downgrade under load."""

import http.client
import io
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index.bundle.registry import Registry
from tests.support.processes.service_process import Service
from tests.support.shops import ADMIN, AS_ADMIN, eventually

ROOT = Path(__file__).parents[2]
BEFORE_TAGS = "e386cf5^"  # where there is no release yet: the last revision that reads bundles of format 2 alone


def git(*words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the last release before this commit; the test is skipped where git does not have it."""
    described = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    revision = BEFORE_TAGS if described.returncode else described.stdout.decode().strip()
    archive = git("archive", revision)
    if archive.returncode:
        pytest.skip(f"git has no {revision} here: a shallow clone, or no clone")
    code = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(code, filter="data")
    return code


class Load(threading.Thread):
    """Requests one after another to the replicas in turn; one that refuses connections is passed over, as a proxy does.

    Attributes:
        replicas: those that may be asked.
        failed: every answer that is not good.
        events: number of events that were acknowledged.
        bundles: ids of the bundles that answered.
    """

    def __init__(self, replicas: list[Service]) -> None:
        super().__init__()
        self.replicas = replicas
        self.failed: list[str] = []
        self.answers, self.events = 0, 0
        self.bundles: set[str] = set()
        self._ended = threading.Event()
        self._turn = 0

    def run(self) -> None:
        number = 0
        while not self._ended.is_set():
            user = f"u{number % 5}"
            event = {"user_id": user, "item_id": f"i{10 + number % 40}", "event_id": f"e{number}"}
            if self._ask("POST", "/events", event)["stored"] != 1:
                self.failed.append(f"event {number} was not stored")
            if self._ask("POST", "/events", event)["duplicates"] != 1:  # from the other replica
                self.failed.append(f"event {number} was stored twice")
            self.events += 1
            answer = self._ask("POST", "/recommend", {"user_id": user, "k": 3, "exclude_seen": False})
            if answer["degraded"] is not None or answer["strategy"] != "sequence" or len(answer["items"]) != 3:
                self.failed.append(str(answer))
            self.bundles.add(answer["bundle"])
            newest = self._ask("GET", f"/users/{user}/history")["items"]
            if event["item_id"] not in [item["item_id"] for item in newest]:
                self.failed.append(f"event {number} is not in the history")
            number += 1
            time.sleep(0.005)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        for _ in range(4):
            self._turn += 1
            replicas = self.replicas
            try:
                status, answer, _ = replicas[self._turn % len(replicas)].call(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                if not isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                    self.failed.append(f"{path}: {error!r}")
                continue
            self.answers += 1
            if status != 200:
                self.failed.append(f"{path}: {status} {answer}")
            return answer
        raise AssertionError("no replica answers")

    def go_on(self, answers: int = 60) -> None:
        """Wait for further answers; all must be good."""
        before = self.answers
        eventually(lambda: self.answers >= before + answers or not self.is_alive())
        assert self.is_alive()
        assert self.failed == []

    def end(self) -> None:
        self._ended.set()
        self.join(60)


Start = Callable[..., Service]


@pytest.fixture
def replica(start: Start, redis_url: str, tmp_path: Path, earlier: Path) -> Callable[[bool], Service]:
    """Start a replica of this version or of the earlier one."""
    prefix = f"test-{uuid.uuid4().hex}"

    def begin(is_earlier: bool) -> Service:
        code: dict[str, str | None] = {}
        if is_earlier:  # it has no workers, and refuses settings that it does not know
            code = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(earlier), "VLM2REC_WORKERS": None}
        return start(
            *("--registry", str(tmp_path / "registry"), "--redis", redis_url, "--log-level", "error"),
            **code,
            VLM2REC_REDIS_PREFIX=prefix,
            VLM2REC_REDIS_TIMEOUT_MS="5000",
            VLM2REC_ADMIN_KEYS=ADMIN,
            VLM2REC_POLL_MS="50",
            VLM2REC_ACCESS_LOG="off",
            VLM2REC_DIRECTIVES_FILE=str(tmp_path / f"directives-{uuid.uuid4().hex}.json"),
        )

    return begin


@pytest.fixture
def ended() -> Iterator[list[Load]]:
    begun: list[Load] = []
    yield begun
    for load in begun:
        load.end()


@pytest.mark.slow
def test_an_upgrade_and_a_downgrade_by_one_version_fail_no_request(
    replica: Callable[[bool], Service], day_bundles: list[Path], tmp_path: Path, ended: list[Load]
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(day_bundles[0])
    replicas = [replica(True), replica(True)]
    load = Load(list(replicas))
    ended.append(load)
    load.start()
    load.go_on()

    def replace(place: int, *, is_earlier: bool) -> None:
        """Start the new one, send it requests, take those of the old one away, and end it."""
        old, new = replicas[place], replica(is_earlier)
        eventually(lambda: new.call("GET", "/readyz")[0] == 200)
        replicas[place] = new
        load.replicas = list(replicas)
        load.go_on(20)
        assert old.end()[0] == 0
        load.go_on()

    def everywhere(bundle: str) -> None:
        for service in replicas:
            eventually(lambda service=service: service.call("GET", "/bundle")[1]["bundle"] == bundle)
        load.go_on()

    replace(0, is_earlier=False)  # upgrade, one replica at a time
    headers = {"x_api_key": AS_ADMIN["X-API-Key"]}
    assert replicas[0].call("PUT", "/items/i9/availability", {"available": False}, **headers)[0] == 204
    everywhere(registry.publish(day_bundles[1]))
    replace(1, is_earlier=False)
    everywhere(registry.publish(day_bundles[2]))
    replace(0, is_earlier=True)  # and a downgrade
    everywhere(registry.publish(day_bundles[3]))
    replace(1, is_earlier=True)
    for service in replicas:
        answer = service.call("POST", "/recommend", {"items": ["i1", "i2"], "k": 60})[1]
        assert "i9" not in [item["item_id"] for item in answer["items"]]  # hidden by the version that is gone
    load.end()
    assert load.failed == []
    assert load.bundles == {path.name for path in day_bundles}
    histories = [replicas[0].call("GET", f"/users/u{user}/history")[1]["items"] for user in range(5)]
    assert sum(map(len, histories)) == min(load.events, 5 * 200)
