import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from cli.offline.evaluation_page import yardsticks
from training.errors import EvaluationError
from training.ranking.metrics import Ranks
from training.ranking.ranking import TargetRanks
from training.ranking.table import COLD_ITEMS, PAIRED, Table


def ranking(ranks: Sequence[float]) -> TargetRanks:
    full = Ranks.of_means(np.array(ranks, dtype=np.float64))
    return TargetRanks(full, full, np.full((len(full), 10), -1, dtype=np.int64))


def table(systems: Mapping[str, Sequence[float]], name: str = "test") -> Table:
    return Table.of(name, {system: ranking(ranks) for system, ranks in systems.items()}, 50, seed=0)


def test_ratios_between_any_two_rows_are_reciprocal() -> None:
    rng = np.random.default_rng(0)
    made = table({name: rng.integers(0, 25, 300).astype(float).tolist() for name in "abc"})
    for metric in PAIRED:
        one, other = made.ratio("b", "c", metric), made.ratio("c", "b", metric)
        assert one.ratio * other.ratio == pytest.approx(1)
        assert one.low * other.high == pytest.approx(1, rel=0.01)  # quantiles of 1 / x, between two resamples
        assert one.low < one.ratio < one.high
        assert one.ratio == pytest.approx(made.row("b").values[metric] / made.row("c").values[metric])
        assert made.row("b").ratios[metric] == made.ratio("b", "a", metric)


def test_an_interval_is_paired() -> None:
    """b is where a is, and finds every second of its targets one place later: the users' luck cancels out."""
    ranks = [0.0, 30.0] * 200
    made = table({"a": ranks, "b": [1.0, 30.0] * 200})
    found = made.ratio("b", "a", "ndcg@10")
    np.testing.assert_allclose([found.ratio, found.low, found.high], 1 / np.log2(3), rtol=1e-12)
    assert made.ratio("b", "a", "hr@20") == made.ratio("a", "a", "hr@20")


def test_cold_items_are_compared_with_what_can_find_them() -> None:
    rows = {"popularity": [99.0, 99.0], "TF-IDF neighbours": [0.0, 99.0], "x": [0.0, 0.0]}
    assert table(rows).yardstick(None) == "popularity"
    assert table(rows, COLD_ITEMS).yardstick(None) == "TF-IDF neighbours"
    assert table({"popularity": [1.0]}, COLD_ITEMS).yardstick(None) == "popularity"
    assert table(rows).yardstick("x") == "x"
    with pytest.raises(EvaluationError, match="no row 'y'"):
        table(rows).yardstick("y")


def test_a_table_without_the_row_asked_for_keeps_its_usual_yardstick() -> None:
    rows = {"popularity": [99.0, 99.0], "TF-IDF neighbours": [0.0, 99.0]}
    both = [table({**rows, "x": [0.0, 0.0]}), table(rows, COLD_ITEMS)]
    assert yardsticks(both, "x") == ["x", "TF-IDF neighbours"]
    assert yardsticks(both, None) == ["popularity", "TF-IDF neighbours"]
    assert yardsticks(both, "popularity") == ["popularity", "popularity"]
    with pytest.raises(EvaluationError, match="no row 'y'"):
        yardsticks(both, "y")


def test_the_file_has_the_ratios_of_every_row_to_the_baselines_and_what_was_asked_for() -> None:
    made = table({"popularity": [99.0, 99.0], "TF-IDF neighbours": [0.0, 99.0], "x": [0.0, 0.0], "y": [3.0, 3.0]})
    rows = json.loads(json.dumps(made.as_json(["x"]), allow_nan=False))["rows"]
    assert set(rows[3]["ratios"]) == {"popularity", "TF-IDF neighbours", "x"}
    assert set(rows[3]["ratios"]["x"]) == {"hr@10", "ndcg@10", "hr@20", "ndcg@20"}
    assert rows[2]["ratios"]["TF-IDF neighbours"]["hr@10"][0] == 2
    assert rows[2]["ratio_to_popularity"]["hr@10"] == [None, None, None]
