"""Kills, stops, fills and restarts Redis and the service under load and checks that nothing is lost.

    python -m bench.faults.faults               # 300 requests and 30 events a second, about two minutes
    python -m bench.faults.faults --rate 50     # a quiet look
    python -m bench.faults.faults --workers 2   # two worker processes in each replica, one of which is killed too

Two replicas run behind a balancer, with a Redis that writes every event to the disk. Each fault has a phase of its own.
Prints and writes JSON, and the table of docs/reliability.md.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.faults.fault_load import FaultLoad, Outcome, RunningLoad, SentEvent, lost_and_doubled
from bench.faults.fault_setup import FaultSetup
from bench.index.bundles import published
from bench.measurements import commit, machine

RECOVERY_S = 2.0
_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- figures of bench/results/faults.json -->", "<!-- end of figures -->"
_HISTORY = "history_unavailable"
_DEGRADED_METRIC = f'vlm2rec_degraded_total{{reason="{_HISTORY}"}}'
_DEATHS_METRIC = "vlm2rec_engine_deaths_total"
_RESTARTS_METRIC = "vlm2rec_worker_restarts"
_RETRIES = 200


@dataclass(frozen=True)
class Fault:
    """A fault: how it begins and ends, and what it may cause.

    Attributes:
        name: for the table.
        begin: makes it go wrong.
        end: puts it right; when it returns, it is right.
        degrades: histories cannot be read meanwhile.
        refuses: events cannot be stored meanwhile.
        drains: a replica ends in order meanwhile, and may answer 503.
        kills: threads of the engine end meanwhile.
        replaces: a worker process ends meanwhile and is replaced.
    """

    name: str
    begin: Callable[[FaultSetup], None]
    end: Callable[[FaultSetup], None]
    degrades: bool = False
    refuses: bool = False
    drains: bool = False
    kills: bool = False
    replaces: bool = False


def _signal_redis(setup: FaultSetup, which: signal.Signals) -> None:
    if setup.redis.pid is not None:
        os.kill(setup.redis.pid, which)


def _configure(setup: FaultSetup, **settings: str) -> None:
    with setup.admin() as admin:
        for name, value in settings.items():
            admin.config_set(name.replace("_", "-"), value)


def _command(setup: FaultSetup, *command: str) -> None:
    with setup.admin() as admin:
        admin.execute_command(*command)


def _end_threads(setup: FaultSetup) -> None:
    for replica in setup.replicas:
        replica.burst()  # threads are started when several requests come at once
        replica.end_threads()
        replica.burst()  # and end at their next step


FAULTS = (
    Fault("Redis killed and restarted", lambda s: s.redis.kill(), lambda s: s.redis.start(), True, True),
    Fault(
        "Redis stopped (SIGSTOP)",
        lambda s: _signal_redis(s, signal.SIGSTOP),
        lambda s: _signal_redis(s, signal.SIGCONT),
        True,
        True,
    ),
    Fault("Redis restarted in order", lambda s: s.redis.stop(), lambda s: s.redis.start(), True, True),
    Fault(
        "Redis out of memory",
        lambda s: _configure(s, maxmemory_policy="noeviction", maxmemory="1"),
        lambda s: _configure(s, maxmemory="0", maxmemory_policy="volatile-ttl"),
        refuses=True,
    ),
    Fault(
        "Redis read-only",
        lambda s: _command(s, "REPLICAOF", "127.0.0.1", "1"),
        lambda s: _command(s, "REPLICAOF", "NO", "ONE"),
        refuses=True,
    ),
    Fault(
        "Redis hangs on writes",
        lambda s: _command(s, "CLIENT", "PAUSE", "600000", "WRITE"),
        lambda s: _command(s, "CLIENT", "UNPAUSE"),
        refuses=True,
    ),
    Fault(
        "one replica restarted (SIGTERM)", lambda s: s.replicas[0].end(), lambda s: s.replicas[0].start(), drains=True
    ),
    Fault("engine threads killed", _end_threads, lambda _: None, kills=True),
)
PROCESS_KILLED = Fault("a worker process killed", lambda s: s.replicas[0].kill_process(), lambda _: None, replaces=True)
"""Only where a replica has several; the balancer asks again for what was in progress."""


@dataclass(frozen=True)
class FaultPlan:
    """Rates and durations of the fault run.

    Attributes:
        rate: recommendations a second.
        event_rate: events a second.
        before_s: seconds of each phase before its fault.
        fault_s: seconds of a fault.
        after_s: seconds after it.
        workers: processes that answer in each replica.
    """

    rate: float = 300.0
    event_rate: float = 30.0
    before_s: float = 3.0
    fault_s: float = 5.0
    after_s: float = 5.0
    workers: int = 1

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults that such replicas can have."""
        return FAULTS if self.workers == 1 else (*FAULTS, PROCESS_KILLED)


