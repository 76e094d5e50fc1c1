"""The page says what the figures say: medians, ratios within a round, and what does not hold."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.measurements import Measurements
from bench.serving.contenders import EVERYONE, OURS
from bench.serving.page import page
from bench.serving.plan import SMOKE, ServingPlan
from bench.serving.results import ServingResults
from bench.serving.setting import Setting
from bench.serving.stages import at_its_best, measured_visits, tuning_visits
from bench.serving.targets import cpu_by_workers, echo_of, verdicts

MIB = 2**20
ABOUT = {"took_s": 30.0, "commit": "abc1234", "at": "2026-11-24T10:00:00Z", "load_average": 2.5}


def run(rounds: int = 3, **figures: dict[str, Any]) -> ServingResults:
    """A run with the measurements given; a key like ``contenders/*/echo/closed`` and a list value fill the rounds."""
    measurements: dict[str, Any] = {}
    for key, measured in figures.items():
        for number in range(1, rounds + 1):
            of_round = {name: v[number - 1] if isinstance(v, list) else v for name, v in measured.items()}
            measurements[key.replace("*", str(number))] = of_round | ABOUT
    return ServingResults(
        {"settings": asdict(ServingPlan()) | {"load": "wrk"}, "machine": {"cores": 2}, "measurements": measurements}
    )


def verdict(read: ServingResults, target: str) -> tuple[str, bool | None]:
    (found,) = [one for one in verdicts(read) if target in one.target]
    return found.measured, found.holds


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # In the second round the machine was half as fast for everybody: .4, .3, .34 and not the ratio of the medians.
    read = run(
        **{
            "contenders/*/vlm2rec/closed": {"good": [2400.0, 900.0, 2040.0]},
            "contenders/*/echo/closed": {"good": [6000.0, 3000.0, 6000.0]},
        }
    )
    assert verdict(read, "≥ 0.35 × a bare FastAPI echo") == ("0.34 (0.30–0.40) ×", False)
    assert verdict(read, "≥ 0.40 × a bare FastAPI echo") == ("0.34 (0.30–0.40) ×", False)


def test_each_peer_is_measured_with_the_processes_that_answer_most() -> None:
    read = run(
        **{
            "tuning/*/MOSEC/1": {"good": [3000.0, 2000.0, 0.0]},
            "tuning/*/MOSEC/2": {"good": [2900.0, 2300.0, 9e9]},  # there are two rounds of tuning
        }
    )
    chosen = {one.name: at_its_best(one, read) for one in EVERYONE}
    assert chosen["MOSEC"].environment["BENCH_WORKERS"] == "2"
    assert chosen["MOSEC"].settings.startswith("2 worker processes; batches")
    assert "BENCH_WORKERS" not in chosen["BentoML"].environment
    assert chosen["vlm2rec"] == OURS


def test_vlm2rec_is_measured_with_its_best_number_of_workers_everywhere(tmp_path: Path) -> None:
    results = Measurements(tmp_path / "r.json", asdict(SMOKE), fresh=True)
    for workers, rate in ((1, 1000.0), (2, 1300.0)):
        results.put(f"tuning/1/vlm2rec/{workers}", {"good": rate}, took_s=1.0)
    with Setting(SMOKE, {}) as setting:
        ours = [visit for visit in measured_visits(setting, results) if visit.contender.name == "vlm2rec"]
        tried = [visit.contender for visit in tuning_visits(setting) if visit.contender.name == "vlm2rec"]
    assert [one.environment["VLM2REC_WORKERS"] for one in tried] == ["1", "2"]
    assert {visit.stage for visit in ours} == {"contenders", "sizes", "recall", "overload", "start", "users"}
    for visit in ours:
        if visit.stage != "start":
            assert (visit.contender.environment["VLM2REC_WORKERS"], visit.contender.workers) == ("2", 2), visit.stage


def test_the_start_is_measured_with_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM2REC_WORKERS", "7")
    variables = OURS.with_default_processes().variables(port=1, bundle="b", redis="r")
    assert "VLM2REC_WORKERS" not in variables
    assert OURS.variables(port=1, bundle="b", redis="r")["VLM2REC_WORKERS"] == "1"


