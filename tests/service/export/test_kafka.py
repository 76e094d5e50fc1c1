"""Exporting to the mock broker of librdkafka: trimmed by acknowledgements, never before."""

import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from service.errors import ExportRefused, KafkaUnavailable, SettingsError
from service.export import kafka_exporter
from service.export.exporter import Exported
from service.export.kafka_exporter import KafkaExporter
from service.export.kafka_topic import KafkaTopic, Record, TopicWriter
from service.settings.secret_files import read_properties
from service.stores.history_keys import bucket_of
from service.stores.protocols import Event, session_owner
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop, some_events
from tests.support.stores.redis_servers import free_port

TOPIC = "events"


class Broker:
    """A mock broker inside this process; it ends with the producer that holds it."""

    def __init__(self) -> None:
        self._holder: Producer | None = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._holder.list_topics(timeout=10).brokers.values()
        self.server = f"{broker.host}:{broker.port}"

    def end(self) -> None:
        self._holder = None
        gc.collect()

    def records(self) -> list[Message]:
        """Everything in the topic, by partition."""
        reader = Consumer({"bootstrap.servers": self.server, "group.id": "test", "enable.partition.eof": True})
        partitions = reader.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
        reader.assign([TopicPartition(TOPIC, number, 0) for number in partitions])
        found, ended = [], 0
        while ended < len(partitions):
            message = reader.poll(10)
            assert message is not None
            if message.error() is None:
                found.append(message)
            else:
                ended += 1
        reader.close()
        return found


@pytest.fixture
def broker() -> Iterator[Broker]:
    started = Broker()
    yield started
    started.end()


async def export(
    shop: Shop,
    server: str,
    *,
    topic: str = TOPIC,
    most: int = 100,
    timeout_s: float = 20.0,
    report: Callable[[str], None] = lambda _text: None,
) -> Exported:
    writer = TopicWriter(KafkaTopic(server, topic), {}, timeout_s=timeout_s, report=report)
    try:
        async with shop.events() as events:
            exporter = KafkaExporter(events, writer, records_per_write=most)
            await exporter.attach()
            return await exporter.export()
    finally:
        writer.close()


def headers(message: Message) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers() or []}


def test_every_event_is_delivered_and_then_trimmed(shop: Shop, broker: Broker) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append(
            [*some_events(250), Event(session_owner("s1"), "x", 1.5, session_id="s1", value=2.5, arm="b")]
        )
        assert await export(shop, broker.server) == Exported(events=251, files=None)
        assert await store.stream() == []
        assert (await export(shop, broker.server)).events == 0

    shop.run(check)
    found = {json.loads(message.value())["item_id"]: message for message in broker.records()}
    assert len(found) == 251
    value = json.loads(found["i5"].value())
    assert found["i5"].key() == b"u5"
    assert headers(found["i5"]) == {"bucket": f"b{bucket_of('u5'):03d}", "stream_id": value["stream_id"]}
    assert value.pop("arrived") == int(value.pop("stream_id").split("-")[0]) / 1000
    sent = {"user_id": "u5", "item_id": "i5", "timestamp": 1_700_000_005.5, "type": "view"}
    assert value == sent | {"event_id": "e5", "request_id": "r5"}
    session = json.loads(found["x"].value())
    assert found["x"].key() == b"\x1fs1"
    assert (session["session_id"], session["value"], session["extra"]) == ("s1", 2.5, {"arm": "b"})


@pytest.mark.slow
def test_records_of_a_user_are_in_order_and_an_erasure_comes_after_what_it_covers(shop: Shop, broker: Broker) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", f"{n}", float(n)) for n in range(7)])
        await export(shop, broker.server, most=3)
        await store.append([Event("anna", "not exported yet", 1.0)])
        await store.erase("anna")
        await store.append([Event("anna", "later", 1.0)])
        done = await export(shop, broker.server, most=3)
        assert (done.events, done.erasures) == (1, 1)

    shop.run(check)
    records = broker.records()
    assert {message.key() for message in records} == {b"anna"}
    values = [message.value() and json.loads(message.value())["item_id"] for message in records]
    assert values == [*"0123456", None, "later"]
    ids = [kafka_exporter.StreamId.parse(headers(message).get("stream_id", "0-0")) for message in records]
    assert ids[6] < kafka_exporter.StreamId.parse(headers(records[7])["erased_until"]) < ids[8]


def test_a_broker_that_is_gone_trims_nothing_and_a_later_one_gets_all(shop: Shop) -> None:
    first, reported = Broker(), list[str]()

    async def check(store: RedisHistories) -> None:
        await store.append(some_events(20))
        await export(shop, first.server)
        await store.append(some_events(20, start=20))
        await store.erase("u1")
        left = len(await store.stream())
        first.end()
        with pytest.raises(KafkaUnavailable, match=r"records for topic 'events' not acknowledged within 1 s"):
            await export(shop, first.server, timeout_s=1.0, report=reported.append)
        assert len(await store.stream()) == left
        async with shop.events() as events:
            assert sum(map(len, (await events.erasures()).values())) == 1
        second = Broker()
        done = await export(shop, second.server)
        assert (done.events, done.erasures) == (left, 1)
        assert await store.stream() == []
        assert len(second.records()) == left + 1

    shop.run(check)
    assert reported
    assert all(first.server in line and line.endswith("; trying again") for line in reported)


