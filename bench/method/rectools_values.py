"""Records RecTools' values for fixed scores, the reference for our metrics.

Run once, `python -m bench.method.rectools_values`, it writes `tests/training/ranking/fixtures/rectools.json`; RecTools
needs numpy < 2, so it lives in an environment of its own. Scores are distinct integers, because RecTools has no rule
for ties and ours counts them half.
"""

import json
import subprocess
from pathlib import Path

import numpy as np

from bench.serving.environments import python_for

_HERE = Path(__file__).parents[1]
FIXTURE = _HERE.parent / "tests" / "training" / "ranking" / "fixtures" / "rectools.json"
_USERS, _ITEMS, _NEGATIVES = 40, 60, 30


def case(seed: int) -> dict[str, list[list[int]] | list[int]]:
    """Histories, targets outside of them, negatives outside of both, and scores that favour the targets a little."""
    rng = np.random.default_rng(seed)
    histories, targets, negatives, scores = [], [], [], []
    for _ in range(_USERS):
        order = rng.permutation(_ITEMS)
        length = int(rng.integers(1, 8))
        target = int(order[length])
        worth = rng.permutation(_ITEMS) + 10 * (np.arange(_ITEMS) == target)
        histories.append(order[:length].tolist())
        targets.append(target)
        negatives.append(order[length + 1 : length + 1 + _NEGATIVES].tolist())
        scores.append(np.argsort(np.argsort(worth, kind="stable"), kind="stable").tolist())
    return {"histories": histories, "targets": targets, "negatives": negatives, "scores": scores}


def main() -> None:
    """Run RecTools and write the fixture."""
    asked = case(0)
    ran = subprocess.run(
        [python_for("rectools"), _HERE / "peers" / "rectools_metrics.py"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    FIXTURE.write_text(json.dumps({**asked, **json.loads(ran.stdout)}) + "\n", encoding="utf-8")
    print(f"{FIXTURE}: {json.loads(ran.stdout)['versions']}")


if __name__ == "__main__":
    main()
