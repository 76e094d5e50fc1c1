"""Every panel's query, asked of a real Prometheus that scraped the real service under a little load."""

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index.bundle.registry import Registry
from tests.support.promql import DASHBOARDS, OPS, queries
from tests.support.shops import with_file

pytestmark = [pytest.mark.slow, pytest.mark.program("prometheus")]


def call(url: str, body: Any = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def eventually(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := what():
                return found
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def some_load(url: str, item: str, rounds: int) -> None:
    """Answers of every strategy, events, an unknown item, an unknown path."""
    for turn in range(rounds):
        events = [{"user_id": f"user-{turn % 7}", "item_id": item, "event_id": f"{item}-{turn}"}]
        call(f"{url}/events", {"events": events})
        answer = call(f"{url}/recommend", {"user_id": f"user-{turn % 7}", "k": 5})
        shown = {"user_id": f"user-{turn % 7}", "item_id": answer["items"][turn % 5]["item_id"]}
        for kind in ("impression", "click", "purchase"):
            call(f"{url}/events", {**shown, "type": kind, "value": 9.5, "request_id": answer["request_id"]})
        call(f"{url}/recommend", {"user_id": "nobody"})
        call(f"{url}/recommend", {"items": [item, "gone"], "k": 5})
        call(f"{url}/similar", {"item_id": item})
        with pytest.raises(urllib.error.HTTPError, match="404"):
            call(f"{url}/nothing-here")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that has scraped a service through load and a swap."""
    folder = tmp_path_factory.mktemp("prometheus")
    with tarfile.open(OPS / "demo-bundle" / "bundle.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    registry = Registry(folder / "bundles")
    registry.publish(folder / "bundle")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve = [
        sys.executable,
        "-m",
        "cli.main",
        "serve",
        "--embedded-redis",
        "--workers",
        "1",
        "--port",
        "0",
        "--registry",
    ]
    with running(
        *serve, str(registry.root), VLM2REC_POLL_MS="50", VLM2REC_RECALL_CHECK_CPU="0.5", VLM2REC_OUTCOMES="true"
    ) as service:
        assert service.stdout is not None
        (url,) = re.findall(r"http://[\d.]+:\d+", service.stdout.readline())[:1]
        scrape = {"job_name": "vlm2rec", "static_configs": [{"targets": [url.removeprefix("http://")]}]}
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": [scrape]}
        config["rule_files"] = [str(OPS / "prometheus" / "rules" / "*.yml")]
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        asked = f"http://127.0.0.1:{port}"
        options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb")
        with running("prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"):
            eventually(lambda: series(asked, 'up{job="vlm2rec"} == 1'))
            some_load(url, "item-00001", 20)
            changed = registry.publish(with_file(folder / "bundle", folder, "report.html", b"<p>another one"))
            eventually(lambda: call(f"{url}/bundle")["bundle"] == changed)
            for _ in range(6):  # rates need two scrapes with counts between them
                some_load(url, "item-00002", 10)
                time.sleep(1)
            eventually(lambda: series(asked, "vlm2rec_recall"))
            eventually(lambda: series(asked, 'vlm2rec_slot_share{slot="image"}'))
            yield asked


def series(url: str, query: str) -> list[float]:
    """Values that are finite."""
    answer = call(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    assert answer["status"] == "success"
    return [value for row in answer["data"]["result"] if math.isfinite(value := float(row["value"][1]))]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_data(prometheus: str, dashboard: Path) -> None:
    empty = []
    for title, query in queries(dashboard):
        asked = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        assert "$" not in asked
        if not series(prometheus, asked):
            empty.append((title, asked))
    assert empty == []


def test_every_rule_is_evaluated(prometheus: str) -> None:
    groups = call(f"{prometheus}/api/v1/rules")["data"]["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert len(health) >= 24
    assert set(health.values()) == {"ok"}
    assert series(prometheus, "job:vlm2rec_requests:rate5m")[0] > 0
    assert series(prometheus, "job:vlm2rec_errors:ratio_rate5m") == [0.0]
