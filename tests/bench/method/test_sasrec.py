"""RecTools' SASRec beside ours: what it is given, how its scores become ranks. Its training is not run here."""

import numpy as np
import pytest

from bench.method.sasrec import NAMES, GivenVectors, windows
from training.data.sequences import Sequences, Targets
from training.evaluation.evaluate import TargetSet, rank_sets


@pytest.mark.parametrize("history", [1, 3, 10])
def test_every_event_but_the_first_is_learned_once_as_a_next_item(history: int) -> None:
    rows = [np.arange(length) + 100 * user for user, length in enumerate((1, 2, 4, 11, 25))]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
    cut = windows(Sequences(list("abcde"), offsets, np.concatenate(rows)), history)
    learned = [row for window in cut for row in window[1:].tolist()]
    assert sorted(learned) == [row for part in rows for row in part[1:].tolist()]
    assert all(2 <= len(window) <= history + 1 and (np.diff(window) == 1).all() for window in cut)


def test_given_scores_are_ranked_by_our_protocol_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).permutation(70).reshape(7, 10).astype(np.float32)
    targets = Targets([np.array([user]) for user in range(7)], np.full(7, 9), [f"u{user}" for user in range(7)])
    known = np.arange(10) != 8
    monkeypatch.setattr("training.ranking.ranking._MOST_USERS", 3)
    (ranked,) = rank_sets(
        [TargetSet("test", targets, 7)], {NAMES["sasrec"]: (GivenVectors(scores, np.eye(10, dtype=np.float32)), known)}
    )
    rivals = [[row for row in range(8) if row != user] for user in range(7)]
    expected = [(scores[user, rivals[user]] > scores[user, 9]).sum() for user in range(7)]
    np.testing.assert_array_equal(ranked.rankings[NAMES["sasrec"]].full.means, expected)
