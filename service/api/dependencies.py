"""What the handlers of every route group need: the services, and the checks that let a request in."""

from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request
from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.errors import RuleBroken, Violation
from service.http.admission import Admission
from service.http.request_context import context_of
from service.recommend.batching import MicroBatcher
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.runtime.bounded_executor import BoundedExecutor
from service.stores.protocols import HistoryStore
from service.stores.redis_faults import RedisFaults
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage


@dataclass(frozen=True)
class Services:
    """What the routes work with; built once, in `service.app`.

    Attributes:
        current: which bundle answers.
        watcher: swaps bundles.
        directives: pin and hidden items.
        histories: where histories are.
        redis_troubles: what Redis refuses at the moment.
        batcher: the engine under the recommender.
        load: how much is in progress.
        recent: histories that were asked with.
        recommender: finds items.
        metrics: counts.
        data_keys: open the data routes.
        admin_keys: open the admin routes.
        metrics_keys: open the metrics.
        log: the service's logger.
        body_limit: largest request body in bytes.
        slow_lane: for what takes longer than a recommendation.
        require_consent: whether events are only kept where consent is said to be given.
        one_thread: whether only the event loop may run a bundle's encoder, as on a GPU.
        sampler: looks at some answers.
    """

    current: ActiveBundle
    watcher: Watcher
    directives: OperatorState
    histories: HistoryStore
    redis_troubles: RedisFaults
    batcher: MicroBatcher
    load: Admission
    recent: RecentHistories
    recommender: Recommender
    metrics: Metrics
    metrics_page: MetricsPage
    data_keys: KeyRing
    admin_keys: KeyRing
    metrics_keys: KeyRing
    log: FilteringBoundLogger
    body_limit: int
    slow_lane: BoundedExecutor
    require_consent: bool
    one_thread: bool
    sampler: OnlineRecall


def admit(request: Request, keys: KeyRing, *, takes_query: bool = False) -> Trace:
    """Let a request in: key, rate and query string.

    Raises:
        KeyMissing, KeyRefused: the key.
        RateExceeded: its key or address called too often.
        RuleBroken: a query parameter where none is known.
    """
    keys.admit(request)
    if request.scope["query_string"] and not takes_query:
        name = next(iter(request.query_params), "query")
        raise RuleBroken([Violation(f"query parameter {name[:60]}", "it", "is not known to this route")])
    return context_of(request.scope).trace


def admit_to_data(request: Request, services: Services, *, takes_query: bool = False) -> Trace:
    """Let a request to a data route in, if there is a bundle.

    One with a body asks for the bundle only when all of the body is here: a client that sends it slowly would keep an
    old bundle in memory.

    Raises:
        KeyMissing, KeyRefused, RuleBroken: see :func:`admit`.
        NotReady: there is no bundle yet, or the process is draining.
    """
    trace = admit(request, services.data_keys, takes_query=takes_query)
    services.current.admit()
    return trace


def item_id_of(request: Request) -> str:
    """The item id in the path."""
    return unquote(request.path_params["item_id"])
