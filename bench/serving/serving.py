"""Measures `POST /recommend` under load: vlm2rec, a bare echo and six other servers of the same bundle and Redis.

    python -m bench.serving.serving            # continues the last run; stages of other days only if they are complete
    python -m bench.serving.serving --fresh    # begins anew
    python -m bench.serving.serving --only overload start    # measures these stages again and leaves the rest
    python -m bench.serving.serving --smoke    # seconds, to see that everything runs
    python -m bench.serving.serving --neighbours 0    # bundles without item-to-item lists

Every measurement is stored as soon as it is done (bench/results/serving.json); at the end docs/benchmarks.md is
written. Load generator, Redis and server share the machine, so only ratios within one file mean anything; contenders
take turns for that reason.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress, TaskID

from bench.index.bundles import Published, published
from bench.load.closed_loop import load_tool
from bench.measurements import Measurements
from bench.serving.environments import CannotInstall
from bench.serving.page import PAGE, write_page
from bench.serving.plan import SMOKE, ServingPlan
from bench.serving.running import DidNotServe
from bench.serving.setting import Setting
from bench.serving.stages import Task, Visit, measured_visits, tuning_visits

_ROOT = Path(__file__).parents[2]
_WORK = _ROOT / ".bench"
STAGES = ("tuning", "contenders", "sizes", "recall", "overload", "start", "users")
_OUT = _ROOT / "bench" / "results" / "serving.json"
NEIGHBOURS = 50  # what `vlm2rec fit-encoder` takes by default


def prepare(sizes: Iterable[int], results: Measurements, work: Path, neighbours: int) -> dict[int, Published]:
    """Build and publish the missing bundles of these sizes, with so many neighbours in the lists of each item.

    Raises:
        SystemExit: the results are of bundles with an encoder of another size.
    """
    found = {}
    with Progress() as bars:
        for rows in sizes:
            bar = bars.add_task(f"{rows:,} items", total=1.0)

            def progress(stage: str, share: float, bar: TaskID = bar, rows: int = rows) -> None:
                bars.update(bar, description=f"{rows:,} items: {stage}", completed=share)

            started = time.perf_counter()
            made = found[rows] = published(rows, work, progress, neighbours=neighbours)
            bars.update(bar, description=f"{rows:,} items: {made.kind} index", completed=1.0)
            key = f"bundle/{rows}"
            measured = results[key].get("encoder") if key in results else None
            if measured not in {None, "", made.encoder}:
                raise SystemExit(
                    f"{results.path} is of an encoder of {measured}, today's is {made.encoder}; begin anew with --fresh"
                )
            if key not in results:
                took_s = time.perf_counter() - started  # next to nothing for a bundle of an earlier run
                where = {name: Path(getattr(made, name)).name for name in ("registry", "bundle")}  # not whose machine
                results.put(key, asdict(made) | where, took_s=took_s)
    return found


def wanted(visits: Iterable[Visit], only: Collection[str]) -> list[Visit]:
    """The visits of some stages, or all where none is named."""
    return [visit for visit in visits if not only or visit.stage in only]


def missing(visit: Visit, results: Measurements) -> list[Task]:
    """The missing tasks of a visit."""
    return [task for task in visit.tasks if task.key not in results]


def forget_unfinished(visits: Iterable[Visit], results: Measurements) -> list[str]:
    """Drop the stages that did not run to their end and were begun on another day or commit, and give their names.

    To go on with one would put the echo and the figures of different days into one round.
    """
    unfinished = dict.fromkeys(
        visit.stage for visit in visits if not all(results.was_tried(task.key) for task in visit.tasks)
    )
    dropped = [stage for stage in unfinished if not results.is_of_today(stage)]
    for stage in dropped:
        results.forget(stage)
    return dropped


def carry_out(visit: Visit, setting: Setting, results: Measurements) -> None:
    """Start a contender, run its missing tasks and stop it; a failed start or load is recorded with the reason."""
    tasks = missing(visit, results)
    if not tasks:
        return
    started = time.perf_counter()
    try:
        with setting.start(visit.contender, visit.rows, visit.users) as running:
            if visit.warm:
                setting.closed(running, visit.users, setting.plan.connections, setting.plan.warm_s)
            for task in tasks:
                measured = task.measure(running)
                results.put(task.key, measured, took_s=time.perf_counter() - started)
                print(f"  {task.key:<44} {_shown(measured)}", flush=True)
                started = time.perf_counter()
    except (CannotInstall, DidNotServe, RuntimeError, subprocess.SubprocessError) as error:
        for task in tasks:
            if task.key not in results:
                results.put(task.key, {"failed": str(error)}, took_s=time.perf_counter() - started)
        print(f"  {visit.contender.name}: {error}", flush=True)


def main() -> None:
    """Measure everything that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="begin anew; built bundles are kept all the same")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=[], help="measure these again, and nothing else")
    parser.add_argument("--resume", action="store_true", help="with --only: measure what is missing of these stages")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes, results aside")
    parser.add_argument("--out", type=Path, default=None, help=f"default {_OUT.relative_to(_ROOT)}")
    parser.add_argument("--work", type=Path, default=_WORK, help="where bundles are kept between runs")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="of an item in each list; 0: no lists")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    plan = SMOKE if options.smoke else ServingPlan()
    aside = Path(tempfile.gettempdir()) / "vlm2rec-bench-smoke.json"
    results = Measurements(
        options.out or (aside if options.smoke else _OUT),
        asdict(plan) | {"load": load_tool(), "neighbours": options.neighbours},
        fresh=options.fresh or options.smoke,
    )
    if not options.resume:
        for stage in options.only:
            results.forget(stage)
    bundles: dict[int, Published] = {}
    with Setting(plan, bundles) as setting:
        chosen = wanted((*tuning_visits(setting), *measured_visits(setting, results)), options.only)
        for stage in forget_unfinished(chosen, results):
            print(f"{stage}: begun on another day or commit, so all of it is measured anew", flush=True)
        needed = {visit.rows for visit in chosen if missing(visit, results)}
        bundles |= prepare(sorted(needed), results, options.work, options.neighbours)
        for visits in (tuning_visits(setting), measured_visits(setting, results)):
            planned = wanted(visits, options.only)  # only now, since the tuning decides how peers are measured
            for number, visit in enumerate(planned, 1):
                print(
                    f"[{number}/{len(planned)}] {visit.stage}: {visit.contender.name}, {visit.rows:,} items", flush=True
                )
                carry_out(visit, setting, results)
    written = write_page(results.path, results.path.with_suffix(".md") if options.smoke else PAGE)
    print(f"all measured: {results.path}, {written}")


def _shown(measured: object) -> str:
    """The figures of a line of progress."""
    if not isinstance(measured, dict):
        return ""
    names = ("good", "p50_ms", "p90_ms", "p99_ms", "refused", "errors", "ready_s", "recall", "same")
    return "  ".join(f"{name} {measured[name]:.4g}" for name in names if isinstance(measured.get(name), int | float))


if __name__ == "__main__":
    main()
