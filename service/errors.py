"""Defines the errors of this package, in one tree.

ServiceError
├── SettingsError           a setting breaks a rule (variable or key, value, rule)
├── StartError              the server cannot start: the port is taken, or no bundle is published
├── HistoriesUnavailable    Redis did not answer; whether a write arrived is unknown
│   └── BulkPartlyStored    the nodes of a cluster stored a part of the events; says which ones
├── OperatorStateUnavailable  Redis did not answer a call about the pin or the hidden items; see above
├── EventsUnavailable       Redis did not answer a call of the exporter
├── KafkaUnavailable        Kafka did not acknowledge events in time; some of them may have arrived
├── ExportRefused           the events cannot be exported to this directory or topic
├── BackupInterrupted       Redis did not answer a call of a backup or restore
├── BackupRefused           a backup cannot be made there, is damaged, or may not be restored there
├── OutcomesUnavailable     Redis did not answer a call about answers and their outcomes; see above
├── FilesUnavailable        the file system of the registry did not answer in time
├── RatesUnavailable        Redis did not answer what callers of all replicas have used; see above
├── RedisUnavailable        a call was not answered by Redis; the adapters translate it into one of those above
├── RetrieverUnavailable    the store of the items' vectors did not answer a search, or not in a usable way
├── PushRefused             a bundle cannot be put into the store of the items' vectors, or must not serve from there
├── NotReady                no bundle is loaded yet, or the process is draining
├── QueueFull               as many requests wait already as may
├── BundleRefused           a bundle may not be activated; has the reason
└── RequestRefused          a request that cannot be answered as it stands
    ├── MalformedBody       the body is not JSON
    ├── KeyMissing          the route needs an API key and none was sent
    ├── KeyRefused          the API key is unknown, or the route is closed
    ├── NoPicture           the bundle has no picture of the item
    ├── UnknownItem         the path or the body names an item that this bundle does not have
    ├── SessionMerged       the session was merged into another user
    ├── UnknownExperiment   no experiment of this name runs, or none has run lately
    ├── Conflict            the request contradicts the state of the service
    ├── CatalogueChanged    a cursor is of another bundle than the active one
    ├── RateExceeded        too many requests of one key or address; has the seconds to wait
    ├── RequestLate         the body did not arrive in time
    ├── BodiesFull          too many bodies are arriving at once
    ├── BodyTooLarge        the body is over the limit
    ├── UnsupportedBody     the body is not declared as JSON
    ├── EncodedBody         the body is compressed, or encoded otherwise
    └── RuleBroken          a field breaks a rule; has every violation found

HTTP status codes are chosen in `service.http.problems` alone. Errors of redis-py and pydantic are translated into these
at the boundary. Every message says which value broke which rule.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

RefusalReason = Literal[
    "missing", "invalid", "encoder", "answers", "bound", "altered", "retrieval", "resources", "unavailable", "error"
]
RETRIED: Final[frozenset[RefusalReason]] = frozenset({"retrieval", "resources", "unavailable"})
"""Reasons that may pass without another publication of the bundle."""


ENDING = "this process is ending; ask another replica"
"""Detail of a NotReady while the process drains."""


class ServiceError(Exception):
    """Root of the errors of this package."""


class SettingsError(ServiceError):
    """A setting breaks a rule."""


class StartError(ServiceError):
    """The server cannot start."""


class HistoriesUnavailable(ServiceError):
    """The store of histories did not answer; whether a write arrived is unknown."""


class BulkPartlyStored(HistoriesUnavailable):
    """The nodes of a cluster stored a part of several events, or none.

    Attributes:
        stored: positions of the events that are stored, ascending.
        not_stored: positions of the others; whether a lost write arrived is unknown, so they need an ``event_id`` to be
            sent again.
        new: those of ``stored`` that were not stored before.
    """

    def __init__(self, message: str, *, stored: Sequence[int], not_stored: Sequence[int], new: Sequence[int]) -> None:
        super().__init__(message)
        self.stored = tuple(stored)
        self.not_stored = tuple(not_stored)
        self.new = tuple(new)

    def at(self, places: Sequence[int]) -> "BulkPartlyStored":
        """The same with the positions in a longer list, of which ``places`` are the events sent to the store."""
        parts = (self.stored, self.not_stored, self.new)
        stored, not_stored, new = ([places[position] for position in part] for part in parts)
        return BulkPartlyStored(str(self), stored=stored, not_stored=not_stored, new=new)


class OperatorStateUnavailable(ServiceError):
    """The store of the pin and the hidden items did not answer; whether a write arrived is unknown."""


class EventsUnavailable(ServiceError):
    """The event streams did not answer; whether a write arrived is unknown."""


class KafkaUnavailable(ServiceError):
    """Kafka did not acknowledge events in time; some of them may have arrived."""


class ExportRefused(ServiceError):
    """The events cannot be exported to this directory: another one has been, or the directory is an older copy."""


class BackupInterrupted(ServiceError):
    """Redis did not answer a call of a backup or restore, or refused it."""


class BackupRefused(ServiceError):
    """A backup cannot be made there, is damaged or not finished, or may not be restored there."""


class OutcomesUnavailable(ServiceError):
    """The store of answers and outcomes did not answer; whether a write arrived is unknown."""


class FilesUnavailable(ServiceError):
    """The file system of the registry did not answer in time."""


class RatesUnavailable(ServiceError):
    """The store of the callers' rates did not answer; whether a charge arrived is unknown."""


