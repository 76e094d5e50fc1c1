"""Where the points of a plot lie, by hand."""

import itertools

import pytest

from index.evaluation.plots import MOST_POINTS, Curve, CurveSpec, ReferenceMark, curve


def drawn(values: dict[str, list[float]], **more: object) -> Curve:
    """Curves of one value per step, from step 1."""
    series = {name: list(enumerate(found, start=1)) for name, found in values.items()}
    spec = CurveSpec("Gap", "What it is.", {name: name.upper() for name in values}, **more)
    found = curve(spec, series, max(map(len, values.values())))
    assert found is not None
    return found


def test_points_lie_where_their_numbers_say() -> None:
    found = drawn({"a": [0.0, 4.0, 1.0, 2.0]})
    assert (found.axis.low, found.axis.high, found.axis.ticks) == (0.0, 4.0, (0.0, 1.0, 2.0, 3.0, 4.0))
    assert (found.steps.low, found.steps.high) == (0.0, 4.0)  # training begins at step 0
    assert found.lines[0].path == "M25 100L50 0L75 75L100 50"
    assert found.lines[0].dots == "M25 100h0M50 0h0M75 75h0M100 50h0"
    assert (found.lines[0].last, found.lines[0].end) == (2.0, 50.0)
    assert found.description == "Gap over training steps: A 0 at step 1, 2 at step 4."


def test_rules_and_marks_are_inside_the_plot() -> None:
    found = drawn({"a": [1.0, 2.0]}, around=(0.0,), rule=3.0, marks=(ReferenceMark("a", "elsewhere", 4.0),))
    assert (found.axis.low, found.axis.high) == (0.0, 4.0)
    assert found.rule_at == 25.0
    assert found.marks_at == (0.0,)


def test_every_place_belongs_to_the_nearest_step() -> None:
    found = drawn({"a": [1.0, 2.0, 3.0, 4.0], "b": [5.0, 6.0]})
    assert [(stop.step, stop.left, stop.width) for stop in found.stops] == [
        (1, 0.0, 37.5), (2, 37.5, 25.0), (3, 62.5, 25.0), (4, 87.5, 12.5)
    ]  # fmt: skip
    assert [stop.at for stop in found.stops] == [pytest.approx(25 / 37.5 * 100, abs=1e-3), 50.0, 50.0, 100.0]
    assert found.stops[1].values == {"A": 2.0, "B": 6.0}
    assert found.stops[2].values == {"A": 3.0}


def test_a_long_log_is_drawn_as_means() -> None:
    count = 2 * MOST_POINTS + 1
    found = drawn({"a": [float(number) for number in range(count)]})
    assert found.binned == 3
    assert found.lines[0].points[:2] == ((3, 1.0), (6, 4.0))  # of 0 1 2, and of 3 4 5, at their last steps
    assert found.lines[0].points[-1] == (count, float(count) - 1.5)  # two were left
    assert len(found.lines[0].points) <= MOST_POINTS
    assert found.lines[0].dots == ""
    assert drawn({"a": [1.0] * MOST_POINTS}).binned == 1


@pytest.mark.parametrize("last", [[0.0, 0.0, 0.0], [10.0, 10.0, 10.0], [0.0, 0.1, 10.0], [5.0, 5.2, 5.1]])
def test_labels_keep_apart_in_the_order_of_their_lines(last: list[float]) -> None:
    names = "abc"
    found = drawn({name: [10.0 * place, value] for place, (name, value) in enumerate(zip(names, last, strict=True))})
    places = sorted((line.label_at, line.end) for line in found.lines)
    assert all(after - before >= 9.0 for (before, _), (after, _) in itertools.pairwise(places))
    assert all(0 <= at <= 100 for at, _ in places)
    assert [end for _, end in places] == sorted(end for _, end in places)


def test_one_point_is_a_dot_and_nothing_is_no_plot() -> None:
    found = drawn({"a": [-3.0]})
    assert found.lines[0].dots.endswith("h0")
    assert found.description == "Gap over training steps: A -3 at step 1."
    assert [(stop.left, stop.width) for stop in found.stops] == [(0.0, 100.0)]
    assert curve(CurveSpec("Gap", "", {"a": "a"}), {"a": [], "b": [(1, 1.0)]}, 1) is None
    assert curve(CurveSpec("Gap", "", {"a": "a"}), {"a": []}, 0) is None


def test_huge_numbers_stay_on_the_page() -> None:
    found = drawn({"a": [-1e15, 1e15, 0.0]})
    assert found.lines[0].path == "M33.333 100L66.667 0L100 50"
