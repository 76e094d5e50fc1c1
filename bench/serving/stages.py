"""Defines the stages of the serving bench as visits: start a contender, measure its tasks, end it."""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.load.histograms import buckets_of, upper_quantile
from bench.load.histories import bytes_per_user, used_bytes
from bench.measurements import Measurements
from bench.serving.contenders import ECHO, EVERYONE, OURS, PEERS, Contender
from bench.serving.quality import PLAIN, kinds_of, recall_served, same_as_bundle
from bench.serving.results import ServingResults
from bench.serving.running import RunningContender
from bench.serving.setting import Setting

_RECOVERY_S = 6
_RECOVERED = 0.95  # of the peak before the overload
_USERS_WEIGHED = 100
_SAY_VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        key: in the results.
        measure: what is done with the running contender.
    """

    key: str
    measure: Callable[[RunningContender], Mapping[str, Any]]


@dataclass(frozen=True)
class Visit:
    """One start of a contender with what is measured on it.

    Attributes:
        stage: name for the progress output.
        contender: what is started.
        rows: the size of its catalogue.
        users: histories in its Redis.
        tasks: in order.
        warm: whether load that is not counted comes first.
    """

    stage: str
    contender: Contender
    rows: int
    users: int
    tasks: list[Task]
    warm: bool = True


def tuning_visits(setting: Setting) -> Iterator[Visit]:
    """Every number of processes of every contender, so that each is measured at its best on this machine."""
    plan = setting.plan
    for number in range(1, plan.tuning_rounds + 1):
        for contender in (OURS, *PEERS):
            for processes in contender.processes:
                key = f"tuning/{number}/{contender.name}/{processes}"
                task = Task(key, lambda running: setting.closed(running, plan.users, plan.connections, plan.tuning_s))
                yield Visit("tuning", contender.with_processes(processes), plan.main, plan.users, [task])


def at_its_best(contender: Contender, read: ServingResults) -> Contender:
    """A contender with its best number of processes; unchanged without a measurement."""
    rates = {
        processes: rate
        for processes in contender.processes
        if (rate := read.mean(f"tuning/{{round}}/{contender.name}/{processes}", "good")) is not None
    }
    return contender.with_processes(max(rates, key=rates.__getitem__)) if rates else contender


def measured_visits(setting: Setting, results: Measurements) -> Iterator[Visit]:
    """Every visit after the tuning, in order; contenders take turns within a stage.

    The echo is in every round of every stage, since it says how fast the machine was then.
    """
    plan = setting.plan
    everyone = [at_its_best(contender, results.read()) for contender in EVERYONE]
    ours = everyone[EVERYONE.index(OURS)]
    for number in range(1, plan.rounds + 1):
        for contender in everyone:
            yield _contender(setting, contender, number)
    for number in range(1, plan.rounds + 1):
        yield _echo(setting, "sizes", number)
        for rows in plan.sizes:
            yield _size(setting, ours, rows, number)
    for rows in plan.sizes:  # a stage of its own, since nothing of it is timed
        yield Visit("recall", ours, rows, plan.users, [Task(f"recall/{rows}", partial(_recall, setting, rows))], False)
    for number in range(1, plan.overload_rounds + 1):
        yield _echo(setting, "overload", number)
        yield _overload(setting, ours, results, number)
    for number in range(1, plan.rounds + 1):
        yield _echo(setting, "start", number)
        yield _started(setting, number)
    for number in range(1, plan.rounds + 1):
        yield _echo(setting, "users", number)
        for users in (plan.users, plan.many_users):
            yield _users(setting, ours, users, number)


def _echo(setting: Setting, stage: str, number: int) -> Visit:
    """The echo beside a round of a stage."""
    plan = setting.plan
    task = Task(
        f"{stage}/{number}/echo", lambda running: setting.closed(running, plan.users, plan.connections, plan.echo_s)
    )
    return Visit(stage, ECHO, plan.main, plan.users, [task])


def _started(setting: Setting, number: int) -> Visit:
    """The start on the largest catalogue with as many workers as the service takes by itself."""
    plan = setting.plan
    task = Task(f"start/{number}/{max(plan.sizes)}", _start)
    return Visit("start", OURS.with_default_processes(), max(plan.sizes), plan.users, [task], warm=False)


def _contender(setting: Setting, contender: Contender, number: int) -> Visit:
    """Each contender on the main catalogue: start, peak, latency at fixed rates, memory, correct answers."""
    plan, key = setting.plan, f"contenders/{number}/{contender.name}"
    rates = plan.rates if contender.name in (OURS.name, ECHO.name) else plan.peer_rates
    tasks = [Task(f"{key}/start", _start), *_loads(setting, key, plan.users, rates, number)]
    if number == 1:
        if contender.answers:
            tasks.append(Task(f"{key}/answers", partial(_answers, setting, plan.main)))
        tasks.append(Task(f"{key}/versions", _versions))
    return Visit("contenders", contender, plan.main, plan.users, tasks)


def _size(setting: Setting, ours: Contender, rows: int, number: int) -> Visit:
    """vlm2rec on a catalogue of a size."""
    plan, key = setting.plan, f"sizes/{number}/{rows}"
    tasks = [Task(f"{key}/start", _start), *_loads(setting, key, plan.users, plan.size_rates, number)]
    return Visit("sizes", ours, rows, plan.users, tasks)


def _overload(setting: Setting, ours: Contender, results: Measurements, number: int) -> Visit:
    """Peak, then multiples of it, each followed by the way back; then multiples of the connections."""
    plan, key = setting.plan, f"overload/{number}"

    def peak() -> float:
        return float(results[f"{key}/peak"]["good"])

    def offer(times: int, running: RunningContender) -> dict[str, Any]:
        before = _refusals(running)
        found = setting.open(running, plan.users, times * peak(), plan.overload_s, number)
        rates = [setting.closed(running, plan.users, plan.connections, 1.0)["good"] for _ in range(_RECOVERY_S)]
        reached = [second for second, rate in enumerate(rates, 1) if rate >= _RECOVERED * peak()]
        p99_s = upper_quantile(before, _refusals(running), 0.99)
        written = {} if p99_s is None else {"refusal_written_p99_ms": 1000 * p99_s}
        return found | written | {"back_by_second": rates, "recovered_s": reached[0] if reached else None}

    def crowd(times: int, running: RunningContender) -> dict[str, Any]:
        return setting.closed(running, plan.users, times * plan.connections, plan.closed_s)

    tasks = [Task(f"{key}/peak", lambda running: setting.closed(running, plan.users, plan.connections, plan.closed_s))]
    tasks += [Task(f"{key}/{times}x", partial(offer, times)) for times in plan.overloads]
    tasks.append(Task(f"{key}/{plan.overloads[-1]}x connections", partial(crowd, plan.overloads[-1])))
    return Visit("overload", ours, plan.main, plan.users, tasks)


def _refusals(running: RunningContender) -> dict[float, float]:
    """Seconds from the first bytes of a refused request to the last of its refusal; at most a second old."""
    return buckets_of(running.port, "vlm2rec_request_seconds", route="turned away")


def _users(setting: Setting, ours: Contender, users: int, number: int) -> Visit:
    """vlm2rec with few and with many users in Redis."""
    plan, key = setting.plan, f"users/{number}/{users}"
    rate = plan.size_rates[0]
    tasks = [Task(f"{key}/open {rate}", lambda running: setting.open(running, users, rate, plan.open_s, number))]
    if number == 1:
        tasks.append(Task(f"{key}/redis", lambda _: _redis(setting, users)))
    return Visit("users", ours, plan.main, users, tasks)


def _loads(setting: Setting, key: str, users: int, rates: tuple[int, ...], number: int) -> list[Task]:
    """Peak, latency at rates, and memory after that."""
    plan = setting.plan
    return [
        Task(f"{key}/closed", lambda running: setting.closed(running, users, plan.connections, plan.closed_s)),
        *(Task(f"{key}/open {rate}", partial(_open_at, setting, users, rate, plan.open_s, number)) for rate in rates),
        Task(f"{key}/memory", lambda running: running.memory_bytes() | {"workers": running.contender.workers}),
    ]


def _open_at(
    setting: Setting, users: int, rate: int, seconds: float, seed: int, running: RunningContender
) -> dict[str, Any]:
    return setting.open(running, users, rate, seconds, seed)


def _start(running: RunningContender) -> dict[str, Any]:
    return {"ready_s": running.ready_s}


def _answers(setting: Setting, rows: int, running: RunningContender) -> dict[str, Any]:
    """Recall of plain answers, and the share that equals the bundle's own answers."""
    bundle, histories = setting.bundle(rows), setting.histories(rows)[: setting.plan.checked]
    ask = partial(setting.ask, running)
    return {
        "recall": recall_served(bundle, histories, kinds_of(bundle)[PLAIN], ask),
        "same": same_as_bundle(bundle, histories, ask),
        "users": len(histories),
    }


def _recall(setting: Setting, rows: int, running: RunningContender) -> dict[str, Any]:
    """Recall of every kind of request that the contract has."""
    bundle, histories = setting.bundle(rows), setting.histories(rows)[: setting.plan.checked]
    ask = partial(setting.ask, running)
    by_kind = {name: recall_served(bundle, histories, kind, ask) for name, kind in kinds_of(bundle).items()}
    return {"by_kind": by_kind, "users": len(histories)}


def _redis(setting: Setting, users: int) -> dict[str, Any]:
    url = setting.redis(setting.plan.main, users)
    weighed = range(min(users, _USERS_WEIGHED))
    return {"bytes_per_user": bytes_per_user(url, weighed), "used_bytes": used_bytes(url), "users": users}


def _versions(running: RunningContender) -> dict[str, Any]:
    """Versions of a contender's packages, as its own interpreter has them."""
    command = [running.interpreter, "-c", _SAY_VERSIONS, *running.contender.packages]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"versions": json.loads(ran.stdout), "settings": running.contender.settings}
