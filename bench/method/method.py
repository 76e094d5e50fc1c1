"""Trains every row of the method's plan on every catalogue with three seeds and writes table and page.

    make bench-method                      # BENCH_ARGS="--jobs 2 --threads 1" and the like
    python -m bench.method.method --smoke         # the same in two minutes, to see that everything runs
    python -m bench.method.method --only CATALOGUE/ROW/SEED
    python -m bench.method.method --table         # the table and the page of what is done so far

The plan is data, in `bench/method/method_plan.py`. It takes hours and is never part of CI. It can be killed at any
moment, also with SIGKILL, and continues; only units whose plan has changed are done again. The table
goes to `bench/results/method.json`, the page to `docs/method-results.md`.
"""

import argparse
import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.method.method_plan import PLAN, SMOKE, MethodPlan, Unit
from bench.method.method_unit import UnitPlace, read_log
from bench.serving.running import end_with_us
from index.machine.cores import available_cores

_ROOT = Path(__file__).parents[2]
_WORK = _ROOT / ".bench" / "method"
OUT = _ROOT / "bench" / "results" / "method.json"
_LOOK_S = 0.5
_END_S = 10.0
_BUSY = 75
"""Exit code of a unit that another process is at (EX_TEMPFAIL)."""


class Child:
    """A process that runs one unit.

    Args:
        unit: which one.
        work: directory of the bench.
        threads: CPU threads.
        arguments: further ones of the command line.
    """

    def __init__(self, unit: Unit, work: Path, threads: int, arguments: Sequence[str]) -> None:
        self.unit = unit
        self._place = UnitPlace.of(work, unit)
        self._place.path.mkdir(parents=True, exist_ok=True)
        self._output = self._place.path / "output.txt"
        command = [sys.executable, "-m", "bench.method.method", "--only", unit.name, "--threads", str(threads)]
        count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")}
        with self._output.open("wb") as output:
            self._process = psutil.Popen(
                [*command, "--work", str(work), *arguments],
                cwd=_ROOT, env={**os.environ, **count}, stdout=output, stderr=subprocess.STDOUT, preexec_fn=end_with_us,
            )  # fmt: skip

    @property
    def step(self) -> int:
        """Training steps in the log so far."""
        return int(read_log(self._place.train / "log.jsonl").get("step", 0))

    def code(self) -> int | None:
        """Exit code; None while it runs."""
        found: int | None = self._process.poll()
        return found

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-4:])

    def end(self) -> None:
        """Stop the process; the unit resumes from its last checkpoint."""
        if self.code() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except psutil.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def run_units(
    units: Sequence[Unit], work: Path, *, jobs: int, threads: int, arguments: Sequence[str], console: Console
) -> list[Unit]:
    """Run all missing units, several at a time.

    Args:
        units: in the order in which they are to be begun.
        work: directory of the bench.
        jobs: processes at a time.
        threads: CPU threads of each.
        arguments: of the command line of each.
        console: for progress.

    Returns:
        Units that could not be done.
    """
    waiting = collections.deque(unit for unit in units if UnitPlace.of(work, unit).result() is None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed: list[Unit] = []
    running: dict[Child, TaskID] = {}
    with Progress(*columns, console=console) as bar:
        whole = bar.add_task("units", total=len(units), completed=len(units) - len(waiting))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    child = Child(waiting.popleft(), work, threads, arguments)
                    total = int(child.unit.overrides.get("train.steps", 0)) or None
                    running[child] = bar.add_task(child.unit.name, total=total)
                time.sleep(_LOOK_S)
                for child in list(running):
                    bar.update(running[child], completed=child.step)
                    if child.code() is None:
                        continue
                    bar.remove_task(running.pop(child))
                    if UnitPlace.of(work, child.unit).result() is not None:
                        bar.advance(whole)
                        console.print(f"{child.unit.name}: {_shown(work, child.unit)}", highlight=False)
                    else:
                        failed.append(child.unit)
                        console.print(f"{child.unit.name}: exit code {child.code()}\n{child.tail()}", markup=False)
        finally:
            for child in running:
                child.end()
    return failed


def main() -> None:
    """Run the missing units of the plan, then write the table and the page."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended on the way out
    plan = SMOKE if options.smoke else PLAN
    work = options.work or (_WORK.with_name("method-smoke") if options.smoke else _WORK)
    if options.only:
        sys.exit(_do(_named(plan, options.only), work, options.threads))
    console = Console()
    failed: list[Unit] = []
    if not options.table:
        arguments = ["--smoke"] if options.smoke else []
        failed = run_units(
            list(plan.units()), work, jobs=options.jobs, threads=options.threads, arguments=arguments, console=console
        )
    out = options.out or (work / "method.json" if options.smoke else OUT)
    from bench.method.method_page import PAGE, write_page
    from bench.method.method_table import write_table

    write_table(plan, work, out)
    page = write_page(out, out.with_suffix(".md") if out != OUT else PAGE)
    console.print(f"{out}, {page}", highlight=False)
    if failed:
        sys.exit(f"not done: {', '.join(unit.name for unit in failed)}; the same command tries them again")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=available_cores(), help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--only", metavar="CATALOGUE/ROW/SEED", help="one run in this process, and no table")
    parser.add_argument("--table", action="store_true", help="train nothing, write the table of what is done")
    parser.add_argument("--smoke", action="store_true", help="two minutes instead of hours, results aside")
    parser.add_argument("--work", type=Path, default=None, help=f"default {_WORK.relative_to(_ROOT)}")
    parser.add_argument("--out", type=Path, default=None, help=f"default {OUT.relative_to(_ROOT)}")
    return parser.parse_args()


def _named(plan: MethodPlan, name: str) -> Unit:
    for unit in plan.units():
        if unit.name == name:
            return unit
    known = ", ".join(unit.name for unit in plan.units())
    raise SystemExit(f"--only must be one of {known}; got {name!r}")


def _do(unit: Unit, work: Path, threads: int) -> int:
    """Run one unit in this process; its exit code."""
    import torch

    from bench.method.method_unit import Busy, carry_out
    from training.errors import TrainingError

    torch.set_num_threads(threads)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    try:
        with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task(unit.name, total=1.0)
            carry_out(unit, work, report=lambda step, share: bar.update(task, description=step, completed=share))
    except Busy as error:
        print(error)
        return _BUSY
    except TrainingError as error:
        print(f"{unit.name}: {error}")
        return 1
    print(f"{unit.name}: {_shown(work, unit)}")
    return 0


def _shown(work: Path, unit: Unit) -> str:
    """A line of progress."""
    found = UnitPlace.of(work, unit).result() or {}
    means = found.get("ndcg@10", {}).get("validation", {})
    values = " ".join(f"{name} {value:.4f}" for name, value in means.items())
    return f"validation NDCG@10 {values} ({found.get('training_seconds', 0):.0f} s)"


if __name__ == "__main__":
    main()
