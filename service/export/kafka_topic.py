"""Writes records to a Kafka topic; a record counts once Kafka has acknowledged it."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from service.errors import KafkaUnavailable, SettingsError

if TYPE_CHECKING:
    from confluent_kafka import Message, Producer

_URL: Final = re.compile(
    r"(?i:kafka)://(?P<servers>[\w.\-\[\]:]+:[0-9]+(?:,[\w.\-\[\]:]+:[0-9]+)*)/(?P<topic>[A-Za-z0-9._-]{1,249})"
)
_FULL_QUEUE_S: Final = 0.1
_FLUSH_S: Final = 0.5
_WITHOUT_END: Final = 0  # as librdkafka writes it
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


class _Deliveries:
    """What became of the records of one call.

    Args:
        timeout_s: seconds without an acknowledgement after which the rest is late.

    Attributes:
        acknowledged: number of records.
        failures: why others were not.
    """

    def __init__(self, timeout_s: float) -> None:
        self.acknowledged = 0
        self.failures: list[str] = []
        self._timeout_s = timeout_s
        self._since = monotonic()

    @property
    def is_late(self) -> bool:
        """Whether nothing has been acknowledged for too long."""
        return monotonic() - self._since >= self._timeout_s

    def add(self, error: Any, _message: "Message") -> None:  # noqa: ANN401 - a KafkaError or None
        """Take the report of one record."""
        if error is None:
            self.acknowledged += 1
            self._since = monotonic()
        else:
            self.failures.append(error.str())


class TopicWriter:
    """An idempotent producer of one topic. Connects with the first records, and anew after a failure.

    No record has a time limit of its own: one that expired would let later ones of its key pass. Those that are not
    acknowledged in time are dropped together, so that what has arrived of a key are its first records.

    Args:
        target: brokers and topic.
        config: further settings of librdkafka; brokers, idempotence and time of delivery are set here.
        timeout_s: seconds in which a record must be acknowledged, or one before it.
        report: gets a line for each problem that librdkafka reports and goes on to retry, once until records arrive.

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
        self._reported: dict[str, str] = {}  # problems since records have arrived, with their texts
        self._producer: Producer | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Write records, and wait until all are acknowledged.

        Raises:
            KafkaUnavailable: one is not; others may have arrived.
            SettingsError: librdkafka refuses a setting.
        """
        from confluent_kafka import KafkaException

        producer, deliveries = self._connected(), _Deliveries(self._timeout_s)
        try:
            for record in records:
                if not self._produce(producer, record, deliveries):
                    break
            while producer.flush(_FLUSH_S) and not deliveries.is_late:
                pass
        except KafkaException as error:
            deliveries.failures.append(error.args[0].str())
        if deliveries.acknowledged < len(records):
            reason = next(iter([*deliveries.failures[:1], *reversed(self._reported.values())]), "no answer")
            missing = len(records) - deliveries.acknowledged
            self.close()
            raise KafkaUnavailable(
                f"{self.target.servers}: {missing:,} of {len(records):,} records for topic "
                f"{self.target.topic!r} not acknowledged within {self._timeout_s:g} s ({reason}); they stay in Redis"
            )
        self._reported.clear()

    def close(self) -> None:
        """Drop what is not acknowledged, and the connection."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
            self._producer = None

    def _produce(self, producer: "Producer", record: Record, deliveries: "_Deliveries") -> bool:
        """Hand a record to librdkafka; False: its queue is full, and nothing is acknowledged any more."""
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        while True:
            try:
                producer.produce(
                    self.target.topic,
                    key=record.key.encode(),
                    value=record.value,
                    headers=headers,  # type: ignore[arg-type]  # its list is invariant
                    on_delivery=deliveries.add,
                )
            except BufferError:  # librdkafka's queue is full; records leave it with their acknowledgement
                if deliveries.is_late:
                    return False
                producer.poll(_FULL_QUEUE_S)
            else:
                producer.poll(0)
                return True

    def _connected(self) -> "Producer":
        from confluent_kafka import KafkaException, Producer

        if self._producer is None:
            own: dict[str, Any] = {
                "bootstrap.servers": self.target.servers,
                "enable.idempotence": True,
                "acks": "all",
                "message.timeout.ms": _WITHOUT_END,
                "error_cb": self._on_error,
            }
            # A topic that brokers do not know fails its records after this time, so that the reason is reported.
            preset = {
                "compression.type": "lz4",
                "topic.metadata.propagation.max.ms": int(self._timeout_s * 500),
            }
            try:
                self._producer = Producer({**preset, **self._config, **own}, logger=_SILENT)
            except KafkaException as error:
                raise SettingsError(f"--kafka-config: {error.args[0].str()}") from None
        return self._producer

    def _on_error(self, error: Any) -> None:  # noqa: ANN401 - a KafkaError
        text = error.str().partition(" (after ")[0]  # what follows is the time of this try
        # The line "0/1 brokers are down" counts the brokers that are known, which differs between tries.
        problem = error.name() if error.name() == "_ALL_BROKERS_DOWN" else text
        if problem not in self._reported:
            self._reported[problem] = text
            self._report(f"{self.target.servers}: {text}; trying again")


_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
