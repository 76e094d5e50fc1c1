"""Writes records to a Kafka topic; a record counts once Kafka has acknowledged it."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from service.errors import KafkaUnavailable, SettingsError

if TYPE_CHECKING:
    from confluent_kafka import Message, Producer

_URL: Final = re.compile(
    r"(?i:kafka)://(?P<servers>[\w.\-\[\]:]+:[0-9]+(?:,[\w.\-\[\]:]+:[0-9]+)*)/(?P<topic>[A-Za-z0-9._-]{1,249})"
)
_FULL_QUEUE_S: Final = 0.1
_SILENT: Final = logging.getLogger("vlm2rec.kafka")


def is_kafka_url(url: str) -> bool:
    """Whether a place of an export is meant as the URL of a topic, well-formed or not."""
    return url[:6].lower() == "kafka:"


class Record(NamedTuple):
    """A record of a topic.

    Attributes:
        key: decides the partition, so records of one key stay in order.
        value: None for an erasure.
        headers: by name.
    """

    key: str
    value: bytes | None
    headers: Mapping[str, str]


class KafkaTopic(NamedTuple):
    """Where records go.

    Attributes:
        servers: addresses of brokers to begin with, separated by commas.
        topic: name of the topic.
    """

    servers: str
    topic: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``kafka://host:port/topic``; several brokers are separated by commas.

        Raises:
            SettingsError: the URL has another form; the message does not quote it, as it may hold a password.
        """
        found = _URL.fullmatch(url)
        if found is None:
            raise SettingsError(
                "--to must be kafka://HOST:PORT/TOPIC, several brokers separated by commas, without user and password; "
                "name a file with them by --kafka-config"
            )
        return cls(found["servers"], found["topic"])


class TopicWriter:
    """An idempotent producer of one topic. Connects with the first records, and anew after a failure.

    Args:
        target: brokers and topic.
        config: further settings of librdkafka; brokers, idempotence and time of delivery are set here.
        timeout_s: seconds in which records must be acknowledged.
        report: gets a line whenever librdkafka reports another problem, which it goes on to retry.

    Raises:
        SettingsError: confluent-kafka is not installed.
    """

    def __init__(
        self, target: KafkaTopic, config: Mapping[str, str], *, timeout_s: float, report: Callable[[str], None]
    ) -> None:
        try:
            import confluent_kafka  # noqa: F401 - missing, it is reported before anything is read
        except ImportError:
            raise SettingsError("an export to Kafka needs the extra kafka: pip install 'vlm2rec[kafka]'") from None
        self.target = target
        self._config = config
        self._timeout_s = timeout_s
        self._report = report
        self._reported = ""
        self._producer: Producer | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Write records, and wait until all are acknowledged.

        Raises:
            KafkaUnavailable: one is not; others may have arrived.
            SettingsError: librdkafka refuses a setting.
        """
        from confluent_kafka import KafkaException

        acknowledged, failures = 0, list[str]()

        def delivered(error: Any, _message: "Message") -> None:  # noqa: ANN401 - a KafkaError or None
            nonlocal acknowledged
            if error is None:
                acknowledged += 1
            else:
                failures.append(error.str())

        producer = self._connected()
        try:
            for record in records:
                self._produce(producer, record, delivered)
            producer.flush(self._timeout_s + 1)
        except KafkaException as error:
            failures.append(error.args[0].str())
        if acknowledged < len(records):
            self.close()
            reason = failures[0] if failures else self._reported or "no answer"
            raise KafkaUnavailable(
                f"{self.target.servers}: {len(records) - acknowledged:,} of {len(records):,} records for topic "
                f"{self.target.topic!r} not acknowledged within {self._timeout_s:g} s ({reason}); they stay in Redis"
            )
        self._reported = ""

    def close(self) -> None:
        """Drop what is not acknowledged, and the connection."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
            self._producer = None

    def _produce(self, producer: "Producer", record: Record, delivered: "Callable[[Any, Message], None]") -> None:
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        while True:
            try:
                producer.produce(
                    self.target.topic,
                    key=record.key.encode(),
                    value=record.value,
                    headers=headers,  # type: ignore[arg-type]  # its list is invariant
                    on_delivery=delivered,
                )
            except BufferError:  # librdkafka's queue is full; records leave it with their acknowledgement or timeout
                producer.poll(_FULL_QUEUE_S)
            else:
                producer.poll(0)
                return

    def _connected(self) -> "Producer":
        from confluent_kafka import KafkaException, Producer

        if self._producer is None:
            own: dict[str, Any] = {
                "bootstrap.servers": self.target.servers,
                "enable.idempotence": True,
                "acks": "all",
                "message.timeout.ms": int(self._timeout_s * 1000),
                "error_cb": self._on_error,
            }
            try:
                self._producer = Producer({"compression.type": "lz4", **self._config, **own}, logger=_SILENT)
            except KafkaException as error:
                raise SettingsError(f"--kafka-config: {error.args[0].str()}") from None
        return self._producer

    def _on_error(self, error: Any) -> None:  # noqa: ANN401 - a KafkaError
        text = error.str()
        if text != self._reported:
            self._reported = text
            self._report(f"{self.target.servers}: {text}; trying again")


_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
