"""The table and the page of the method's bench, from ranks written by hand."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.method.method_page import PAGE, RESULTS, page, write_page
from bench.method.method_plan import CataloguePlan, MethodPlan, Row, Unit
from bench.method.method_table import choose, of_catalogue, stored_table, write_table
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
        Row("sft-concat", "SFT, concat"),
        Row("vlm2rec-concat", "VLM2Rec"),
        Row("r2-concat", "R2", {"loss.alpha": 4.0}, group="vlm2rec-concat"),
        Row("later", "not yet trained"),
    ),
)
PLAN = MethodPlan((CATALOGUE,), seeds=(0, 1))
IMAGE = {"fused": [BEST, BEST], "image": [BEST, BEST]}
SFT = {"fused": [HALF, HALF], "text": [HALF, HALF], "image": [THIRD, THIRD]}
OURS = {"fused": [BEST, HALF], "text": [HALF, HALF], "image": [BEST, BEST]}
R2 = {"fused": [BEST, BEST], "text": [HALF, HALF], "image": [BEST, BEST]}
GAIN = {BEST: 1.0, HALF: 0.5, THIRD: 1 / 3, LOST: 0.0}


def done(
    work: Path,
    row: str,
    seed: int,
    fresh: dict[str, list[float]],
    validation: list[float],
    popular: tuple[float, float] = (HALF, LOST),
) -> None:
    """Leave behind what a finished unit leaves."""
    unit = Unit(CATALOGUE, next(one for one in CATALOGUE.rows if one.name == row), seed)
    place = UnitPlace.of(work, unit)
    place.path.mkdir(parents=True, exist_ok=True)
    parts = {"fresh": fresh, "validation": {"fused": validation}}
    ranks = {f"{part} {name}": np.array(of) for part, readings in parts.items() for name, of in readings.items()}
    baseline = {"fresh popularity": np.array(popular), "validation popularity": np.array([HALF, HALF])}
    np.savez(place.path / "ranks.npz", **ranks, **baseline)
    means = {
        part: {name: float(np.mean([GAIN[rank] for rank in of])) for name, of in readings.items()}
        for part, readings in parts.items()
    }
    result = {
        "fingerprint": unit.fingerprint, "commit": "abc1234", "at": f"2026-11-2{5 + seed}T10:00:00Z",
        "fusion": "concat", "ndcg@10": means, "hr@10": means, "training_seconds": 60.0 + 60 * seed,
        "ranking_seconds": 20.0, "last_step": 3, "log": {"step": 3, "gap": 0.5 + seed, "loss": 9.9},
    }  # fmt: skip
    (place.path / "result.json").write_text(json.dumps(result))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for seed in (0, 1):
        done(tmp_path, "image-alone", seed, IMAGE, [BEST, BEST])
        done(tmp_path, "sft-concat", seed, SFT, [HALF, THIRD])
        done(tmp_path, "vlm2rec-concat", seed, OURS, [BEST, HALF])
        # Better for the fresh users, and worse on validation over both seeds: (1 + 0) / 2 against .75.
        done(tmp_path, "r2-concat", seed, R2, [BEST, BEST] if seed == 0 else [LOST, LOST])
    return tmp_path


def rows(work: Path, stored: dict[str, Any] | None = None) -> dict[str, Any]:
    return {row["name"]: row for row in of_catalogue(CATALOGUE, PLAN.seeds, work, stored or {})["rows"]}


def candidate(name: str, seeds: list[int], fused: float) -> dict[str, Any]:
    return {"name": name, "group": "line", "seeds": seeds, "validation": {"fused": fused}}


def test_validation_chooses_among_the_rows_with_the_most_seeds() -> None:
    three, better, single = candidate("a", [0, 1], 0.5), candidate("b", [0, 1], 0.6), candidate("c", [0], 0.9)
    assert choose([three, better, single]) == {"line": "b"}
    assert choose([single, better, three]) == {"line": "b"}
    assert choose([three, candidate("d", [0, 1], 0.5)]) == {"line": "a"}


def test_fresh_users_are_read_of_what_validation_chose_alone(work: Path) -> None:
    found = rows(work)
    assert found["r2-concat"]["validation"]["fused"] == pytest.approx(0.5)
    assert "ndcg@10" not in found["r2-concat"]
    assert "hr@10" not in found["r2-concat"]
    assert not found["r2-concat"]["paired"]
    assert all("ndcg@10" in found[name] for name in ("image-alone", "sft-concat", "vlm2rec-concat"))
    assert all("r2-concat" not in others for row in found.values() for others in row["paired"].values())
    assert found["r2-concat"]["paired on validation"]["fused"]["sft-concat"][0] == pytest.approx(0.5 / (5 / 12))
    done(work, "r2-concat", 1, R2, [BEST, BEST])
    found = rows(work)
    assert "ndcg@10" not in found["vlm2rec-concat"]
    assert found["r2-concat"]["ndcg@10"] == pytest.approx({"fused": 1.0, "text": 0.5, "image": 1.0})


def test_a_row_by_hand(work: Path) -> None:
    found = rows(work)
    row = found["vlm2rec-concat"]
    assert row["ndcg@10"] == pytest.approx({"fused": 0.75, "text": 0.5, "image": 1.0})
    assert row["seeds"] == [0, 1]
    assert row["days"] == ["2026-11-25", "2026-11-26"]
    assert row["paired"]["fused"]["popularity"][0] == pytest.approx(3.0)  # popularity: (.5 + 0) / 2
    assert row["paired"]["fused"]["sft-concat"] == pytest.approx([1.5, 1.0, 2.0])
    image = {"popularity": [4, 2, 4], "sft-concat": [3, 3, 3], "image-alone": [1, 1, 1]}
    assert row["paired"]["image"] == {name: pytest.approx(interval) for name, interval in image.items()}
    assert row["ndcg@10 by seed"]["1"]["fused"] == pytest.approx(0.75)
    assert row["validation"] == {"fused": pytest.approx(0.75)}
    assert row["training_seconds"] == 90
    assert row["diagnostics"] == {"gap": 1.0}
    assert set(found) == {"image-alone", "sft-concat", "vlm2rec-concat", "r2-concat"}


def write(work: Path) -> dict[str, Any]:
    write_table(PLAN, work, work / "method.json")
    return stored_table(work / "method.json")


def test_units_that_are_gone_keep_the_figures_of_the_file(work: Path) -> None:
    before = write(work)
    shutil.rmtree(work / "shop")
    assert write(work) == before
    done(work, "sft-concat", 0, SFT, [BEST, BEST])
    assert write(work) == before  # one seed at hand, two in the file


def test_on_validation_the_seeds_at_hand_are_compared(work: Path) -> None:
    shutil.rmtree(work / "shop" / "r2-concat")
    (stored,) = write(work)["catalogues"]
    shutil.rmtree(work / "shop")
    done(work, "sft-concat", 0, SFT, [HALF, HALF])
    done(work, "r2-concat", 0, R2, [BEST, BEST])
    found = rows(work, stored)
    assert found["r2-concat"]["paired on validation"]["fused"]["sft-concat"] == pytest.approx([2, 2, 2])
    assert "ndcg@10" not in found["r2-concat"]
    assert found["sft-concat"] == next(row for row in stored["rows"] if row["name"] == "sft-concat")


def test_a_row_that_would_be_trained_otherwise_loses_its_figures(work: Path) -> None:
    (stored,) = write(work)["catalogues"]
    shutil.rmtree(work / "shop")
    other = tuple(
        replace(row, overrides={"loss.alpha": 2.0}) if row.name == "sft-concat" else row for row in CATALOGUE.rows
    )
    found = of_catalogue(replace(CATALOGUE, rows=other), PLAN.seeds, work, stored)
    assert [row["name"] for row in found["rows"]] == ["image-alone", "vlm2rec-concat", "r2-concat"]
    moved = of_catalogue(replace(CATALOGUE, demo={"items": 41}), PLAN.seeds, work, stored)
    assert moved["rows"] == []


def test_intervals_of_the_file_stay_where_the_figures_of_both_rows_do(work: Path) -> None:
    (stored,) = write(work)["catalogues"]
    shutil.rmtree(work / "shop")
    for seed in (0, 1):
        done(work, "sft-concat", seed, SFT, [HALF, THIRD])
    assert rows(work, stored)["sft-concat"]["paired"]["fused"]["vlm2rec-concat"] == pytest.approx([2 / 3, 0.5, 1])
    assert "sft-concat" in rows(work, stored)["vlm2rec-concat"]["paired"]["fused"]
    for row in stored["rows"]:
        for means in row.get("ndcg@10 by seed", {}).values():
            means["popularity"] = 0.03  # as a version that counted ties otherwise had it
    assert "vlm2rec-concat" in rows(work, stored)["sft-concat"]["paired"]["fused"]
    for seed in (0, 1):
        done(work, "sft-concat", seed, IMAGE, [HALF, THIRD])
    assert set(rows(work, stored)["sft-concat"]["paired"]["fused"]) == {"popularity"}
    assert "sft-concat" not in rows(work, stored)["vlm2rec-concat"]["paired"]["fused"]


def test_units_with_other_users_than_the_file_are_refused(work: Path) -> None:
    (stored,) = write(work)["catalogues"]
    shutil.rmtree(work / "shop")
    for seed in (0, 1):
        done(work, "sft-concat", seed, SFT, [HALF, THIRD], popular=(BEST, LOST))
    with pytest.raises(SystemExit, match="shop: the file has figures of other users"):
        rows(work, stored)


def test_another_plan_s_results_are_none(work: Path) -> None:
    changed = replace(CATALOGUE, demo={"items": 41})
    assert of_catalogue(changed, PLAN.seeds, work, {})["rows"] == []


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
    assert "- `shop`: later: 0 1\n" in text
    assert "| VLM2Rec | .7500 | .5000 | 1.0000 |" in text
    assert (
        "| *premise:* SFT's image utilisation is ≤ 0.6 | 0.33 [0.33, 0.33] | sft-concat | image-alone | yes |" in text
    )
    assert re.search(r"≥ 1\.03 × SFT's, the interval above 1 \| 1\.50 \[1\.00, 2\.00\] \| vlm2rec-concat \|", text)
    assert "3 of 3 measured goals hold" not in text  # the interval reaches 1
    assert "2 of 3 measured goals hold, 1 is not measured. No simple remedy was measured at this fusion." in text
    assert re.search(r"\| VLM2Rec \|[^\n]* 1\.50 · 1\.50 \| 1\.00 \[1\.00, 1\.00\] \| – \|", text)
    assert "| **VLM2Rec** | .7500 | – | – | 1.80 [1.50, 2.00] | – | 0 1 |" in text
    assert "| R2 | .5000 | – | – | 1.20 [1.00, 1.50] | – | 0 1 |" in text
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
