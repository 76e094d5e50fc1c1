"""Counts the processor instructions of an answer to `POST /recommend`, which other load of the machine does not change.

    python -m bench.instructions.instructions --items 100000 --neighbours 50

The service runs with one worker under Valgrind's callgrind. Requests come one at a time, and several at a time on as
many connections, each group after the answers to the last. What the process does without requests is counted for as
long and taken off. Instructions of the kernel are not counted, and an instruction that waits for memory counts as any
other: time is for the other benches. Prints the instructions of an answer by library, and writes JSON.
"""

import argparse
import http.client
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.index.bundles import published
from bench.instructions.callgrind import Counting, under_callgrind
from bench.load.histories import user_id
from bench.measurements import commit
from bench.serving.contenders import OURS, Contender
from bench.serving.plan import ServingPlan
from bench.serving.quality import K
from bench.serving.running import PATH
from bench.serving.setting import Setting

_PATIENCE_S = 900.0
_IDLE_S = 3.0
_VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLM2REC_REDIS_TIMEOUT_MS": "60000",
    "VLM2REC_REQUEST_TIMEOUT_S": "600",
    "VLM2REC_RECALL_CHECKS_PER_S": "0",
    "VLM2REC_POLL_MS": "60000",
}


def main() -> None:
    """Build the missing bundle, count, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--neighbours", type=int, default=0, help="of an item in each of three lists; 0: no lists")
    parser.add_argument("--requests", type=int, default=64, help="counted for each number at a time")
    parser.add_argument("--warm", type=int, default=160, help="requests of other users before, not counted")
    parser.add_argument("--together", type=int, nargs="+", default=[16, 1], help="requests at a time")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, help="bench/results/instructions-N.json if not given")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is ended on the way out
    found = counted(options)
    out = options.out or Path(f"bench/results/instructions-{options.items}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def counted(options: argparse.Namespace) -> dict[str, Any]:
    """Thousands of instructions of an answer, for each number of requests at a time."""
    made = published(options.items, options.work, lambda *_: None, neighbours=options.neighbours)
    plan = replace(ServingPlan(), main=options.items, users=options.warm + options.requests)
    found: dict[str, Any] = {"items": options.items, "neighbours": options.neighbours, "requests": options.requests}
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as directory:
        out = Path(directory) / "callgrind"
        with Setting(plan, {options.items: made}) as setting:
            service = counted_contender(under_callgrind(out))
            with setting.start(service, plan.main, plan.users, patience_s=_PATIENCE_S) as running:
                counting, bodies = Counting(running.pid, out), _bodies(range(plan.users))
                for number in options.together:
                    with Callers(running.port, number) as callers:
                        callers.ask(bodies[: options.warm])
                        found[f"{number} at a time"] = answer_cost(counting, callers, bodies[options.warm :])
    return found | {"commit": commit()}


def counted_contender(under: Sequence[str]) -> Contender:
    """The service with one worker, as it is run under another program.

    Args:
        under: the command line before that of the service.
    """
    arguments = ("-m", "bench.instructions.counted_service", *OURS.arguments[OURS.arguments.index("--registry") :])
    return replace(OURS, arguments=arguments, under=under, environment={**OURS.environment, **_VARIABLES})


def answer_cost(counting: Counting, callers: "Callers", bodies: Sequence[bytes]) -> dict[str, float]:
    """Library → thousands of instructions of an answer; ``all``: their sum."""
    counting.start()
    callers.ask(bodies)
    busy, busy_s = counting.stop()
    counting.start()
    time.sleep(_IDLE_S)
    idle, idle_s = counting.stop()
    of_answers = {name: count - idle.get(name, 0) * busy_s / idle_s for name, count in busy.items()}
    cost = {name: round(count / 1000 / len(bodies), 1) for name, count in of_answers.items()}
    shown = dict(sorted(cost.items(), key=lambda pair: -pair[1]))
    return {"all": round(sum(of_answers.values()) / 1000 / len(bodies), 1)} | shown


class Callers:
    """Several open connections to a service on this machine, which ask at the same time.

    Args:
        port: of the service.
        number: of the connections.
        path: that they ask.
    """

    def __init__(self, port: int, number: int, path: str = PATH) -> None:
        self._path = path
        self._connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S) for _ in range(number)]

    def __enter__(self) -> "Callers":
        for connection in self._connections:
            connection.connect()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def ask(self, bodies: Sequence[bytes]) -> None:
        """Send the requests in groups, one on each connection, a group when the one before is answered.

        Raises:
            RuntimeError: an answer is not 200.
        """
        number = len(self._connections)
        for start in range(0, len(bodies), number):
            asked = list(zip(self._connections, bodies[start : start + number], strict=False))
            for connection, body in asked:
                connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            for connection, _ in asked:
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"the service answered {answer.status}: {content[:200]!r}")


def _bodies(users: Iterable[int]) -> list[bytes]:
    return [json.dumps({"user_id": user_id(user), "k": K}).encode() for user in users]


if __name__ == "__main__":
    main()