def test_every_round_of_every_stage_has_its_echo(tmp_path: Path) -> None:
    plan = ServingPlan()
    results = Measurements(tmp_path / "r.json", asdict(plan), fresh=True)
    with Setting(plan, {}) as setting:
        keys = [task.key for visit in measured_visits(setting, results) for task in visit.tasks]
    for stage, rounds in {"contenders": 3, "sizes": 3, "overload": 5, "start": 3, "users": 3}.items():
        assert [key for key in keys if key == echo_of(stage).format(round=key.split("/")[1])] == [
            echo_of(stage).format(round=number) for number in range(1, rounds + 1)
        ]


@pytest.mark.parametrize(
    ("echo", "holds", "said"),
    [
        ([9000.0, 7300.0, 7100.0], True, "2,100 req/s"),
        ([7100.0, 7199.0, 9000.0], None, "2,100 req/s; does not count: the echo gave 7,199 (7,100–9,000)/s"),
        ([10_801.0] * 3, None, "2,100 req/s; does not count: the echo gave 10,801/s"),
        ([10_800.0] * 3, True, "2,100 req/s"),
    ],
)
def test_a_rate_counts_only_beside_an_echo_near_its_reference(
    tmp_path: Path, echo: list[float], holds: bool | None, said: str
) -> None:
    read = run(**{"contenders/*/echo/closed": {"good": echo}, "contenders/*/vlm2rec/closed": {"good": 2100.0}})
    assert verdict(read, "2,000 req/s") == (said, holds)
    assert verdict(read, "≥ 0.40 × a bare FastAPI echo")[1] is False  # a ratio always counts
    uncounted = "do not count, for the reasons in the table"
    assert (uncounted in page(read, tmp_path, [])) == (holds is None)


def test_a_time_counts_by_the_echo_of_its_own_stage() -> None:
    figures = {"sizes/*/1000000/open 400": {"p90_ms": [5.0, 6.0, 9.0]}, "contenders/*/echo/closed": {"good": 9000.0}}
    said = "6.0 (5.0–9.0) ms"
    assert verdict(run(**figures), "at 400 req/s") == (
        f"{said}; does not count: the echo was not measured beside it",
        None,
    )
    assert verdict(run(**figures, **{"sizes/*/echo": {"good": 4000.0}}), "at 400 req/s")[1] is None
    assert verdict(run(**figures, **{"sizes/*/echo": {"good": 8000.0}}), "at 400 req/s") == (said, True)


def test_our_p99_is_held_against_the_best_peer_that_answers() -> None:
    # The echo is no peer; MOSEC answers half of what is offered; in the second round Ray Serve is best.
    read = run(
        **{
            "contenders/*/echo/open 500": {"p99_ms": 1.0, "good": 500.0, "offered": 500.0},
            "contenders/*/vlm2rec/open 500": {"p99_ms": [8.0, 8.0, 9.0]},
            "contenders/*/MOSEC/open 500": {"p99_ms": 2.0, "good": 250.0, "offered": 500.0},
            "contenders/*/LitServe/open 500": {"p99_ms": 10.0, "good": 499.0, "offered": 500.0},
            "contenders/*/Ray Serve/open 500": {"p99_ms": [20.0, 4.0, 20.0], "good": 500.0, "offered": 500.0},
        }
    )
    assert verdict(read, "at 500 req/s the lowest p99") == ("0.90 (0.80–2.00) × that of the best peer", True)


def test_nothing_measured_is_said_so() -> None:
    found = verdicts(run())
    assert {one.holds for one in found} == {None}
    assert {one.measured for one in found} == {"not measured"}


