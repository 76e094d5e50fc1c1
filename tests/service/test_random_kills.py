"""Exporter, service and Redis are killed at random while clients send events and ask for recommendations.

Redis has `appendfsync always`, so it forgets nothing that it has answered. Events are promised without exception.
Outcomes are promised as docs/adr/0031 says: at most once for an answer and an item; counted, unless Redis is down
meanwhile or the service is killed within a second.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import redis

from demo.embedded_redis import EmbeddedRedis
from service.outcomes.counts import group_of
from service.stores.history_keys import BUCKETS, bucket_of, stream_key
from service.stores.outcomes.answer_records import HEAD, MARK_OF
from tests.support.processes.visitors import MOST_PURCHASES, Purchase, Visitor
from tests.support.served import Served, children
from tests.support.shops import ADMIN, eventually
from tests.support.stores.exports import Shop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux"),
]

EXPERIMENT = {"arms": [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "defaults": {"diversity": 0.2}}]}
SETTINGS = {
    "VLM2REC_OUTCOMES": "true",
    "VLM2REC_ADMIN_KEYS": ADMIN,
    "VLM2REC_HISTORY_CAP": "10000",
    "VLM2REC_IMPRESSIONS_CAP": "10000",
    "VLM2REC_EVENT_IDS_CAP": "10000",
    "VLM2REC_REDIS_TIMEOUT_MS": "5000",  # of a busy machine; a killed Redis refuses connections at once
}
CLIENTS = 3
BUSY_S = 1.0  # an event is attributed within milliseconds; a busy machine may take longer
FLUSHED_S = 3.0  # counts are stored once a second
RECOVERED_S = 2.0  # until every process has found out that Redis answers again


@dataclass
class Kills:
    """What was killed when, in monotonic seconds.

    Attributes:
        service: moments at which the service, or a worker of it, was killed.
        outages: of Redis, from the kill until every process has found it again.
    """

    service: list[float] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)

    def promises(self, bought: Purchase) -> bool:
        """Whether a purchase must be counted."""
        attributed_at = bought.acknowledged_at + BUSY_S
        outages = [(start, end) for start, end in self.outages if end > bought.asked_at]
        if not bought.same_connection or any(start < attributed_at for start, _ in outages):
            return False
        flushed = attributed_at + FLUSHED_S
        for start, end in outages:  # counts wait until Redis has answered for a while
            if start < flushed:
                flushed = end + FLUSHED_S
        return not any(bought.asked_at <= killed < flushed for killed in self.service)


class Processes:
    """Redis, service and exporter, which can be killed and come back.

    Args:
        directory: of their files.
        registry: of the service.
        chosen: chooses worker numbers.
    """

    def __init__(self, directory: Path, registry: Path, chosen: random.Random) -> None:
        self.redis = EmbeddedRedis(directory / "redis", append_only=True, fsync_always=True)
        self.redis.start()
        self.shop = Shop(self.redis.url, directory / "export", "vlm2rec")
        variables = {**SETTINGS, "VLM2REC_REDIS_URL": self.redis.url}
        self.service = Served(registry, **variables, VLM2REC_DIRECTIVES_FILE=str(directory / "directives.json"))
        self.exporter = self._exporter()
        self.kills = Kills()
        self._chosen = chosen
        self._workers = 1

    def kill_exporter(self) -> None:
        self.exporter.kill()
        self.exporter.wait()
        self.exporter = self._exporter()

    def kill_redis(self) -> None:
        start = time.monotonic()
        self.redis.kill()
        threading.Event().wait(1.5 * self._chosen.random())  # counts are to be stored meanwhile
        self.redis.start()
        self.kills.outages.append((start, time.monotonic() + RECOVERED_S))

    def kill_service(self) -> None:
        """Kill one of two workers, or the service, which comes back with one or two workers."""
        self.kills.service.append(time.monotonic())
        if self._workers == 2 and self._chosen.random() < 0.5:
            os.kill(self._chosen.choice(sorted(children(self.service.pid))), SIGKILL)
            return
        self.service.kill()
        self._workers = self._chosen.choice([1, 2])
        self.service.begin(VLM2REC_WORKERS=str(self._workers))

    def attributed(self, visitor: Visitor) -> list[Purchase]:
        """Purchases of a visit that are attributed, and most probably not stored in the counts yet."""
        before = len(visitor.purchases)
        while not (bought := visitor.purchases[before:]):  # the connection may be of a killed process
            visitor.visit()
        eventually(lambda: self._conversions(bought[0].user) == len(bought))
        return bought

    def counts(self) -> dict[int, dict[str, Any]]:
        """What was counted, by group of users."""
        groups = self.call("GET", "/experiments/kills/groups")["groups"]
        by_group = {entry["group"]: entry for entry in groups}
        assert len(by_group) == len(groups), "a user is in two arms"
        return by_group

    def has_counted(self, bought: Iterable[Purchase]) -> bool:
        """Whether all of these are counted, and the service says so."""
        try:
            counts = self.counts()
        except OSError:
            return False
        return all(digits(counts.get(group_of(one.user), {}))[one.digit] for one in bought)

    def _conversions(self, user: str) -> int:
        """Items of a user's newest answer that were bought, by the marks in Redis."""
        with redis.Redis.from_url(self.redis.url) as client:
            record = client.hget(f"vlm2rec:{{b{bucket_of(user):03d}}}:answers", user)
        if record is None:
            return 0
        size, *_, items, context = HEAD.unpack_from(record)
        marks = record[HEAD.size + context + 3 * items : size]
        return sum(mark & MARK_OF["conversion"] > 0 for mark in marks)

    def wait_for_files(self, more_than: int) -> int:
        """Wait until the exporter has written files again; returns how many there are."""
        found = eventually(lambda: max(0, len(list(self.shop.root.glob("day=*/*.parquet"))) - more_than))
        assert self.exporter.poll() is None, "the exporter ended by itself"
        return int(found) + more_than

    def call(self, method: str, path: str, body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "x-api-key": ADMIN}
        request = urllib.request.Request(f"{self.service.url[:-1]}{path}", sent, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def end(self) -> None:
        self.exporter.kill()
        self.exporter.wait()
        self.service.kill()
        self.redis.close()

    def _exporter(self) -> "subprocess.Popen[bytes]":
        options = ("--to", str(self.shop.root), "--redis", self.shop.url, "--follow", "--max-age-s", "0")
        command = [sys.executable, "-m", "cli.main", "events", "export", *options, "--rows-per-file", "20"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def users_of_different_groups() -> list[str]:
    """A user for each group of users, so that the counts of a group are those of a user."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < 256:
        found.setdefault(group_of(f"u{number}"), f"u{number}")
        number += 1
    return list(found.values())


@pytest.fixture
def chosen() -> random.Random:
    return random.Random(20)


@pytest.fixture
def processes(tmp_path: Path, small_registry: Path, chosen: random.Random) -> Iterator[Processes]:
    started = Processes(tmp_path, small_registry, chosen)
    try:
        yield started
    finally:
        started.end()


def test_twenty_random_kills_lose_and_double_nothing(processes: Processes, chosen: random.Random) -> None:
    port = int(processes.service.url.rpartition(":")[2].strip("/"))
    users = users_of_different_groups()
    witness, *others = visitors = [Visitor(port, users[n::CLIENTS], seed=n) for n in range(CLIENTS)]
    processes.call("PUT", "/experiments/kills", EXPERIMENT)
    for visitor in others:
        visitor.start()
    kills = [processes.kill_exporter, processes.kill_service, processes.kill_redis] * 7
    kills.pop()
    chosen.shuffle(kills)
    files, unflushed, flushed = 0, list[Purchase](), list[Purchase]()
    try:
        for kill in kills:
            if unflushed and chosen.random() < 0.5:
                eventually(lambda: processes.has_counted(unflushed))  # noqa: B023 - called at once
                flushed += unflushed
            files = processes.wait_for_files(files)
            threading.Event().wait(2 * chosen.random())
            unflushed = processes.attributed(witness) if kill == processes.kill_redis else []
            kill()
    finally:
        for visitor in others:
            visitor.ended.set()
            visitor.join()
        for visitor in visitors:
            visitor.close()
    assert [visitor.failure for visitor in visitors] == [None] * CLIENTS
    processes.exporter.terminate()
    assert processes.exporter.wait(60) == 0
    check_events(processes, visitors)
    processes.service.end()  # what waits is counted
    processes.service.begin()
    bought = [one for visitor in others for one in visitor.purchases]
    promised = [one for one in bought if processes.kills.promises(one)]
    assert len(promised) > 10  # the faster the machine, the closer the kills lie
    assert len(flushed) > 3
    check_outcomes(processes, visitors, promised + flushed)


def check_events(processes: Processes, visitors: Iterable[Visitor]) -> None:
    """Every event is in the export once, as it was sent, and in the history or among the impressions of its user."""
    asyncio.run(processes.shop.export())
    with redis.Redis.from_url(processes.redis.url) as client:
        assert not any(client.xlen(stream_key("vlm2rec", bucket)) for bucket in range(BUCKETS))
        assert not list(client.scan_iter("*:stream_ids:*"))
    sent = {event["event_id"]: event for visitor in visitors for event in visitor.events}
    owners = {event_id: owner for visitor in visitors for event_id, owner in visitor.owners.items()}
    rows = [row for row in processes.shop.rows() if row["type"] != "merge"]  # merges of sessions are no events
    assert len(sent) > 500
    assert Counter(row["event_id"] for row in rows) == Counter(sent.keys())
    for row in rows:
        event = sent[row["event_id"]]
        assert row["user_id"] == owners[row["event_id"]]
        assert {name: row[name] for name in event if name != "user_id"} == {
            name: value for name, value in event.items() if name != "user_id"
        }
    for visitor in visitors:
        for path, wanted in (("history", visitor.histories), ("impressions", visitor.impressions)):
            for user, items in wanted.items():
                found = processes.call("GET", f"/users/{user}/{path}")["items"]
                assert [entry["item_id"] for entry in found] == items, (user, path)


def check_outcomes(processes: Processes, visitors: Iterable[Visitor], promised: Iterable[Purchase]) -> None:
    """No outcome is counted twice, and each that is promised is counted."""
    groups = processes.counts()
    counted = {user: groups.get(group_of(user), {}) for visitor in visitors for user in visitor.asked}
    for visitor in visitors:
        for user, asked in visitor.asked.items():
            assert counted[user].get("answers", 0) <= asked
            assert set(digits(counted[user])) <= {0, 1}, user
            for measure in ("impressions", "clicks", "conversions"):
                assert counted[user].get(measure, 0) <= len(visitor.pairs[user, measure]), (user, measure)
    for bought in promised:
        assert digits(counted[bought.user])[bought.digit] == 1, bought
    check_dimensions(processes, groups.values())


def digits(counts: Mapping[str, Any]) -> list[int]:
    """How often each purchase of a user was counted, by the exponent of its value."""
    thousandths = round(counts.get("revenue", 0.0) * 1000)
    return [thousandths // 4**digit % 4 for digit in range(MOST_PURCHASES)]


def check_dimensions(processes: Processes, groups: Iterable[dict[str, Any]]) -> None:
    """Counts of a second are stored as a whole, so all dimensions have the same sums."""
    for measure in ("conversions", "clicks", "impressions", "revenue"):
        of_groups = sum(entry.get(measure, 0) for entry in groups)
        for by in ("arm", "position", "bundle", "strategy", "slot"):
            entries = processes.call("GET", f"/outcomes?by={by}")["outcomes"]
            assert sum(entry[measure] for entry in entries) == pytest.approx(of_groups), (by, measure)
