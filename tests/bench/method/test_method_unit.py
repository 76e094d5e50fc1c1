"""One unit of the method's bench: its ranks against brute force, broken off, done before, planned anew."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.method import method_unit
from bench.method.method_plan import PLAN, SMOKE, CataloguePlan, MethodPlan, Row, Unit
from bench.method.method_unit import Busy, UnitPlace, carry_out, load_world, read_log
from training.backbones.vlm import load_embedder
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.ranking import metrics

CATALOGUE = replace(SMOKE.catalogues[0], base={**SMOKE.catalogues[0].base, "train.checkpoint_steps": 1})
BOTH = Unit(CATALOGUE, Row("both", "both", {"loss.fusion": "sum"}), 0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one unit done; what a test does beside it goes under other names."""
    directory = tmp_path_factory.mktemp("method")
    assert carry_out(BOTH, directory)
    return directory


def unit(name: str, overrides: dict[str, Any] | None = None, *, frozen: bool = False) -> Unit:
    return Unit(CATALOGUE, Row(name, name, overrides or {}, frozen=frozen), 0)


def test_ranks_are_those_of_a_loop(work: Path) -> None:
    """Every user encoded alone, in the order of the file; fused is the scalar product of normalised sums."""
    place, world = UnitPlace.of(work, BOTH), load_world(CATALOGUE, work)
    ranks, result = place.ranks(), place.result()
    encoder = CatalogueEncoder(load_embedder(place.train / "model"), world.dataset)
    items = encoder.items(np.arange(40))
    for user in range(0, 80, 4):
        history, target = world.fresh.histories[user], world.fresh.targets[user]
        here = {name: rows[0] for name, rows in encoder.sequences([history]).items()}
        total = sum(items.values())
        total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)
        left = sum(here.values())
        scores = {"fused": total @ left / np.linalg.norm(left)} | {name: items[name] @ here[name] for name in here}
        for name, scored in scores.items():
            present = total if name == "fused" else items[name]
            rivals = [row for row in range(40) if row != target and row not in history and present[row].any()]
            apart = np.round(scored[rivals].astype(np.float64), 5) - np.round(float(scored[target]), 5)
            expected = (apart > 1e-9).sum() + 0.5 * (np.abs(apart) <= 1e-9).sum()
            found = ranks[f"fresh {name}"].means[user]
            assert found == (pytest.approx(expected, abs=1) if present[target].any() else np.inf), (user, name)
    assert result is not None
    gains, hits = metrics.gains(ranks["fresh text"], 10), metrics.hits(ranks["validation image"], 10)
    assert result["ndcg@10"]["fresh"]["text"] == pytest.approx(gains.mean(), abs=1e-6)
    assert result["hr@10"]["validation"]["image"] == pytest.approx(hits.mean(), abs=1e-6)
    assert result["users"] == {"fresh": 80, "validation": 60}
    assert result["last_step"] == 3
    assert result["log"]["effective rank image"] > 1


def test_popularity_counts_training_events_alone(work: Path) -> None:
    world = load_world(CATALOGUE, work)
    counts = np.bincount(world.parts.train.rows, minlength=40)
    ranks = UnitPlace.of(work, BOTH).ranks()["fresh popularity"]
    for user, (history, target) in enumerate(zip(world.fresh.histories, world.fresh.targets.tolist(), strict=True)):
        rivals = [counts[row] for row in range(40) if row != target and row not in history]
        ahead = sum(1.0 if count > counts[target] else 0.5 * (count == counts[target]) for count in rivals)
        assert ranks.means[user] == ahead


def test_what_is_done_is_not_done_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (UnitPlace.of(work, BOTH).path / "result.json").read_bytes()
    monkeypatch.setattr(method_unit, "train_vlm", _never)
    monkeypatch.setattr(method_unit, "CatalogueEncoder", _never)
    assert not carry_out(BOTH, work)
    assert (UnitPlace.of(work, BOTH).path / "result.json").read_bytes() == before


def test_a_changed_plan_is_done_again(work: Path) -> None:
    assert carry_out(unit("changed", {"train.steps": 1}), work)
    changed = unit("changed", {"train.steps": 2})
    assert UnitPlace.of(work, changed).result() is None
    assert carry_out(changed, work)
    result = UnitPlace.of(work, changed).result()
    assert result is not None
    assert result["last_step"] == 2
    assert not carry_out(changed, work)


class _Killed(BaseException):
    """Ends a run as a kill would, between two steps."""


