"""Fuzzes a running service with schemathesis on every operation of /openapi.json and with bytes that are not HTTP.

    python -m bench.faults.fuzz                    # continues the last run
    python -m bench.faults.fuzz --fresh            # begins anew
    python -m bench.faults.fuzz --fresh --requests 1 --rounds 1 --raw 100 --out /tmp/fuzz.json    # a quick look
    python -m bench.faults.fuzz --fresh --workers 2 --out /tmp/fuzz.json    # several worker processes

Runs rounds of one seed each, with different keys in turn, until the number of requests is reached; each round is stored
at its end. All of schemathesis' checks are on but positive_data_acceptance: a body that fits the schema may still name
an unknown field or weigh every slot with 0. Exit code 1 if anything was found.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.faults.raw_http import DamagedRequests
from bench.load.shop import ODD_IDS, WORKER_ENDED, Service, Shop, open_shop
from bench.measurements import Measurements
from bench.serving.environments import python_for
from demo.embedded_redis import EmbeddedRedis

_ROOT = Path(__file__).parents[2]
_OUT = _ROOT / "bench" / "results" / "fuzz.json"
_WORK = _ROOT / ".bench"
_EXCLUDED = "positive_data_acceptance"
_DATA_KEY, _ADMIN_KEY = "a-data-key-for-the-fuzzing", "an-admin-key-for-the-fuzzing"
_KEYS = {"admin_keys": _ADMIN_KEY, "api_keys": _DATA_KEY}
_RAW = "below http"


@dataclass(frozen=True)
class Setup:
    """One configuration of the service and of its client.

    Attributes:
        name: as the results call it.
        settings: of the service.
        key: sent with every request; None: none is.
        redis: whether the service has one.
    """

    name: str
    settings: dict[str, str]
    key: str | None
    redis: bool = True


_OPEN = Setup("no API keys, admin key sent", {"admin_keys": _ADMIN_KEY}, _ADMIN_KEY)
_ADMIN = Setup("keys set, admin key sent", _KEYS, _ADMIN_KEY)
SETUPS = (
    _OPEN,
    _ADMIN,
    Setup("keys set, data key sent", _KEYS, _DATA_KEY),
    _OPEN,
    Setup("keys set, none sent", _KEYS, None),
    _ADMIN,
    Setup("no keys, no Redis", {}, None, redis=False),
)


def known(shop: Shop) -> dict[str, Any]:
    """Values of the catalogue for requests."""
    made = [
        {"must": [{"field": "category", "in": [f"category {number}" for number in range(5)]}]},
        {"must": [{"field": "price", "gte": 10, "lt": 50}], "must_not": [{"field": "in_stock", "eq": False}]},
        {"must": [{"field": "brand", "exists": True}, {"field": "serial", "lte": 40}]},
        {"must_not": [{"field": "title", "exists": True}]},
        {"must": [{"field": "serial", "gt": 10**9}]},
        {"must": [{"field": "serial", "eq": 3}]},
    ]
    return {
        "ids": [*ODD_IDS, *shop.items[len(ODD_IDS) : 40]],
        "fields": ["title", "category", "brand", "price", "in_stock", "serial"],
        "slots": ["text", "image", "behaviour"],
        "filters": made,
    }


def fuzz(service: Service, setup: Setup, shop: Shop, *, seed: int, examples: int, scratch: Path) -> dict[str, Any]:
    """Run schemathesis once: statuses by operation, results by check, failures."""
    (scratch / "known.json").write_text(json.dumps(known(shop)))
    counts, report = scratch / "counts.json", scratch / "report.json"
    for left_over in (counts, report):
        left_over.unlink(missing_ok=True)
    excluded = _EXCLUDED if setup.redis else f"{_EXCLUDED},not_a_server_error"  # 503 is right there; 500 is counted
    command = [
        python_for("schemathesis"),
        "-m",
        "schemathesis.cli",
        "run",
        f"http://127.0.0.1:{service.port}/openapi.json",
    ]
    command += ["--exclude-checks", excluded, "--continue-on-failure", "--max-examples", str(examples)]
    command += ["--seed", str(seed), "--generation-database", "none", "--no-color"]
    command += ["--report", "json", "--report-json-path", report]
    if setup.key is not None:  # in both headers, or a made-up key in one would be saved by the right one in the other
        command += ["--header", f"X-API-Key: {setup.key}", "--header", f"Authorization: Bearer {setup.key}"]
    variables = {"FUZZ_KNOWN": str(scratch / "known.json"), "FUZZ_COUNTS": str(counts)}
    variables |= {"SCHEMATHESIS_HOOKS": "bench.faults.fuzz_hooks", "PYTHONPATH": str(_ROOT), "PATH": os.environ["PATH"]}
    ran = subprocess.run(command, cwd=scratch, env=variables, capture_output=True, text=True, check=False)
    if not report.exists() or not counts.exists():
        raise SystemExit(f"schemathesis did not run: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    (scratch / "output.txt").write_text(ran.stdout)
    summary, counted = json.loads(report.read_text()), json.loads(counts.read_text())
    return {
        "seed": seed,
        "schemathesis": summary["schemathesis_version"],
        "requests": sum(sum(by_status.values()) for by_status in counted["statuses"].values()),
        "complete": summary["complete"],
        "operations": summary["operations"]["tested"],
        "operations_in_all": summary["operations"]["total"],
        "failures": summary["failures"],
        "errors": summary["errors"],
        "statuses": counted["statuses"],
        "undocumented": counted["undocumented"],
        "checks": [name for name in counted["checks"] if name not in excluded.split(",")],
    }


def found_in(measured: dict[str, Any], service: Service) -> dict[str, Any]:
    """Counts of the failures of a round."""
    statuses: Counter[str] = Counter()
    for by_status in measured["statuses"].values():
        statuses.update(by_status)
    return measured | {
        "by_status": dict(sorted(statuses.items())),
        "server_errors": statuses["500"] + sum(n for status, n in statuses.items() if status in {"501", "502", "504"}),
        "unanswered": statuses["none"],
        "undocumented_statuses": sum(measured["undocumented"].values()),
        **health(service),
    }


def health(service: Service) -> dict[str, Any]:
    """Whether the service runs, and what its log has of failed requests and of workers that died."""
    lines = service.errors()
    return {
        "alive": service.alive,
        "lines_logged_at_error": sum('"failed"' in line for line in lines),
        "worker_deaths": sum(WORKER_ENDED in line for line in lines),
    }


def is_clean(measured: dict[str, Any]) -> bool:
    """Whether a round found nothing."""
    nothing = ("failures", "errors", "server_errors", "unanswered", "undocumented_statuses", "lines_logged_at_error")
    found = any(measured[name] for name in nothing) or measured.get("worker_deaths", 0) > 0
    return measured["alive"] and measured["complete"] and not found


def totals(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds together."""
    operations: dict[str, Counter[str]] = {}
    for one in rounds:
        for name, counts in one["statuses"].items():
            operations.setdefault(name, Counter()).update(counts)
    return {
        "requests": sum(one["requests"] for one in rounds),
        "rounds": len(rounds),
        "seeds": [one["seed"] for one in rounds],
        "operations": {name: dict(sorted(counts.items())) for name, counts in sorted(operations.items())},
        "checks": rounds[0]["checks"],
        "schemathesis": rounds[0]["schemathesis"],
        "server_errors": sum(one["server_errors"] for one in rounds),
        "undocumented_statuses": sum(one["undocumented_statuses"] for one in rounds),
        "unanswered": sum(one["unanswered"] for one in rounds),
        "failures": sum(len(one["failures"]) for one in rounds),
        "clean": all(is_clean(one) for one in rounds),
    }


