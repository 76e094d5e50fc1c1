"""Holds the services that all route groups use, and checks each request before it is handled."""

from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request
from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.bundles.active_bundle import CurrentBundle
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.errors import RuleBroken, RuleViolation
from service.http.admission import Admission
from service.http.request_context import context_of
from service.recommend.batching import MicroBatcher
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.runtime.bounded_executor import BoundedExecutor
from service.stores.protocols import HistoryStore
from service.stores.redis_faults import RedisTroubles
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage


@dataclass(frozen=True)
class Services:
    """The objects that the routes use; built once, when the application is created.

    Attributes:
        current: the active bundle.
        watcher: swaps bundles.
        operator_state: pin and hidden items.
        histories: store of histories and events.
        redis_errors: why Redis fails at the moment.
        batcher: runs searches in batches.
        admission: counts the requests in progress.
        recent: the histories of recent requests.
        recommender: finds items.
        metrics: counters and histograms.
        metrics_page: the text of the metrics.
        data_keys: keys of the data routes.
        admin_keys: keys of the admin routes.
        metrics_keys: keys of the metrics.
        log: the service's logger.
        body_limit: largest request body in bytes.
        executor: runs what takes longer than a recommendation.
        require_consent: whether an event is stored only if it says that consent was given.
        one_thread: whether only the event loop may run a bundle's encoder, as on a GPU.
        online_recall: measures the recall of some responses.
    """

    current: CurrentBundle
    watcher: Watcher
    operator_state: OperatorState
    histories: HistoryStore
    redis_errors: RedisTroubles
    batcher: MicroBatcher
    admission: Admission
    recent: RecentHistories
    recommender: Recommender
    metrics: Metrics
    metrics_page: MetricsPage
    data_keys: KeyRing
    admin_keys: KeyRing
    metrics_keys: KeyRing
    log: FilteringBoundLogger
    body_limit: int
    executor: BoundedExecutor
    require_consent: bool
    one_thread: bool
    online_recall: OnlineRecall


def admit(request: Request, keys: KeyRing, *, takes_query: bool = False) -> Trace:
    """Check the key, the rate and the query string of a request.

    Raises:
        KeyMissing, KeyRefused: the key does not open the route.
        RateExceeded: the key or the address calls too often.
        RuleBroken: the route takes no query parameters.
    """
    keys.admit(request)
    if request.scope["query_string"] and not takes_query:
        name = next(iter(request.query_params), "query")
        raise RuleBroken([RuleViolation(f"query parameter {name[:60]}", "it", "is not known to this route")])
    return context_of(request.scope).trace


def admit_to_data(request: Request, services: Services, *, takes_query: bool = False) -> Trace:
    """Check a request to a data route, and that there is a bundle.

    A handler that reads a body takes the bundle after that: a client that sends slowly would keep an old bundle in
    memory.

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
