"""Writes docs/benchmarks.md and its plots from bench/results/*.json.

    python -m bench.serving.page

Every figure on the page is read from the files.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.index.encoder import size_name
from bench.markdown_table import markdown_table
from bench.serving import sections
from bench.serving.results import ServingResults, shown
from bench.serving.targets import ECHO_REFERENCE, ECHO_WITHIN, Verdict, cpu_by_workers, echo_rates, verdicts

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "benchmarks.md"

_INTRO = """# Benchmarks

Made by `python -m bench.serving.page` from `bench/results/`; do not edit. To measure again, on a quiet
machine:

```sh
make bench-serving BENCH_ARGS="--neighbours {neighbours}"    # goes on where it ended; with --fresh it begins anew
```

A stage that is not complete is continued only on its own day and commit; otherwise all of it is measured anew, so
that its figures and the echo beside them are of one run. Complete stages stay until `--only STAGE` measures them again.

Load generator, Redis and server share one machine, so **only ratios within one run mean anything**; contenders take
turns, and every figure is the median of {rounds} round(s), or of {overload_rounds} in overload, each by itself, so
that those of a row need not add up; in brackets are the lowest and the highest; errors are those of all rounds. Ratios
are of figures of the same round. Among the contenders, peers and vlm2rec each have the number of processes that answers
most here. A time, or a number of answers a second, counts only where the echo of the same rounds was within
{within:.0%} of its reference, {reference:,.0f} req/s. Latencies are of answered requests: what was never answered
counts under errors and in no percentile. Closed loop: {tool} with {connections} connections. Open loop: requests due at
random moments of a constant rate (Poisson), latency counted from the moment a request was due.
Every request names a user with a stored history of 10 and asks for 20 items; catalogues are made, clustered vectors of
192 dimensions (text, image, behaviour). The encoder has {encoder} and random weights.
{lists} `fit-encoder` makes them by default: 50 neighbours, 20 above 250,000
items; they cost CPU time and memory ([Cost](experiments/lists.md#cost)).
"""
_MOST_CLIENT_CPU = 0.9
_LISTS = "Every item has {neighbours} neighbours in each of three item-to-item lists."
_NO_LISTS = "The bundles have no item-to-item lists."
_WHY = (
    "Where the time goes, and so why some do not hold, is in "
    "[Experiments: serving](experiments/serving.md#where-the-time-goes), with what was tried against it. "
    "`make bench-instructions` counts the processor instructions of an answer, which other load of the machine does "
    "not change ([CPU of an answer](experiments/serving-cpu.md)).\n"
)
_NOT_RUN = """## Not run

- **GPU**: no figures; none was at hand. `python -m bench.gpu.gpu_serving` measures p50 and p99 at 1,000 requests a
  second and the highest rate with p99 below 50 ms for 1M and 10M items, `bench/gpu/gpu_index.py` the index, `python -m
  bench.gpu.gpu_training` training and embedding; all three were only run on a CPU at toy size. `make check-gpu` passed
  on 2 December 2026 without a GPU (faiss-gpu 1.15.1, onnxruntime-gpu 1.26.0, Python 3.11.7): both libraries are built
  for CUDA, `VLM2REC_DEVICE=cuda` ends with one error, `auto` answers from the CPU, and the benches of serving and index
  run at toy size.
- **10M items**: not built here.
- **A swap of bundles under load** is measured by a bench of its own, if its result is listed below.
"""


def page(read: ServingResults, images: Path, others: Sequence[Path]) -> str:
    """The whole page.

    Args:
        read: the serving run.
        images: directory for the plots.
        others: result files of other benches, to be listed; those of the numbers of workers are read.
    """
    settings = read.settings
    lists = _LISTS.format(neighbours=settings["neighbours"]) if settings.get("neighbours") else _NO_LISTS
    rounds, tool = settings.get("rounds", 0), settings["load"]
    parts = [
        _INTRO.format(
            rounds=rounds,
            overload_rounds=settings.get("overload_rounds", rounds),
            connections=settings["connections"],
            tool=tool,
            encoder=_encoder(read),
            lists=lists,
            neighbours=settings.get("neighbours", 0),
            within=ECHO_WITHIN,
            reference=ECHO_REFERENCE,
        ),
        *_run(read),
        "## What holds\n",
        *_verdicts([*verdicts(read), cpu_by_workers(_workers(others, settings.get("main", 0)))]),
        _WHY,
        *sections.contenders(read, images),
        *sections.sizes(read, images),
        *sections.recall(read),
        *sections.overload(read),
        *sections.users(read),
        *_stages(read),
        _NOT_RUN,
        *_others(others),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _encoder(read: ServingResults) -> str:
    """The size of the encoder of the bundles."""
    sizes = sorted({one["encoder"] for one in read.measurements.values() if one.get("encoder")})
    if not sizes:
        return "a size that these results do not have"
    said = " or ".join(f"{layers} layers of {width}" for layers, width in (one.split(" x ") for one in sizes))
    return f"the default size of `fit-encoder`, {said}," if sizes == [size_name()] else said


def _run(read: ServingResults) -> Iterator[str]:
    measured = read.measurements.values()
    commits = sorted({one["commit"] for one in measured})
    days = sorted({one["at"][:10] for one in measured})
    load = [one["load_average"] for one in measured]
    machine = read.machine
    yield (
        f"**This run:** {machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')} "
        f"GiB, {machine.get('system', '?')}, Python {machine.get('python', '?')}; "
        f"{' to '.join(days[:1] + days[1:][-1:])}, commit {', '.join(commits)}; load average while measuring "
        f"{min(load):.1f} to {max(load):.1f}, the bench's own load included.\n"
    )
    if any(one.endswith("+") for one in commits):
        yield "**+: files of the working tree differed from that commit while this was measured.**\n"
    if len({one.rstrip("+") for one in commits}) > 1:
        yield "**The run was gone on with after a commit: figures from different stages are of different code.**\n"
        yield from markdown_table(("stage", "measured on", "commit"), _stage_dates(read))
    echo = echo_rates(read, "contenders")
    if echo:
        share = shown([rate / ECHO_REFERENCE for rate in echo], "{:.2f}")
        yield f"The echo beside the contenders gave {share} × its reference; other stages have an echo of their own.\n"
    client = [(one["client_cpu"], key) for key, one in read.measurements.items() if "client_cpu" in one]
    if client:
        most, key = max(client)
        full = " **That is nearly all of one: it may have limited the rate.**" if most > _MOST_CLIENT_CPU else ""
        yield f"The load generator has one thread; it used at most {most:.2f} of a core (`{key}`).{full}\n"


def _stage_dates(read: ServingResults) -> Iterator[tuple[str, str, str]]:
    """The days and the commits of each stage; bundles are built when a stage first needs them."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for key, one in read.measurements.items():
        stages.setdefault(key.partition("/")[0], []).append(one)
    for stage, measured in stages.items():
        days, commits = ({str(one[name])[:10] for one in measured} for name in ("at", "commit"))
        yield stage, ", ".join(sorted(days)), ", ".join(sorted(commits))


def _verdicts(found: list[Verdict]) -> Iterator[str]:
    yield from markdown_table(
        ("", "target", "measured", "holds"),
        ((one.about, one.target + (" (goal)" if one.goal else ""), one.measured, _holds(one)) for one in found),
    )
    known = [one for one in found if one.holds is not None]
    uncounted = sum("does not count" in one.measured for one in found)
    owed = [one for one in known if not one.goal]
    held, held_owed = sum(bool(one.holds) for one in known), sum(bool(one.holds) for one in owed)
    apart = f" {uncounted} do not count, for the reasons in the table." if uncounted else ""
    yield f"{held} of {len(known)} hold; of those that are owed, {held_owed} of {len(owed)}.{apart}\n"


def _workers(others: Iterable[Path], rows: int) -> dict[str, Any]:
    """What the bench of the numbers of workers found on a catalogue of a size; empty: it was not run."""
    found = [path for path in others if path.name == f"workers-{rows}.json"]
    measured: dict[str, Any] = json.loads(found[0].read_text()) if found else {}
    return measured


def _holds(one: Verdict) -> str:
    return "–" if one.holds is None else "yes" if one.holds else "**no**"


def _stages(read: ServingResults) -> Iterator[str]:
    yield "## How long it takes\n"
    spent: dict[str, float] = {}
    for key, one in read.measurements.items():
        stage = key.partition("/")[0]
        spent[stage] = spent.get(stage, 0.0) + float(one["took_s"])
    total = sum(spent.values())
    yield from markdown_table(
        ("stage", "minutes"), ((s, f"{t / 60:.1f}") for s, t in {**spent, "in all": total}.items())
    )


def _others(others: Iterable[Path]) -> Iterator[str]:
    listed = [f"- `bench/results/{path.name}`" for path in sorted(others)]
    if listed:
        yield "## Results of the other benches\n"
        yield from listed


def write_page(results: Path, out: Path) -> Path:
    """Write the page of a result file, its plots beside it; gives where it is.

    Raises:
        SystemExit: the file holds no measurements.
    """
    read = ServingResults.of(results)
    if not read.measurements:
        raise SystemExit(f"{results} holds no measurements; run `make bench-serving` first")
    others = [path for path in results.parent.glob("*.json") if path != results]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(read, out.parent / sections.IMAGES, others))
    return out


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=_ROOT / "bench" / "results" / "serving.json")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    print(write_page(options.results, options.out))


if __name__ == "__main__":
    main()
