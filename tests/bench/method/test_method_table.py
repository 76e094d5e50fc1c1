"""The table and the page of the method's bench, from ranks written by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.method.method_page import PAGE, RESULTS, page, write_page
from bench.method.method_plan import CataloguePlan, MethodPlan, Row, Unit
from bench.method.method_table import of_catalogue, write_table
from bench.method.method_unit import UnitPlace

# Ranks → gains: 0 → 1, 2 → 1 / log2(4) = .5, 6 → 1 / log2(8) = 1/3, from 10 on nothing.
BEST, HALF, THIRD, LOST = 0.0, 2.0, 6.0, 10.0
CATALOGUE = CataloguePlan(
    "shop",
    "a shop by hand",
    {"items": 40},
    {"train.steps": 3},
    (
        Row("image-alone", "pictures alone", {"train.modalities": ["image"]}),
        Row("sft-concat", "SFT, concat", group="sft"),
        Row("sft-sum", "SFT, sum", {"loss.fusion": "sum"}, group="sft"),
        Row("vlm2rec", "VLM2Rec"),
        Row("later", "not yet trained"),
    ),
    goal="collapse",
)
PLAN = MethodPlan((CATALOGUE,), seeds=(0, 1))


def done(work: Path, row: str, seed: int, *, fresh: dict[str, list[float]], validation: list[float]) -> None:
    """Leave behind what a finished unit leaves."""
    unit = Unit(CATALOGUE, next(one for one in CATALOGUE.rows if one.name == row), seed)
    place = UnitPlace.of(work, unit)
    place.path.mkdir(parents=True)
    ranks = {f"fresh {name}": np.array(found) for name, found in fresh.items()}
    popular = {"fresh popularity": np.array([HALF, LOST]), "validation popularity": np.array([LOST, LOST])}
    np.savez(place.path / "ranks.npz", **ranks, **popular, **{"validation fused": np.array(validation)})
    means = {"fresh": {"fused": 0.1}, "validation": {"fused": 0.2 + seed}}
    result = {
        "fingerprint": unit.fingerprint, "commit": "abc1234", "at": f"2026-11-2{5 + seed}T10:00:00Z",
        "fusion": "concat", "ndcg@10": means, "hr@10": means, "training_seconds": 60.0 + 60 * seed,
        "ranking_seconds": 20.0, "last_step": 3, "log": {"step": 3, "gap": 0.5 + seed, "loss": 9.9},
    }  # fmt: skip
    (place.path / "result.json").write_text(json.dumps(result))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for seed in (0, 1):
        image = {"fused": [BEST, BEST], "image": [BEST, BEST]}
        done(tmp_path, "image-alone", seed, fresh=image, validation=[BEST, BEST])
        concat = {"fused": [HALF, HALF], "text": [HALF, HALF], "image": [HALF, HALF]}
        done(tmp_path, "sft-concat", seed, fresh=concat, validation=[HALF, THIRD])
        # Better for the fresh users, and worse on validation, over both seeds.
        total = {"fused": [BEST, BEST], "text": [HALF, HALF], "image": [THIRD, THIRD]}
        done(tmp_path, "sft-sum", seed, fresh=total, validation=[BEST, BEST] if seed == 0 else [LOST, LOST])
        ours = {"fused": [BEST, HALF], "text": [HALF, HALF], "image": [BEST, BEST]}
        done(tmp_path, "vlm2rec", seed, fresh=ours, validation=[BEST, BEST])
    return tmp_path


def rows(work: Path) -> dict[str, Any]:
    return {row["name"]: row for row in of_catalogue(CATALOGUE, PLAN.seeds, work)["rows"]}


def test_validation_chooses_over_all_seeds(work: Path) -> None:
    # concat: (.5 + 1/3) / 2 = .417 with both seeds; sum: 1 and 0, so .5.
    assert of_catalogue(CATALOGUE, PLAN.seeds, work)["chosen"]["sft"] == "sft-sum"
    place = UnitPlace.of(work, Unit(CATALOGUE, CATALOGUE.rows[2], 0))
    found = {name: ranks.means for name, ranks in place.ranks().items()}
    found["validation fused"] = np.array([HALF, HALF])  # now .25 for sum
    np.savez(place.path / "ranks.npz", **found)
    table = of_catalogue(CATALOGUE, PLAN.seeds, work)
    assert table["chosen"]["sft"] == "sft-concat"
    assert [row["name"] for row in table["rows"] if row["chosen"]] == ["image-alone", "sft-concat", "vlm2rec"]


def test_a_row_by_hand(work: Path) -> None:
    row = rows(work)["vlm2rec"]
    assert row["ndcg@10"] == pytest.approx({"fused": 0.75, "text": 0.5, "image": 1.0})
    assert row["seeds"] == [0, 1]
    assert row["ratio_to_popularity"]["fused"][0] == pytest.approx(3.0)  # popularity: (.5 + 0) / 2
    assert row["ratio"]["fused"][0] == pytest.approx(0.75)
    assert row["ratio"]["image"] == pytest.approx([3, 3, 3])
    assert row["ratio by seed"]["fused"] == pytest.approx({0: 0.75, 1: 0.75})
    assert row["utilisation"] == {"image": pytest.approx([1, 1, 1]), "text": None}
    assert row["validation"] == {"fused": pytest.approx(0.7)}
    assert row["training_seconds"] == 90
    assert row["diagnostics"] == {"gap": 1.0}
    assert rows(work)["sft-sum"]["utilisation"]["image"] == pytest.approx([1 / 3] * 3)
    assert set(rows(work)) == {"image-alone", "sft-concat", "sft-sum", "vlm2rec"}


def test_goals_speak_of_the_chosen_rows(work: Path) -> None:
    goals = {one["statement"]: one for one in of_catalogue(CATALOGUE, PLAN.seeds, work)["goals"]}
    utilisation = goals["SFT's image utilisation is ≤ 0.6"]
    assert (utilisation["value"], utilisation["holds"], utilisation["clear"]) == (pytest.approx(1 / 3), True, True)
    assert goals["VLM2Rec's fused ranking is ≥ 1.05 × SFT's"]["holds"] is False
    assert goals["VLM2Rec's fused ranking is above the models trained on one modality"]["holds"] is None


def test_another_plan_s_results_are_none(work: Path) -> None:
    changed = CataloguePlan("shop", "", {"items": 41}, CATALOGUE.base, CATALOGUE.rows)
    assert of_catalogue(changed, PLAN.seeds, work)["rows"] == []


def test_the_file_says_what_is_missing_and_the_page_what_the_file_says(work: Path) -> None:
    out = work / "results" / "method.json"
    write_table(PLAN, work, out)
    assert [path.name for path in out.parent.iterdir()] == ["method.json"]
    table = json.loads(out.read_text())
    assert table["units"] == {"planned": 10, "done": 8, "missing": ["shop/later/0", "shop/later/1"]}
    assert table["training_hours"] == pytest.approx(4 * (60 + 120) / 3600)
    assert table["days"] == ["2026-11-25", "2026-11-26"]
    text = write_page(out, work / "page.md").read_text()
    assert "8 of 10 runs done" in text
    assert "**Not done:** shop/later/0, shop/later/1" in text
    assert "| **VLM2Rec** | .7500 | .5000 | 1.0000 |" in text
    assert "| SFT, concat | .5000 | .5000 | .5000 |" in text
    assert re.search(
        r"SFT's image utilisation is ≤ 0\.6 \| 0\.33 \[0\.33, 0\.33\] \| image-alone image \| yes \|", text
    )
    assert re.search(r"\| \*\*VLM2Rec\*\* \|[^\n]* 0\.75 · 0\.75 \| 1\.00 \[1\.00, 1\.00\] \| – \|", text)
    (image,) = re.findall(r"\]\((img/[\w-]+\.svg)\)", text)
    drawn = (work / image).read_bytes()
    assert b"</svg>" in drawn
    assert write_page(out, work / "page.md").read_text() == text
    assert (work / image).read_bytes() == drawn


def test_a_plan_of_which_nothing_is_done(tmp_path: Path) -> None:
    write_table(PLAN, tmp_path, tmp_path / "method.json")
    text = write_page(tmp_path / "method.json", tmp_path / "page.md").read_text()
    assert "0 of 10 runs done" in text
    assert "Nothing was measured yet" in text
    assert "Nothing was measured yet" in write_page(tmp_path / "none.json", tmp_path / "page.md").read_text()


def test_the_page_in_the_documentation_is_that_of_the_results(tmp_path: Path) -> None:
    table = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    assert PAGE.read_text() == page(table, tmp_path)