def test_latency_needs_both_percentiles() -> None:
    read = run(
        **{
            "contenders/*/echo/closed": {"good": 9000.0},
            "contenders/*/vlm2rec/open 500": {"p90_ms": 6.9, "p99_ms": 19.0},
            "contenders/*/vlm2rec/open 1000": {"p90_ms": 6.9, "p99_ms": 21.0},
        }
    )
    assert verdict(read, "at 500 req/s: p90 < 7 ms and p99") == ("6.9 and 19.0 ms", True)
    assert verdict(read, "at 1,000 req/s: p90 < 7 ms and p99") == ("6.9 and 21.0 ms", False)


def test_growth_counts_a_doubling() -> None:
    # Ten times the items are log2(10) = 3.32 doublings: 1.25 ** 3.32 = 2.098.
    read = run(
        **{
            "sizes/*/10000/open 400": {"p50_ms": 1.0},
            "sizes/*/100000/open 400": {"p50_ms": 2.09},
            "sizes/*/1000000/open 400": {"p50_ms": 2.09 * 2.11},
        }
    )
    assert verdict(read, "10,000 → 100,000 items") == ("1.25 ×", True)
    assert verdict(read, "100,000 → 1,000,000 items") == ("1.25 ×", False)


@pytest.mark.parametrize(
    ("memory", "said", "holds"),
    [
        ({"resident": 900 * MIB}, "1.15 × that (workers: 1)", False),
        ({"resident": 1500 * MIB, "once": 780 * MIB, "workers": 1}, "1.00 × that (workers: 1)", True),
        ({"resident": 1500 * MIB, "once": 900 * MIB, "workers": 2}, "1.00 × that (workers: 2)", True),
        ({"resident": 1500 * MIB, "once": 1020 * MIB, "workers": 2}, "1.13 × that (workers: 2)", False),
    ],
)
def test_memory_is_held_against_vectors_index_and_workers(memory: dict[str, Any], said: str, holds: bool) -> None:
    bundle = {"vectors_bytes": 400 * MIB, "index_bytes": 200 * MIB}  # 780 MiB, and 120 for the second worker
    read = run(**{"sizes/*/1000000/memory": memory, "bundle/1000000": bundle})
    assert verdict(read, "memory ≤ 1.3 × vectors and index") == (said, holds)


def test_the_overload_has_five_rounds() -> None:
    read = run(
        rounds=5, **{"overload/*/2x": {"good": [80.0, 70.0, 79.0, 90.0, 91.0]}, "overload/*/peak": {"good": 100.0}}
    )
    assert verdict(read, "open-loop 2 × the peak") == ("80% (70%–91%)", True)


def test_the_page_says_what_the_load_generator_used(tmp_path: Path) -> None:
    figures = {"contenders/*/vlm2rec/closed": {"good": 1.0, "client_cpu": [0.2, 0.4, 0.3]}}
    text = page(run(**figures), tmp_path, [])
    assert "at most 0.40 of a core (`contenders/2/vlm2rec/closed`)" in text
    assert "limited the rate" not in text
    assert "limited the rate" in page(run(**{"a/*": {"client_cpu": 0.95}}), tmp_path, [])


def test_one_round_that_does_not_recover_is_enough() -> None:
    figures = {"2x": [1, None, 2, 1, 1], "5x": [1, 5, 2, 1, 1]}
    read = run(rounds=5, **{f"overload/*/{name}": {"recovered_s": seconds} for name, seconds in figures.items()})
    assert verdict(read, "within 5 s of 2 ×") == ("1 s, not within 6 s, 2 s, 1 s, 1 s", False)
    assert verdict(read, "within 5 s of 5 ×") == ("1 s, 5 s, 2 s, 1 s, 1 s", True)


def test_it_recovers_in_every_round_only_if_every_round_was_measured() -> None:
    read = run(rounds=3, **{"overload/*/2x": {"recovered_s": [1, 5, 2]}, "overload/*/5x": {"recovered_s": [1, 6, 2]}})
    assert verdict(read, "within 5 s of 2 ×") == ("1 s, 5 s, 2 s; 3 of 5 rounds", None)
    assert verdict(read, "within 5 s of 5 ×") == ("1 s, 6 s, 2 s; 3 of 5 rounds", False)
    read = run(rounds=5, **{"overload/*/2x": {"recovered_s": 1}})
    read.measurements["overload/4/2x"] = {"failed": "the load could not be made"} | ABOUT
    assert verdict(read, "within 5 s of 2 ×") == ("1 s, 1 s, 1 s, failed, 1 s", False)