@dataclass
class Phase:
    """The measured phase of one fault.

    Attributes:
        fault: which.
        outcomes: of every request.
        began: perf_counter seconds, just before the fault.
        returned: perf_counter seconds, when the fault was over.
        counted: what the metrics of both replicas grew by; of no use where one was restarted.
        retried: events that were not acknowledged at first, sent again afterwards with the same id until they were.
        unstored: those that even so were not.
        repeated: acknowledged events sent once more, and how many of them were stored a second time.
    """

    fault: Fault
    outcomes: list[Outcome]
    began: float
    returned: float
    counted: Counter[str]
    retried: int
    unstored: int
    repeated: tuple[int, int]

    def figures(self) -> dict[str, Any]:
        """Figures of the result file; `…_back_s` are seconds from the end of the fault to the last affected answer."""
        reads = [outcome for outcome in self.outcomes if outcome.event is None]
        events = [outcome for outcome in self.outcomes if outcome.event is not None]
        degraded = [outcome for outcome in reads if outcome.degraded == _HISTORY]
        refused = [outcome for outcome in events if outcome.status == 503]
        latency = sorted(outcome.answered - outcome.due for outcome in reads if outcome.status == 200)
        return {
            "recommendations": len(reads),
            "events": len(events),
            "degraded": len(degraded),
            "degraded_counted": None if self.fault.drains else int(self.counted[_DEGRADED_METRIC]),
            "degraded_otherwise": dict(Counter(o.degraded for o in reads if o.degraded not in {"", _HISTORY})),
            "events_refused": len(refused),
            "statuses": {
                str(status): count for status, count in sorted(Counter(o.status for o in self.outcomes).items())
            },
            "fault_s": self.returned - self.began,
            "histories_back_s": self._after(degraded),
            "events_back_s": self._after(refused),
            "slowest_ms": 1000 * latency[-1] if latency else None,
            "events_retried": self.retried,
            "events_not_stored_at_last": self.unstored,
            "events_repeated": self.repeated[0],
            "events_stored_twice": self.repeated[1],
            "engine_deaths": int(self.counted[_DEATHS_METRIC]),
            "wrong": self.wrong(),
        }

    def wrong(self) -> list[str]:
        """Every observation that breaks an invariant."""
        found = Counter(self._fault_of(outcome) for outcome in self.outcomes)
        problems = [f"{count} × {what}" for what, count in found.items() if what]
        seen = sum(outcome.degraded == _HISTORY for outcome in self.outcomes)
        if not self.fault.drains and self.counted[_DEGRADED_METRIC] != seen:
            problems.append(f"{self.counted[_DEGRADED_METRIC]:.0f} degraded answers were counted, {seen} were seen")
        if self.fault.degrades and not seen:
            problems.append("the fault was not felt by recommendations")
        if self.fault.refuses and not any(outcome.status == 503 for outcome in self.outcomes):
            problems.append("the fault was not felt by events")
        if self.fault.kills and not self.counted[_DEATHS_METRIC]:
            problems.append("no engine thread died")
        if self.fault.replaces and not self.counted[_RESTARTS_METRIC]:
            problems.append("no worker process was replaced")
        if self.unstored:
            problems.append(f"{self.unstored} events were refused for ever")
        if self.repeated[1]:
            problems.append(f"{self.repeated[1]} events were stored twice")
        return problems

    def _fault_of(self, outcome: Outcome) -> str:
        """The defect of an answer; empty without one."""
        felt = self.began <= outcome.answered and outcome.due <= self.returned + RECOVERY_S
        if outcome.degraded == _HISTORY and not (self.fault.degrades and felt):
            return "degraded without need"
        if outcome.status == 200:
            return ""
        if outcome.status == 503 and felt and (self.fault.drains or (self.fault.refuses and outcome.event is not None)):
            return ""
        return f"{outcome.status} to {'a recommendation' if outcome.event is None else 'an event'}"

    def _after(self, outcomes: Sequence[Outcome]) -> float:
        return max([outcome.answered - self.returned for outcome in outcomes] + [0.0])


def carry_out(
    fault: Fault, setup: FaultSetup, load: FaultLoad, plan: FaultPlan, acknowledged: list[SentEvent]
) -> Phase:
    """Run one phase: load, fault, load; then send refused events, and some stored events, again."""
    outcomes: list[Outcome] = []
    before = setup.metrics()
    running = load.run(setup, plan.before_s + plan.fault_s + plan.after_s, outcomes)
    try:
        running.wait_until(plan.before_s)
        began = time.perf_counter()
        fault.begin(setup)
        running.wait_until(plan.before_s + plan.fault_s)
        fault.end(setup)
        returned = time.perf_counter()
    finally:
        running.join()
    counted = setup.metrics()
    counted.subtract(before)
    stored, retried, unstored = _send_again(setup, running, outcomes)
    repeated = [setup.post("/events", event.body())[1].get("stored", 0) for event in stored[::20]]
    acknowledged += stored
    return Phase(fault, outcomes, began, returned, counted, retried, unstored, (len(repeated), sum(repeated)))