class RedisUnavailable(ServiceError):
    """A call was refused at once, not answered in time, or lost with its connection; a write may have arrived."""


class RetrieverUnavailable(ServiceError):
    """The store of the items' vectors did not answer a call in time, refused it, or answered nonsense."""


class PushRefused(ServiceError):
    """A bundle cannot be put into the store of the items' vectors, or what it holds must not serve."""


class NotReady(ServiceError):
    """No bundle is loaded yet, or the process is draining."""


class QueueFull(ServiceError):
    """Too many requests wait; a retry helps later, not at once."""


class BundleRefused(ServiceError):
    """A bundle may not be activated, so the active one stays.

    Attributes:
        reason: which rule it broke, one of a few words, for metrics and for `GET /bundle`.
    """

    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RequestRefused(ServiceError):
    """The request itself is the reason why it is refused."""


class MalformedBody(RequestRefused):
    """The body is not JSON."""


class KeyMissing(RequestRefused):
    """The route needs an API key and none was sent."""


class KeyRefused(RequestRefused):
    """The API key is unknown, or the route is closed."""


class NoPicture(RequestRefused):
    """The bundle has no picture of the item."""


class UnknownItem(RequestRefused):
    """The path or the body names an item that this bundle does not have."""


class SessionMerged(RequestRefused):
    """The session was merged into another user."""


class UnknownExperiment(RequestRefused):
    """No experiment of this name runs, or none has run lately."""


class Conflict(RequestRefused):
    """The request contradicts the state of the service: outcomes are off, or another experiment runs."""


class CatalogueChanged(RequestRefused):
    """A cursor is of another bundle than the active one."""


class RateExceeded(RequestRefused):
    """Too many requests of one key or address.

    Attributes:
        retry_after_s: whole seconds after which one more is admitted.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestLate(RequestRefused):
    """The body did not arrive in time."""


class BodiesFull(RequestRefused):
    """Too many bodies are arriving at once."""


class BodyTooLarge(RequestRefused):
    """The body is over the limit."""


class UnsupportedBody(RequestRefused):
    """The body is not declared as JSON."""


class EncodedBody(RequestRefused):
    """The body is compressed, or encoded otherwise."""


class RuleViolation(NamedTuple):
    """One broken rule.

    Attributes:
        field: path of the field, as in ``items[3].weight``; ``body`` for the body as a whole.
        received: the value received, as JSON, shortened.
        rule: what the value must be, as in ``must be at most 1000``.
    """

    field: str
    received: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}; received {self.received}"


class RuleBroken(RequestRefused):
    """A field breaks a rule.

    Attributes:
        violations: at least one, in the order of the body.
    """

    def __init__(self, violations: Sequence[RuleViolation]) -> None:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{violations[0]}{more}")
        self.violations = tuple(violations)
