"""Goals of the method's bench against ratios worked out by hand."""

from typing import Any

import pytest

from bench.method.method_goals import GOALS, Claim, checked, simple_remedies
from bench.method.method_ratios import RowRatios


def row(name: str, paired: dict[str, dict[str, list[float]]], **means: float) -> dict[str, Any]:
    return {"name": name, "ndcg@10": means, "ndcg@10 by seed": {"0": means}, "paired": paired}


RATIOS = RowRatios(
    [
        row(
            "ours",
            {
                "fused": {"sft-concat": [1.2, 1.1, 1.3], "nu-concat": [1.0, 0.9, 1.1], "sft-sum": [1.5, 1.4, 1.6]},
                "image": {"image-alone": [0.8, 0.7, 0.95]},
            },
            fused=0.6, text=0.5, image=0.16,
        ),
        row("sft-concat", {"image": {"image-alone": [0.6, 0.55, 0.65]}}, fused=0.5, text=0.5, image=0.12),
        row("sft-sum", {}, fused=0.4),
        row("nu-concat", {}, fused=0.6),
        row("image-alone", {}, fused=0.2, image=0.2),
    ],
    0.1,
)  # fmt: skip
CHOSEN = {"vlm2rec-concat": "ours"}


def holds(claim: Claim) -> tuple[float | None, bool | None, bool | None]:
    found = checked(claim, RATIOS, CHOSEN)
    return (None if found["ratio"] is None else found["ratio"].interval.ratio), found["holds"], found["clear"]


@pytest.mark.parametrize(("bound", "at_least", "expected", "clear"), [
    (0.61, False, True, False), (0.59, False, False, False), (0.54, True, True, True), (0.66, True, False, True),
])  # fmt: skip
def test_a_bound_is_of_the_side_that_is_said(bound: float, at_least: bool, expected: bool, clear: bool) -> None:
    claim = Claim("", "image", "sft-concat", ("image-alone",), bound, at_least=at_least)
    assert holds(claim) == (0.6, expected, clear)


def test_the_whole_interval_may_have_to_be_above_a_second_bound() -> None:
    def fused(bound: float, whole_above: float) -> tuple[float | None, bool | None, bool | None]:
        return holds(Claim("", "fused", "vlm2rec-concat", ("sft-concat",), bound, whole_above=whole_above))

    assert fused(1.15, 1.0) == (1.2, True, False)
    assert fused(1.05, 1.0) == (1.2, True, True)
    assert fused(1.05, 1.1) == (1.2, False, True)
    assert fused(1.25, 1.0) == (1.2, False, False)


def test_of_several_the_best_that_was_measured_is_what_counts() -> None:
    found = checked(Claim("", "fused", "vlm2rec-concat", ("sft-sum", "nobody", "nu-concat"), 1.0), RATIOS, CHOSEN)
    assert (found["measured"], found["compared_with"]) == ("ours", "nu-concat")
    assert found["ratio"].interval.ratio == 1.0


def test_nothing_is_said_where_one_side_was_not_measured() -> None:
    assert holds(Claim("", "fused", "vlm2rec-concat", ("nobody",), 1.0)) == (None, None, None)
    assert holds(Claim("", "fused", "nobody", ("sft-concat",), 1.0)) == (None, None, None)


def test_simple_remedies_are_those_of_the_same_fusion() -> None:
    assert {name: ratio.interval.ratio for name, ratio in simple_remedies("concat", RATIOS, CHOSEN).items()} == {
        "nu-concat": 1.0
    }
    assert simple_remedies("sum", RATIOS, CHOSEN) == {}


def test_the_goals_are_those_that_were_set_at_each_fusion() -> None:
    for fusion, claims in GOALS.items():
        assert [(one.reading, one.above, one.bound, one.whole_above) for one in claims if not one.premise] == [
            ("fused", f"vlm2rec-{fusion}", 1.03, 1.0),
            ("image", f"vlm2rec-{fusion}", 0.9, None),
            ("text", f"vlm2rec-{fusion}", 1.0, None),
            ("fused", f"vlm2rec-{fusion}", 1.0, None),
        ]
        lines = {name for one in claims for name in (one.above, *one.below)}
        assert {name.rpartition("-")[2] for name in lines} == {fusion, "alone"}
    assert [one["holds"] for one in (checked(claim, RATIOS, CHOSEN) for claim in GOALS["concat"])] == [
        True, True, False, None, True,
    ]  # fmt: skip