def run_rounds(options: argparse.Namespace, results: Measurements, shop: Shop, scratch: Path) -> list[dict[str, Any]]:
    """Run rounds until there are enough requests; stored rounds count."""
    rounds: list[dict[str, Any]] = []
    seed = options.seed
    while sum(one["requests"] for one in rounds) < options.requests or len(rounds) < options.rounds:
        setup = SETUPS[(seed - options.seed) % len(SETUPS)]
        key = f"schemathesis/{seed}: {setup.name}"
        if key not in results:
            started = time.perf_counter()
            with EmbeddedRedis() as redis:
                url = redis.url if setup.redis else "unix:///nonexistent/redis.sock"
                settings = setup.settings | {"workers": str(options.workers)}
                with Service(shop.registry, url, scratch / "service.log", **settings) as service:
                    made = fuzz(service, setup, shop, seed=seed, examples=options.examples, scratch=scratch)
                    measured = found_in(made, service)
            results.put(key, measured, took_s=time.perf_counter() - started)
        rounds.append(results[key])
        _tell(key, rounds[-1], scratch / "output.txt")
        seed += 1
    return rounds


def run_raw(options: argparse.Namespace, results: Measurements, shop: Shop, scratch: Path) -> dict[str, Any]:
    """Send bytes that are not HTTP to a service of its own."""
    if _RAW not in results:
        started = time.perf_counter()
        workers = str(options.workers)
        with (
            EmbeddedRedis() as redis,
            Service(shop.registry, redis.url, scratch / "raw.log", workers=workers) as service,
        ):
            measured = DamagedRequests(service.port, options.seed).run(options.raw) | health(service)
        results.put(_RAW, measured, took_s=time.perf_counter() - started)
    found = results[_RAW]
    print(f"{_RAW}: {found['cases']} cases, {found['outcomes']}, wrong: {found['wrong'] or 'nothing'}", flush=True)
    return found


def _tell(key: str, one: dict[str, Any], output: Path) -> None:
    print(
        f"{key}: {one['requests']} requests, {one['by_status']}, {'clean' if is_clean(one) else 'NOT CLEAN'}",
        flush=True,
    )
    if not is_clean(one) and output.exists():
        print(output.read_text(), flush=True)


def main() -> None:
    """Fuzz and report the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many")
    parser.add_argument("--rounds", type=int, default=len(SETUPS), help="at least so many: by default each setup once")
    parser.add_argument("--examples", type=int, default=100, help="of each operation in one round")
    parser.add_argument("--raw", type=int, default=2_000, help="cases below HTTP")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each further one has the next")
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=1, help="processes that answer")
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--work", type=Path, default=_WORK, help="where built bundles are kept between runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    settings = {name: getattr(options, name) for name in ("examples", "raw", "seed", "items")}
    if options.workers > 1:
        settings["workers"] = options.workers
    results = Measurements(options.out, settings, fresh=options.fresh)
    with tempfile.TemporaryDirectory(prefix="vlm2rec-fuzz-") as directory:
        scratch = Path(directory)
        shop = open_shop(options.work, options.items, scratch)
        rounds = run_rounds(options, results, shop, scratch)
        raw = run_raw(options, results, shop, scratch)
    found = totals(rounds) | {"raw_cases": raw["cases"], "raw_wrong": len(raw["wrong"])}
    quiet = not raw["lines_logged_at_error"] and not raw.get("worker_deaths", 0)
    found["clean"] = found["clean"] and raw["alive"] and not raw["wrong"] and quiet
    results.put("in all", found, took_s=0.0)
    print(json.dumps({name: found[name] for name in found if name not in {"operations", "checks"}}))
    sys.exit(0 if found["clean"] else 1)


if __name__ == "__main__":
    main()