class Slow(list[Record]):
    """Records between which seconds pass, as where they are many."""

    def __iter__(self) -> Iterator[Record]:
        for place, record in enumerate(super().__iter__()):
            time.sleep(3.0 if place else 0.0)
            yield record


@contextmanager
def forwarded(port: int, to: str, after_s: float) -> Iterator[None]:
    """Forward a port to a broker; until so many seconds have passed nothing listens there."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)

    def listen() -> None:
        with suppress(OSError):
            listener.bind(("127.0.0.1", port))
            listener.listen()
            while True:
                near = listener.accept()[0]
                host, _, number = to.rpartition(":")
                far = socket.create_connection((host, int(number)))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    listener, ends = socket.socket(), list[socket.socket]()
    timer = threading.Timer(after_s, listen)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for end in (listener, *ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        timer.join(10)


@pytest.mark.slow
def test_a_broker_that_comes_back_late_gets_no_record_before_an_earlier_one(broker: Broker) -> None:
    """The first record is too late when it comes back, and the second one is not: both are sent again, in order."""
    sent = Slow(Record("anna", item, {}) for item in (b"first", b"second"))
    port = free_port()
    at_once = {"reconnect.backoff.ms": "20", "reconnect.backoff.max.ms": "50"}
    writer = TopicWriter(KafkaTopic(f"127.0.0.1:{port}", TOPIC), at_once, timeout_s=4.0, report=lambda _text: None)
    with forwarded(port, broker.server, after_s=5.1):
        with pytest.raises(KafkaUnavailable, match="2 of 2 records"):
            writer.write(sent)
        writer.close()
        later = TopicWriter(KafkaTopic(broker.server, TOPIC), {}, timeout_s=20.0, report=lambda _text: None)
        later.write(list.copy(sent))
        later.close()
    assert [message.value() for message in broker.records()] == [b"first", b"second"]


def test_a_topic_that_is_missing_is_the_reason(broker: Broker) -> None:
    created_by_nobody = {"allow.auto.create.topics": "false"}
    writer = TopicWriter(
        KafkaTopic(broker.server, "other"), created_by_nobody, timeout_s=2.0, report=lambda _text: None
    )
    with pytest.raises(KafkaUnavailable, match=r"topic 'other' .*\(Broker: Unknown topic or partition\)"):
        writer.write([Record("anna", b"x", {})])


def test_a_full_queue_ends_in_time() -> None:
    """Without a broker no record leaves the queue."""
    config = {"queue.buffering.max.messages": "10"}
    writer = TopicWriter(
        KafkaTopic(f"127.0.0.1:{free_port()}", TOPIC), config, timeout_s=0.5, report=lambda _text: None
    )
    began = time.monotonic()
    with pytest.raises(KafkaUnavailable, match=r"100 of 100 records for topic 'events' not acknowledged within 0.5 s"):
        writer.write([Record("anna", b"x", {})] * 100)
    assert time.monotonic() - began < 10.0
    writer.close()


def test_a_problem_is_reported_once_until_records_arrive() -> None:
    """Librdkafka reports a broker that is gone by two lines in turn, at every try."""
    lines = list[str]()
    quick = {"reconnect.backoff.ms": "10", "reconnect.backoff.max.ms": "20"}
    writer = TopicWriter(KafkaTopic(f"127.0.0.1:{free_port()}", TOPIC), quick, timeout_s=1.0, report=lines.append)
    with pytest.raises(KafkaUnavailable):
        writer.write([Record("anna", b"x", {})])
    writer.close()
    assert 1 <= len(lines) <= 3


def test_a_count_of_brokers_that_differs_is_the_same_problem() -> None:
    from confluent_kafka import KafkaError

    lines = list[str]()
    writer = TopicWriter(KafkaTopic("a:1,b:1", TOPIC), {}, timeout_s=1.0, report=lines.append)
    for code, text in [
        (KafkaError._TRANSPORT, "a:1: Connect to a:1 failed: refused (after 0ms in state CONNECT)"),
        (KafkaError._ALL_BROKERS_DOWN, "0/1 brokers are down"),
        (KafkaError._ALL_BROKERS_DOWN, "0/2 brokers are down"),
        (KafkaError._TRANSPORT, "b:1: Connect to b:1 failed: refused (after 0ms in state CONNECT)"),
        (KafkaError._TRANSPORT, "a:1: Connect to a:1 failed: refused (after 5ms in state CONNECT)"),
    ]:
        writer._on_error(KafkaError(code, text))
    assert [line.partition("a:1,b:1: ")[2] for line in lines] == [
        "a:1: Connect to a:1 failed: refused; trying again",
        "0/1 brokers are down; trying again",
        "b:1: Connect to b:1 failed: refused; trying again",
    ]


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize(
    "step",
    ["mark", pytest.param("trim", marks=pytest.mark.slow), pytest.param("erasures_written", marks=pytest.mark.slow)],
)
def test_killed_at_any_step_it_loses_nothing_and_repeats_ids(
    shop: Shop, broker: Broker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def killed(*_arguments: Any) -> None:
        raise Killed

    async def check(store: RedisHistories) -> None:
        await export(shop, broker.server)
        await store.append([Event("anna", "a", 1.0), Event("anna", "b", 2.0)])
        await store.erase("bob")
        with monkeypatch.context() as patched:
            if step != "trim":
                patched.setattr(kafka_exporter.RedisEventExport, step, killed)
            else:
                patched.setattr(kafka_exporter.RedisEventExport, "_trim", killed)
            with pytest.raises(Killed):
                await export(shop, broker.server)
        await export(shop, broker.server)
        assert await store.stream() == []

    shop.run(check)
    records = broker.records()
    ids = [headers(message)["stream_id"] for message in records if message.value() is not None]
    assert len(set(ids)) == 2
    assert len(ids) == (4 if step == "mark" else 2), "what was not marked is repeated under the same ids"
    assert any(message.value() is None and message.key() == b"bob" for message in records)


@pytest.mark.slow
def test_a_topic_and_a_directory_do_not_share_the_events(shop: Shop, broker: Broker) -> None:
    async def check(_store: RedisHistories) -> None:
        await export(shop, broker.server)
        with pytest.raises(ExportRefused, match=r"exported to another directory.*vlm2rec events detach"):
            await shop.export()
        with pytest.raises(ExportRefused, match=r"topic 'other': the events of this Redis are exported to a directory"):
            await export(shop, broker.server, topic="other")

    shop.run(check)


@pytest.mark.slow
def test_of_two_exporters_the_second_stops(shop: Shop, broker: Broker) -> None:
    async def check(store: RedisHistories) -> None:
        writer = TopicWriter(KafkaTopic(broker.server, TOPIC), {}, timeout_s=20.0, report=lambda _text: None)
        await store.append([Event("anna", "a", 1.0)])
        async with shop.events() as events:
            second = KafkaExporter(events, writer, records_per_write=100)
            await second.attach()
            whole = events.entries

            async def others_export_meanwhile(bucket: int, after: str, most: int) -> Sequence[Any]:
                entries = await whole(bucket, after, most)
                await export(shop, broker.server)
                return entries

            events.entries = others_export_meanwhile  # type: ignore[assignment, method-assign]
            with pytest.raises(ExportRefused, match="another exporter exported"):
                await second.export()
        writer.close()
        assert await store.stream() == []

    shop.run(check)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://host/topic",
        "kafka://host:9092",
        "kafka://user:secret@host:9092/topic",
        "kafka://host:9092/a/b",
        "kafka://",
    ],
)
def test_what_is_no_topic_is_refused_without_a_secret_in_the_message(url: str) -> None:
    with pytest.raises(SettingsError, match=r"must be kafka://HOST:PORT/TOPIC") as refused:
        KafkaTopic.parse(url)
    assert "secret" not in str(refused.value)


def test_several_brokers_may_be_named() -> None:
    assert KafkaTopic.parse("kafka://a:1,[::1]:2/shop.events") == KafkaTopic("a:1,[::1]:2", "shop.events")


def test_the_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text("# SASL\nsecurity.protocol = SASL_SSL\n\nsasl.password=a=b\n")
    assert read_properties(path, "--kafka-config") == {"security.protocol": "SASL_SSL", "sasl.password": "a=b"}
    path.write_text("sasl.password a=b\nhunter2\n")
    with pytest.raises(SettingsError, match=r"line 2 of .* must be name=value") as refused:
        read_properties(path, "--kafka-config")
    assert "hunter2" not in str(refused.value)


def test_an_unknown_setting_is_named(broker: Broker) -> None:
    writer = TopicWriter(KafkaTopic(broker.server, TOPIC), {"colour": "red"}, timeout_s=1.0, report=lambda _text: None)
    with pytest.raises(SettingsError, match=r"--kafka-config: No such configuration property: .colour"):
        writer.write([])


def test_the_command_exports_to_a_topic(shop: Shop, broker: Broker, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cli.app import app

    shop.run(lambda store: _stored(store, [Event("anna", "a", 1.0)]))
    config = tmp_path / "kafka.properties"
    config.write_text("linger.ms=1\n")
    target = ["--to", f"kafka://{broker.server}/{TOPIC}", "--kafka-config", str(config), "--redis", shop.url]
    environment = {"VLM2REC_REDIS_PREFIX": shop.prefix}
    done = CliRunner().invoke(app, ["events", "export", *target], env=environment)
    assert (done.exit_code, done.stdout) == (0, "1 events, 0 erasures\n")
    assert [message.key() for message in broker.records()] == [b"anna"]


async def _stored(store: RedisHistories, events: Sequence[Event]) -> None:
    await store.append(events)
