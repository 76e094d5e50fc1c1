"""The bench of an epoch at toy size, and what it is made of."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.index import fit_epoch


def test_histories_hold_exactly_the_interactions_asked_for() -> None:
    made = fit_epoch.made_histories(1_003, 50, np.random.default_rng(0))
    assert len(made.rows) == 1_003 == made.offsets[-1]
    assert len(made) == 50
    counts = np.sort(np.bincount(made.rows, minlength=50))[::-1]
    assert counts[:5].sum() > counts[5:].sum() / 2  # a power law: five in fifty have more than a third


def test_it_runs_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "fit.json"
    monkeypatch.setattr(
        sys, "argv", ["fit_epoch", "--interactions", "400", "--items", "30", "--threads", "1", "--out", str(out)]
    )
    fit_epoch.main()
    found = json.loads(out.read_text())
    assert (found["interactions"], found["items"], found["threads"]) == (400, 30, 1)
    assert found["seconds"] > 0
    assert 0 < found["loss"] < 100