def test_a_target_with_fewer_rounds_than_planned_says_so(tmp_path: Path) -> None:
    echo = {"contenders/*/echo/closed": {"good": 9000.0}}
    figures = {"contenders/*/vlm2rec/closed": {"good": 2100.0}, "contenders/*/MOSEC/closed": {"good": 2000.0}}
    read = run(**echo, **figures)
    read.measurements["contenders/2/MOSEC/closed"] = {"failed": "no answer"} | ABOUT
    assert verdict(read, "0.9 × MOSEC") == ("1.05 ×; 2 of 3 rounds", True)
    assert verdict(read, "2,000 req/s") == ("2,100 req/s", True)
    assert "| 1.05 ×; 2 of 3 rounds | yes |" in page(read, tmp_path, [])
    two = run(rounds=2, **echo, **{"contenders/*/vlm2rec/open 500": {"p90_ms": 6.0, "p99_ms": 9.0}})
    assert verdict(two, "at 500 req/s: p90 < 7 ms and p99") == ("6.0 and 9.0 ms; 2 of 3 rounds", True)


def test_figures_of_several_rounds_show_their_spread(tmp_path: Path) -> None:
    memory = {"once": [100 * MIB, 120 * MIB, 110 * MIB]}
    of_overload = {
        "offered": [2000.0, 2200.0, 2100.0],
        "late": [0.0, 4.0, 2.0],
        "p50_ms": [70.0, 90.0, 80.0],
        "p99_ms": 900.0,
        "refusal_client_p99_ms": [7.0, 8.0, 9.0],
        "client_cpu": [0.2, 0.4, 0.3],
    }
    figures = {
        "contenders/*/vlm2rec/closed": {"good": 1.0, "client_cpu": [0.1, 0.2, 0.15]},
        "contenders/*/vlm2rec/memory": memory,
        "sizes/*/10000/memory": memory,
        "overload/*/2x": of_overload,
    }
    text = page(run(**figures), tmp_path, [])
    assert text.count("| 110 (100–120) MiB |") == 2
    assert "| 0.15 (0.10–0.20) |" in text
    assert "| 2,100 (2,000–2,200) | – | 2 (0–4) | – | – | 80 (70–90) / 900 ms |" in text
    assert "| – / – / 8.00 (7.00–9.00) ms | 0.30 (0.20–0.40) |" in text


@pytest.mark.parametrize("neighbours", [0, 20])
def test_the_introduction_says_which_encoder_and_lists_the_bundles_have(tmp_path: Path, neighbours: int) -> None:
    read = run(**{"contenders/*/echo/closed": {"good": 6000.0}})
    read.settings["neighbours"] = neighbours
    introduction = " ".join(page(read, tmp_path, []).partition("**This run:**")[0].split())
    assert ("no item-to-item lists" in introduction) == (neighbours == 0)
    assert ("has 20 neighbours in each of three item-to-item lists" in introduction) == (neighbours == 20)
    assert "(experiments/lists.md" in introduction
    assert "`fit-encoder` makes them by default: 50 neighbours, 20 above 250,000 items" in introduction
    assert "The encoder has a size that these results do not have and random weights" in introduction
    read.measurements["bundle/100000"] = {"encoder": "2 x 64"} | ABOUT
    introduction = " ".join(page(read, tmp_path, []).partition("**This run:**")[0].split())
    assert "the default size of `fit-encoder`, 2 layers of 64" in introduction
    read.measurements["bundle/100000"] = {"encoder": "3 x 32"} | ABOUT
    introduction = " ".join(page(read, tmp_path, []).partition("**This run:**")[0].split())
    assert "The encoder has 3 layers of 32 and random weights" in introduction
    assert "the default size" not in introduction


