"""The simulated shop: its truth by hand, and all of it at toy size."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.load.repeated_experiments import ARMS, SimulatedTraffic
from bench.load.repeated_interleaving import RankedShop, sample_sizes
from bench.load.shop_visitors import winner_of
from service.experiments.report import GROUPS, MEASURES

ROOT = Path(__file__).parents[3]


def test_simulated_traffic_has_its_stated_rates_and_lift() -> None:
    traffic = SimulatedTraffic(users=20_000, hours=24, base_rate=0.1, answers_an_hour=0.5, lift=0.5)
    hours = list(traffic.counts(np.random.default_rng(1)))
    assert len(hours) == 24
    sums = {arm: {measure: float(by_group.sum()) for measure, by_group in hours[-1][arm].items()} for arm in ARMS}
    both = {measure: sum(sums[arm][measure] for arm in ARMS) for measure in MEASURES}
    assert both["answers"] == pytest.approx(20_000 * 24 * 0.5, rel=0.05)
    assert [sums[arm]["clicks"] / sums[arm]["answers"] for arm in ARMS] == pytest.approx([0.1, 0.15], rel=0.08)
    assert both["latency_us"] / both["answers"] == pytest.approx(12_000, rel=0.01)
    some_came = 1.0 - (1.0 + 24 * 2 * 0.5) ** -0.5  # of the Gamma distribution, whose shape is a half
    assert both["users"] == pytest.approx(20_000 * some_came, rel=0.02)  # each once, however often they come
    assert 0.0015 < both["degraded"] / both["answers"] < 0.0025


@pytest.mark.parametrize(("more", "verdict"), [({}, 0), ({"latency_us": 1e9}, -1), ({"degraded": 500.0}, -1)])
def test_what_is_repeated_is_the_verdict_of_the_report_with_its_guard_rails(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, float], verdict: int
) -> None:
    simulated = SimulatedTraffic.counts

    def broken(traffic: SimulatedTraffic, rng: np.random.Generator) -> Iterator[Any]:
        for counted in simulated(traffic, rng):
            for measure, added in more.items():
                counted["second"][measure] = counted["second"][measure] + added / GROUPS
            yield counted

    monkeypatch.setattr(SimulatedTraffic, "counts", broken)
    assert SimulatedTraffic(hours=6, users=1000, answers_an_hour=0.5).found(1) == verdict


def test_the_better_of_two_rankings_brings_more_and_is_found_sooner_if_interleaved() -> None:
    found = sample_sizes(RankedShop(one_choice=True, better_blur=0.3, users=2500), 2)
    assert 0.08 <= found["lift"] <= 0.25
    sizes = found["median_answers"]
    assert sizes["interleaved"] < sizes["a/b"]
    same = RankedShop(one_choice=True, better_blur=1.0, users=1000).compared(3)
    assert (same["a/b"], same["interleaved"]) == (None, None)


def test_the_winner_of_an_answer_by_hand() -> None:
    arms = ["old", "new", "new", "old"]
    for clicked, winner in (([0, 1, 0, 0], "new"), ([1, 1, 0, 1], "old"), ([1, 0, 1, 0], ""), ([0, 0, 0, 0], None)):
        assert winner_of(arms, np.array(clicked, dtype=bool)) == winner


@pytest.mark.slow
def test_a_small_shop_finds_the_truth_over_http_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    out = tmp_path / "shop.json"
    command = [sys.executable, "-m", "bench.load.simulated_shop", "--items", "400", "--users", "60", "--visits", "2"]
    command += [
        "--interleaved-users",
        "20",
        "--traffic-repeats",
        "1",
        "--typed-users",
        "20",
        "--repeats",
        "3",
        "--work",
        str(tmp_path),
        "--out",
        str(out),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.exists(), ended.stderr[-2000:]
    found = json.loads(out.read_text())["measurements"]
    assert ended.returncode == 1  # too few visitors for a verdict
    assert (found["types"]["holds"], found["types"]["users"]) == (True, 20)
    assert found["types"]["changed_by_types"] >= 10
    assert found["attribution"]["answers"] == 120
    assert all(entry["exact"] for entry in found["attribution"]["positions"])
    assert found["attribution"]["conversions"]["found"] == found["attribution"]["conversions"]["true"] > 0
    assert sum(found["experiment"]["answers"].values()) == 120
    assert found["experiment"]["verdict"] == "not yet"
    assert (found["interleaved"]["answers"], found["interleaved"]["items"]) == (40, {"control": 200, "better": 200})
    assert found["interleaved"]["wins"] == found["interleaved"]["true_wins"]
    assert found["a-a"]["holds"]
    assert found["a-a-interleaved"]["holds"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert json.loads(again.stdout) == found
