"""Our metrics against what RecTools said of the same scores (`bench/method/rectools_values.py` recorded it)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.sequences import Targets
from training.ranking import metrics
from training.ranking.ranking import TargetRanks, rank_targets
from training.ranking.table import Table

FIXTURE = Path(__file__).parent / "fixtures" / "rectools.json"


class Given:
    """Scores of the users in their order."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        assert len(histories) == len(self._scores)
        return self._scores


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return dict(json.loads(FIXTURE.read_text()))


@pytest.fixture(scope="module")
def ranking(recorded: dict[str, Any]) -> TargetRanks:
    histories = [np.array(rows, dtype=np.int64) for rows in recorded["histories"]]
    users = [f"u{number}" for number in range(len(histories))]
    targets = Targets(histories, np.array(recorded["targets"]), users)
    scores = np.array(recorded["scores"], dtype=np.float32)
    everything = np.ones(scores.shape[1], dtype=np.bool_)
    return rank_targets(Given(scores), targets, everything, negatives=np.array(recorded["negatives"]))


@pytest.mark.parametrize("k", [10, 20])
def test_every_user_has_the_value_that_rectools_gave(recorded: dict[str, Any], ranking: TargetRanks, k: int) -> None:
    for name, ranks in ((f"@{k}", ranking.full), (f"@{k}/100", ranking.sampled)):
        hits, gains = recorded["values"][f"hr{name}"], recorded["values"][f"ndcg{name}"]
        np.testing.assert_array_equal(metrics.hits(ranks, k), hits)
        np.testing.assert_allclose(metrics.gains(ranks, k), gains, rtol=1e-12)
        assert 0 < np.mean(gains) < np.mean(hits) <= 1
        assert len(set(gains)) > 5


def test_means_and_coverage_are_those_of_rectools(recorded: dict[str, Any], ranking: TargetRanks) -> None:
    (row,) = Table.of("test", {"x": ranking}, len(recorded["scores"][0]), seed=0).rows
    assert row.values["coverage@10"] == pytest.approx(recorded["coverage@10"])
    for name, values in recorded["values"].items():
        assert row.values[name] == pytest.approx(np.mean(values)), name
