"""Runs a server in this process: one listening socket, one event loop, and a graceful shutdown."""

import contextlib
import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from types import FrameType

from fastapi import FastAPI
from structlog.typing import FilteringBoundLogger

from service.app import create_app
from service.errors import StartError
from service.http.config import GuardedConfig
from service.http.connections import ConnectionLimits, Connections
from service.http.graceful_shutdown import DrainingServer
from service.lifecycle import load_current
from service.runtime import malloc
from service.settings.groups import HttpLimits, ServerSettings
from service.settings.load import Settings
from service.telemetry.logs import configure_logs, logger
from service.telemetry.metrics import Metrics

_BACKLOG = 2048
# How long a thread waits for another to release the interpreter's lock, by default 5 ms. The engine's threads need it
# only for microseconds between two calls of FAISS and ONNX Runtime (docs/adr/0014).
_SWITCH_INTERVAL_S = 0.00001
_IPV4 = 4
# How many objects are made, less those that ended, before a garbage collection. By default 700, fewer than a bulk of
# events has, whose objects would then be visited while they are in use; nearly all end without a collection.
_COLLECTED_AFTER = 10_000
_OTHER_FILES = 256  # besides connections: mapped bundles, Redis, logs


def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serve in this process until SIGTERM, SIGHUP or SIGINT; requests in progress are answered first.

    SIGUSR1 and SIGUSR2 do nothing. A signal that is already ignored or handled stays so: `nohup` ignores SIGHUP.

    Args:
        settings: what to serve, where.
        announce: called once with the URL, when requests are answered.

    Raises:
        StartError: the address cannot be used, nothing is published, or start-up failed.
        BundleRefused: no published bundle is good.
        IndexingError: the registry cannot be read.
        KeyboardInterrupt: after the graceful shutdown, if the signal was SIGINT.
    """
    configure_process(settings)
    # Uvicorn raises a signal again after its shutdown. By default SIGTERM would then end the process before others that
    # it started, such as an embedded Redis, are stopped.
    signal.signal(signal.SIGTERM, _exit)
    handle_unless_handled(signal.SIGHUP, _exit)
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # by default they end the process; log rotation sends them
        handle_unless_handled(number, _do_nothing)
    with listen(settings.server)[0] as listener:
        run(settings, listener, partial(SocketServer, ready=lambda: announce(url_of(settings.server, listener))))


def run(
    settings: Settings, listener: socket.socket, server_of: "Callable[[GuardedConfig, FastAPI], SocketServer]"
) -> None:
    """Load the bundle and serve on a listening socket until the server ends.

    Args:
        settings: what to serve.
        listener: closed at the end.
        server_of: makes the server of the configuration and the application.

    Raises:
        StartError: nothing is published, or start-up failed.
        BundleRefused: no published bundle is good.
        IndexingError: the registry cannot be read.
    """
    if settings.bundles.device == "auto":
        logger().info("device chosen", device=settings.bundles.chosen_device)
    app = create_app(settings, startup=load_current(settings))
    # Loaded objects stay; without this every full collection would visit all of them during a request.
    malloc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER, *gc.get_threshold()[1:])
    config = GuardedConfig(
        app,
        _connections(settings.http, app.state.metrics),
        app.state.admission,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=bool(settings.server.trusted_proxies),
        forwarded_allow_ips=_also_of_ipv6(settings.server.trusted_proxies),
        timeout_keep_alive=settings.server.keep_alive_s,
        timeout_graceful_shutdown=settings.server.drain_s,
    )
    server = server_of(config, app)
    server.run(sockets=[listener])
    if not server.was_ready:
        raise StartError("the service could not start; its log has the reason")


def _also_of_ipv6(networks: Iterable[str]) -> list[str]:
    """Networks, those of IPv4 a second time as a socket of IPv6 names their addresses: ``::ffff:10.0.0.0/104``."""
    parsed = [ip_network(network) for network in networks]
    mapped = [f"::ffff:{one.network_address}/{96 + one.prefixlen}" for one in parsed if one.version == _IPV4]
    return [*map(str, parsed), *mapped]


def configure_process(settings: Settings, *, forks: bool = False) -> FilteringBoundLogger:
    """Set up log, interpreter's lock and memory of this process, before its first thread starts.

    Args:
        settings: what is logged; the worker's place, which every line then has.
        forks: the process starts others by fork, so it may have no thread.

    Returns:
        The service's logger.
    """
    number = None if settings.worker is None else settings.worker.number
    configure_logs(settings.observability, worker=number, threaded=not forks)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    malloc.configure()
    return logger()


class SocketServer(DrainingServer):
    """A server that announces itself when it answers, and is not ready from the first signal on.

    Args:
        config: of uvicorn, with the connections and the admission.
        app: the application, from `service.app.create_app`.
        ready: called when requests are answered.

    Attributes:
        was_ready: whether requests were ever answered.
    """

    def __init__(self, config: GuardedConfig, app: FastAPI, ready: Callable[[], None]) -> None:
        super().__init__(config, app.state.active_bundle, app.state.drain_delay_s)
        self._ready = ready
        self.was_ready = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start answering, and announce it."""
        await super().startup(sockets)
        if self.started:
            self.was_ready = True
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle uvicorn's signals, and SIGHUP if it is not ignored; uvicorn raises it again after this."""
        with super().capture_signals():
            if signal.getsignal(signal.SIGHUP) is not _exit:
                yield
                return
            signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, _exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; a second signal ends its delay."""
        self._current.leave()
        super().handle_exit(sig, frame)


def _connections(settings: HttpLimits, metrics: Metrics) -> Connections:
    limits = ConnectionLimits(
        settings.max_connections,
        settings.request_timeout_s,
        rest_s=min(ConnectionLimits.rest_s, settings.request_timeout_s),
        rest_bytes=max(ConnectionLimits.rest_bytes, settings.body_limit_bytes),  # a body that is allowed may arrive
    )
    wanted = limits.connections + limits.spare + _OTHER_FILES
    allowed = _allow_files(wanted)
    if allowed < wanted:
        fewer = max(1, allowed - limits.spare - _OTHER_FILES)
        logger().warning("fewer connections", wanted=limits.connections, possible=fewer, open_files=allowed)
        limits = replace(limits, connections=fewer)
    return Connections(
        limits,
        retry_after_s=settings.retry_after_s,
        on_open=metrics.clients.connections,
        on_drop=metrics.clients.dropped,
        on_turned_away=metrics.turned_away,
    )


def _allow_files(wanted: int) -> int:
    """Raise the limit of open files of this process as far as needed and possible, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return wanted if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _exit(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _do_nothing(_signal: int, _frame: FrameType | None) -> None:
    pass


def handle_unless_handled(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
    """Set the handler of a signal, unless it is ignored or handled already."""
    if signal.getsignal(number) is signal.SIG_DFL:
        signal.signal(number, handler)


def listen(settings: ServerSettings, count: int = 1) -> list[socket.socket]:
    """Listen on an address with one or several sockets, among which the kernel divides new connections.

    Args:
        settings: host and port.
        count: sockets, all on the same port.

    Raises:
        StartError: the address cannot be used, or another process listens on it.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of the name is empty or too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{host} is not an address of this machine ({reason}); choose another --host") from error
    listeners: list[socket.socket] = []
    try:
        while len(listeners) < count:
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if len(listeners) > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            address = listener.getsockname()
            if count > 1:  # after the first bind: so that one fails where another service listens already
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for listener in listeners:
            listener.listen(_BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise StartError(f"port {port} on {host} cannot be used ({error.strerror}); choose another --port") from error
    return listeners


def url_of(settings: ServerSettings, listener: socket.socket) -> str:
    """The URL of a listening socket, with the host as it was given."""
    return f"http://{_shown(settings.host)}:{listener.getsockname()[1]}"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