def test_the_page_shows_a_peer_that_could_not_serve_with_its_reason(tmp_path: Path) -> None:
    read = run(
        **{
            "contenders/*/echo/closed": {"good": [6000.0, 6100.0, 6200.0], "errors": 0},
            "contenders/*/vlm2rec/closed": {"good": [2000.0, 2100.0, 2200.0], "errors": [0, 3, 0]},
            "contenders/*/vlm2rec/open 500": {"p50_ms": 2.0, "p90_ms": 5.0, "p99_ms": 9.0, "errors": 1},
            "contenders/*/BentoML/start": {"failed": "no matching distribution"},
        }
    )
    text = page(read, tmp_path / "img", [tmp_path / "swap.json"])
    assert "| BentoML | could not be measured: no matching distribution |" in text
    assert re.search(
        r"\| vlm2rec \| 0\.34 \(0\.33–0\.35\) \| 1\.00 \| 2,100 \(2,000–2,200\) \| – \| 2\.0 / 9\.0 ms \| – \| 6 \|",
        text,
    )
    assert "`bench/results/swap.json`" in text
    for name in re.findall(r"\]\((img/\w+\.svg)\)", text):
        assert "</svg>" in (tmp_path / name).read_text()
    assert "throughput.svg" in text


def test_the_same_figures_give_the_same_files(tmp_path: Path) -> None:
    read = run(**{"contenders/*/echo/closed": {"good": [6000.0, 6100.0, 6200.0]}})
    pages = [page(read, tmp_path / name, []) for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert (tmp_path / "one" / "throughput.svg").read_bytes() == (tmp_path / "two" / "throughput.svg").read_bytes()


@pytest.mark.parametrize("missing", ["good", "p99_ms"])
def test_an_unfinished_measurement_is_a_dash(tmp_path: Path, missing: str) -> None:
    measured = {"good": 2000.0, "p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0}
    del measured[missing]
    assert "–" in page(run(**{"contenders/*/vlm2rec/closed": measured}), tmp_path, [])


@pytest.mark.parametrize(
    ("commits", "said"), [(["a", "a"], []), (["a", "a+"], ["+: files"]), (["a+", "b"], ["+: files", "gone on with"])]
)
def test_the_page_tells_of_what_code_its_figures_are(tmp_path: Path, commits: list[str], said: list[str]) -> None:
    read = run(**{"contenders/*/echo/closed": {"good": 6000.0}, "contenders/*/vlm2rec/closed": {"good": 2000.0}})
    for number, one in enumerate(read.measurements.values()):
        one["commit"] = commits[number % 2]
    text = page(read, tmp_path, [])
    assert [words for words in ("+: files", "gone on with") if words in text] == said


def test_the_time_to_refuse_of_earlier_runs_is_said_to_be_wrong(tmp_path: Path) -> None:
    earlier = run(**{"overload/*/2x": {"refusal_p99_ms": 0.01}})
    again = "measured wrongly before, not measured again yet"
    assert verdict(earlier, "2 × the peak: p99 of the time to refuse") == (again, None)
    assert verdict(earlier, "5 × the peak: p99 of the time to refuse") == ("not measured", None)
    text = page(earlier, tmp_path, [])
    assert again in text
    assert "not measured again yet**: `make bench-serving" in text
    assert "0.01 ms |" not in text
    written = [4.0, 6.0, 4.5, 4.5, 4.5]
    refusals = {"refusal_server_p99_ms": 4.0, "refusal_written_p99_ms": written, "refusal_client_p99_ms": 80.0}
    measured = run(rounds=5, **{"overload/*/2x": refusals, "overload/*/echo": {"good": 9000.0}})
    assert verdict(measured, "2 × the peak: p99 of the time to refuse") == ("4.50 (4.00–6.00) ms", True)
    text = page(measured, tmp_path, [])
    assert "| 4.00 / 4.50 (4.00–6.00) / 80.00 ms |" in text
    assert "Earlier versions of this page said" in text
    assert "not measured again yet" not in text


def test_a_time_to_refuse_that_ends_before_the_write_meets_no_target(tmp_path: Path) -> None:
    refusals = {"refusal_server_p99_ms": 0.2, "refusal_client_p99_ms": 80.0}
    read = run(**{"overload/*/2x": refusals, "overload/*/echo": {"good": 9000.0}})
    said = "0.20 ms until it was computed; not measured until it was written"
    assert verdict(read, "2 × the peak: p99 of the time to refuse") == (said, None)
    assert "| 0.20 / – / 80.00 ms |" in page(read, tmp_path, [])


def test_the_echo_of_another_day_validates_nothing(tmp_path: Path) -> None:
    figures = {
        "sizes/*/1000000/open 400": {"p90_ms": 5.0},
        "sizes/*/1000000/closed": {"good": 1800.0},
        "sizes/*/echo": {"good": 9000.0},
    }
    read = run(**figures)
    assert verdict(read, "at 400 req/s") == ("5.0 ms", True)
    assert "| 1,000,000 | – | 0.20 |" in page(read, tmp_path, [])
    read.measurements["sizes/2/echo"]["at"] = "2026-11-24T11:30:00Z"
    reason = "the echo of some rounds was measured at another time than the rest"
    assert verdict(read, "at 400 req/s") == (f"5.0 ms; does not count: {reason}", None)
    assert len(read.ratios("sizes/{round}/1000000/closed", "sizes/{round}/echo")) == 2
    for number in (1, 3):
        read.measurements[f"sizes/{number}/echo"]["at"] = "2026-12-01T10:00:00Z"
    assert verdict(read, "at 400 req/s") == ("5.0 ms; does not count: the echo was not measured beside it", None)
    text = page(read, tmp_path, [])
    assert "The echo was not measured in these rounds" in text
    assert "| 1,000,000 | – | – |" in text


def test_the_goals_of_cpu_are_on_the_page(tmp_path: Path) -> None:
    read = run(**{"contenders/*/vlm2rec/closed": {"cpu_ms": 0.68}, "contenders/*/echo/closed": {"good": 9000.0}})
    assert verdict(read, "ms of CPU an answer") == ("0.68 ms", False)
    file = tmp_path / "workers-100000.json"
    medians = {f"{workers} workers": {"cpu_ms": ms} for workers, ms in ((1, 1.02), (2, 0.9), (4, 1.09))}
    file.write_text(json.dumps({"items": 100_000, "neighbours": 50, "medians": {"echo": {"cpu_ms": 0.1}} | medians}))
    said = "1: 1.02 ms, 2: 0.90 ms, 4: 1.09 ms, the largest 1.21 × the smallest (50 neighbours in each list) | **no** |"
    assert said in page(read, tmp_path, [file])
    assert "within 15 % of each other (goal) | not measured | – |" in page(read, tmp_path, [])


def test_a_peer_that_is_measured_again_later_leaves_our_rate_and_has_no_ratio() -> None:
    figures = {"echo": 9000.0, "vlm2rec": 2400.0, "MOSEC": 2000.0}
    read = run(**{f"contenders/*/{name}/closed": {"good": rate} for name, rate in figures.items()})
    read.measurements["contenders/3/MOSEC/closed"] |= {"at": "2026-11-24T15:00:00Z", "good": 9000.0}
    assert verdict(read, "2,000 req/s") == ("2,400 req/s", True)
    assert verdict(read, "0.9 × MOSEC") == ("1.20 ×; 2 of 3 rounds", True)


@pytest.mark.parametrize("counts", [(1, 2), (1, 2, 8), (2, 4), ()])
def test_the_time_of_an_answer_is_compared_for_exactly_1_2_and_4_workers(counts: tuple[int, ...]) -> None:
    medians = {f"{count} workers": {"cpu_ms": 1.0} for count in counts}
    of_all = {"items": 100, "neighbours": 0, "medians": medians}
    assert cpu_by_workers(of_all).holds is None
    measured = {f"{count} workers": {"cpu_ms": 1.0} for count in (1, 2, 4)}
    assert cpu_by_workers(of_all | {"medians": measured}).holds is True