def _send_again(
    setup: FaultSetup, running: RunningLoad, outcomes: Sequence[Outcome]
) -> tuple[list[SentEvent], int, int]:
    """Acknowledged events, how many needed a retry, and how many were never acknowledged."""
    stored = [outcome.event for outcome in outcomes if outcome.event is not None and outcome.status == 200]
    at_first = {event.number for event in stored}
    open_ = [event for event in running.events if event.number not in at_first]
    unstored = 0
    for event in open_:
        for _ in range(_RETRIES):
            if setup.post("/events", event.body())[0] == 200:
                stored.append(event)
                break
            time.sleep(0.05)
        else:
            unstored += 1
    return stored, len(open_) - unstored, unstored


def run(registry: Path, work: Path, plan: FaultPlan, faults: Sequence[Fault] | None = None) -> dict[str, Any]:
    """Run all faults on a bundle; the figures, and whether every phase holds.

    Args:
        registry: of a published bundle.
        work: for files of this run.
        plan: how much of everything.
        faults: in this order; None: all of the plan.
    """
    load = FaultLoad(registry, plan.rate, plan.event_rate)
    with FaultSetup(registry, work, plan.workers) as setup:
        acknowledged = load.first_histories()
        for at in range(0, len(acknowledged), 500):
            status, _ = setup.post("/events", {"events": [event.body() for event in acknowledged[at : at + 500]]})
            if status != 200:
                raise SystemExit(f"the first histories could not be stored: {status}")
        phases = {}
        for fault in plan.faults if faults is None else faults:
            phases[fault.name] = carry_out(fault, setup, load, plan, acknowledged).figures()
            print(f"{fault.name}: {phases[fault.name]['wrong'] or 'holds'}", file=sys.stderr, flush=True)
        lost, doubled = lost_and_doubled(setup, acknowledged)
    late = [
        name for name, phase in phases.items() if max(phase["histories_back_s"], phase["events_back_s"]) > RECOVERY_S
    ]
    return {
        "plan": asdict(plan),
        "phases": phases,
        "events_acknowledged": len(acknowledged),
        "events_lost": len(lost),
        "events_doubled": len(doubled),
        "recovered_late": late,
        "holds": not lost and not doubled and not late and not any(phase["wrong"] for phase in phases.values()),
    }


def table(found: dict[str, Any]) -> str:
    """The figures for the page."""
    plan, about = found["plan"], found["machine"]
    lines = [
        f"{plan['rate']:.0f} recommendations and {plan['event_rate']:.0f} events a second on {about['cores']} cores "
        f"({about['cpu']}), {_processes(plan.get('workers', 1))}commit {found['commit']}. "
        f"Of {found['events_acknowledged']:,} acknowledged events "
        f"{found['events_lost']} were lost and {found['events_doubled']} stored twice.",
        "",
        "| fault | answers | degraded: seen, counted | events refused, stored later | other failures | histories back "
        "| events back |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, phase in found["phases"].items():
        answers = phase["recommendations"] + phase["events"]
        others = answers - phase["statuses"].get("200", 0) - phase["statuses"].get("503", 0)
        lines.append(
            f"| {name} | {answers:,} | {phase['degraded']}, {phase['degraded_counted']} "
            f"| {phase['events_refused']}, {phase['events_retried']} | {others} "
            f"| {phase['histories_back_s']:.2f} s | {phase['events_back_s']:.2f} s |"
        )
    return "\n".join(lines)


def _processes(workers: int) -> str:
    return "" if workers == 1 else f"{workers} worker processes in each replica, "


def write_page(found: dict[str, Any], page: Path) -> None:
    """Put the figures into the page, between their marks."""
    head, _, rest = page.read_text().partition(_BEGIN)
    page.write_text(f"{head}{_BEGIN}\n\n{table(found)}\n\n{_END}{rest.partition(_END)[2]}")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument(
        "--rate", type=float, default=FaultPlan.rate, help="recommendations per second; a tenth as many events"
    )
    parser.add_argument("--workers", type=int, default=FaultPlan.workers, help="processes that answer in each replica")
    parser.add_argument("--work", type=Path, default=_ROOT / ".bench", help="where built bundles are kept")
    parser.add_argument("--out", type=Path, default=_ROOT / "bench" / "results" / "faults.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    options.work.mkdir(parents=True, exist_ok=True)
    made = published(options.items, options.work, lambda setup, _share: print(setup, file=sys.stderr))
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        plan = FaultPlan(rate=options.rate, event_rate=options.rate / 10, workers=options.workers)
        found = run(Path(made.registry), Path(scratch), plan)
    found |= {"items": options.items, "commit": commit(), "machine": machine()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if options.out == parser.get_default("out"):
        write_page(found, _PAGE)
    if not found["holds"]:
        sys.exit("something did not hold, see above")


if __name__ == "__main__":
    main()