def _never(*_arguments: object, **_named: object) -> None:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("moment", [("training", 1 / 3), ("training", 1.0), ("ranking fresh", 1.0)])
def test_a_unit_that_was_broken_off_goes_on_and_ends_the_same(work: Path, moment: tuple[str, float]) -> None:
    broken = unit(f"broken-{moment[0].split()[0]}-{moment[1]:.1f}", {"loss.fusion": "sum"})
    seen: list[tuple[str, float]] = []
    with pytest.raises(_Killed):
        carry_out(broken, work, report=_until(moment, seen))
    assert UnitPlace.of(work, broken).result() is None
    again: list[tuple[str, float]] = []
    assert carry_out(broken, work, report=lambda step, share: again.append((step, share)))
    assert ("training", 0.0) not in again  # it did not begin anew
    whole, found = UnitPlace.of(work, BOTH).ranks(), UnitPlace.of(work, broken).ranks()
    assert {name: ranks.means.tolist() for name, ranks in found.items()} == {
        name: ranks.means.tolist() for name, ranks in whole.items()
    }


def _until(moment: tuple[str, float], seen: list[tuple[str, float]]) -> Callable[[str, float], None]:
    def report(step: str, share: float) -> None:
        seen.append((step, share))
        if (step, share) == moment:
            raise _Killed

    return report


def test_a_run_of_other_code_is_begun_anew(work: Path) -> None:
    one = unit("older")
    with pytest.raises(_Killed):
        carry_out(one, work, report=_until(("training", 2 / 3), []))
    (UnitPlace.of(work, one).train / "fingerprint").write_text("0123456789abcdef\n")
    again: list[tuple[str, float]] = []
    assert carry_out(one, work, report=lambda step, share: again.append((step, share)))
    assert ("training", 0.0) in again


def test_one_modality_alone_and_the_start_of_training(work: Path) -> None:
    alone, frozen = unit("image", {"train.modalities": ["image"]}), unit("frozen", frozen=True)
    assert carry_out(alone, work)
    assert carry_out(frozen, work)
    ranks = UnitPlace.of(work, alone).ranks()
    assert set(ranks) == {
        f"{part} {name}" for part in ("fresh", "validation") for name in ("fused", "image", "popularity")
    }
    assert ranks["fresh fused"].means.tolist() == ranks["fresh image"].means.tolist()
    result = UnitPlace.of(work, frozen).result()
    assert result is not None
    assert (result["last_step"], result["training_seconds"], result["log"]) == (0, 0.0, {})
    assert set(result["ndcg@10"]["fresh"]) == {"fused", "text", "image", "popularity"}
    # What is trained began as what is not: the same weights to start from, and other ranks in the end.
    starts = [UnitPlace.of(work, one).train / "start" / "model.safetensors" for one in (BOTH, frozen)]
    assert starts[0].read_bytes() == starts[1].read_bytes()
    assert (
        UnitPlace.of(work, frozen).ranks()["fresh text"].means.tolist()
        != UnitPlace.of(work, BOTH).ranks()["fresh text"].means.tolist()
    )


def test_two_processes_are_never_at_one_unit(work: Path) -> None:
    place = UnitPlace.of(work, unit("wanted"))
    with place.claimed(), pytest.raises(Busy, match="smoke/wanted/0"), UnitPlace.of(work, unit("wanted")).claimed():
        pass


def test_a_log_line_that_was_cut_short_counts_for_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_log(log) == {}
    log.write_text('{"step": 1, "gap": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert read_log(log) == {"step": 2, "gap": 2.0, "loss": 1.0}


@pytest.mark.parametrize("plan", [PLAN, SMOKE], ids=["plan", "smoke"])
def test_every_unit_of_the_plan_has_a_place_and_a_configuration_of_its_own(plan: Any) -> None:
    units = list(plan.units())
    assert len({one.name for one in units}) == len(units)
    assert len({one.fingerprint for one in units}) == len(units)
    for one in units:
        config = method_unit.load_config(overrides=one.overrides)
        assert config.train.seed == one.seed
    for catalogue in plan.catalogues:
        lines = {row.line for row in catalogue.rows}
        assert lines >= {"sft-sum", "sft-concat", "vlm2rec-sum", "vlm2rec-concat", "image-alone", "text-alone"}
        assert plan is SMOKE or catalogue.demo.get("evaluation_users", 20_000) >= 20_000
    assert plan is SMOKE or len(plan.seeds) >= 3


def test_a_line_has_one_fusion_and_plain_fine_tuning_beside_it() -> None:
    for catalogue in PLAN.catalogues:
        for row in catalogue.rows:
            fusion = method_unit.load_config(overrides=row.overrides).loss.fusion
            assert row.line.endswith((f"-{fusion}", "-alone")) or row.frozen
            assert not row.line.startswith("vlm2rec") or f"sft-{fusion}" in {one.name for one in catalogue.rows}


def test_a_row_of_fewer_seeds_gets_the_first_ones() -> None:
    rows = (Row("all", ""), Row("first", "", seeds=1))
    plan = MethodPlan((CataloguePlan("shop", "", {}, {}, rows),), seeds=(4, 7))
    assert [unit.name for unit in plan.units()] == ["shop/all/4", "shop/first/4", "shop/all/7"]
