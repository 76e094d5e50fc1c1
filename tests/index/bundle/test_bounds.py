"""Bounds: parsing them, and checking figures against them."""

import math

import pytest

from index.bound_check import BoundCheck
from index.bundle.gate import Bounds, check_figures, decisive_checks, is_bound, licences_of, read_bounds
from index.errors import IndexSpecError
from index.items.slots import Slot, SlotLayout

EVERYTHING = """
recall = 0.9
served_quality = 1.2
text_quality = 1
image_quality = 0.8
coverage = 0.25
latency_p99_ms = 12.5
near_duplicates = 0.05
disagreement = 0.3
[slot_share]
text = 0.1
image = 0.05
[missing]
image = 0.2
"""


def test_the_defaults_hold_recall_and_a_measured_quality():
    assert Bounds().limits(evaluated=False) == {"recall": 0.95}
    assert Bounds().limits(evaluated=True) == {"recall": 0.95, "served_quality": 1.0}
    assert Bounds(served_quality=None).limits(evaluated=True) == {"recall": 0.95}
    # A number is a bound with or without an evaluation.
    assert Bounds(served_quality=0.5, recall=None).limits(evaluated=False) == {"served_quality": 0.5}


def test_a_file_with_everything(tmp_path):
    path = tmp_path / "bounds.toml"
    path.write_text(EVERYTHING)
    assert read_bounds(path, []).limits(evaluated=False) == {
        "recall": 0.9,
        "served_quality": 1.2,
        "text_quality": 1,
        "image_quality": 0.8,
        "coverage": 0.25,
        "slot_share.text": 0.1,
        "slot_share.image": 0.05,
        "missing.image": 0.2,
        "latency_p99_ms": 12.5,
        "near_duplicates": 0.05,
        "disagreement": 0.3,
    }


def test_options_take_precedence_over_the_file(tmp_path):
    path = tmp_path / "bounds.toml"
    path.write_text(EVERYTHING)
    options = ["recall=none", "slot_share.image = 0.4", "slot_share.text=none", "coverage=1e-3", "served_quality=auto"]
    limits = read_bounds(path, options).limits(evaluated=True)
    assert "recall" not in limits
    assert "slot_share.text" not in limits
    assert (limits["slot_share.image"], limits["coverage"], limits["served_quality"]) == (0.4, 0.001, 1.0)
    assert limits["missing.image"] == 0.2
    assert read_bounds(None, []) == Bounds()
    assert read_bounds(None, ["missing.image=0"]).limits(evaluated=False) == {"recall": 0.95, "missing.image": 0}


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("recal=0.9", "unknown bound 'recal'; there are recall, served_quality,"),
        ("min_recall=0.9", "unknown bound 'min_recall'"),
        ("recall", "must be written NAME=VALUE, like coverage=0.2, got 'recall'"),
        ("=0.3", "unknown bound ''"),
        ("recall=high", "bound recall must be a number or 'none', got 'high'"),
        ("recall=", "bound recall must be a number or 'none', got ''"),
        ("recall=auto", "bound recall must be a number or 'none', got 'auto'"),
        ("recall=1.01", "bound recall must be a number, 0 … 1, got 1.01"),
        ("recall=-0.01", "bound recall must be a number, 0 … 1, got -0.01"),
        ("recall=nan", "bound recall must be a number, 0 … 1, got nan"),
        ("latency_p99_ms=inf", "bound latency_p99_ms must be finite"),
        ("latency_p99_ms=-1", "bound latency_p99_ms must be a number, at least 0, got -1.0"),
        ("served_quality=nan", "bound served_quality must be a number, at least 0"),
        ("slot_share=0.1", "unknown bound 'slot_share'; there are .*slot_share.SLOT"),
        ("slot_share.=0.1", "unknown bound 'slot_share.'"),
        ("recall.plain=0.1", "unknown bound 'recall.plain'"),
        ("missing.image=2", "bound missing.image must be a number, 0 … 1, got 2.0"),
    ],
)
def test_bad_options_are_named(option, rule):
    with pytest.raises(IndexSpecError, match=rule):
        read_bounds(None, [option])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("colour = 1", "unknown bound 'colour'"),
        ("recall = 'high'", "bound recall must be a number, 0 … 1, got 'high'"),
        ("recall = true", "bound recall must be a number, 0 … 1, got True"),
        ("recall = [0.9]", "bound recall must be a number"),
        ("[recall]\nplain = 0.9", "bound recall must be a single number"),
        ("missing = 0.1", "bound missing must be set by slot, like missing.image, got 0.1"),
        ("[missing]\nimage = true", "bound missing.image must be a number"),
        ("[missing.image]\nx = 1", "bound missing.image must be a number"),
        (f"latency_p99_ms = {'9' * 400}", "bound latency_p99_ms must be finite"),
        ("recall = ", "Invalid value"),
        (b"\xff", "utf-8"),
        ("a = " + "[" * 5000, "recursion"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, rule):
    path = tmp_path / "bounds.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IndexSpecError, match=rf"bounds\.toml: not usable as bounds \(.*{rule}"):
        read_bounds(path, ["coverage=0.1"])


def test_none_in_a_file_removes_a_bound(tmp_path):
    path = tmp_path / "bounds.toml"
    path.write_text("recall = 'none'\n[missing]\nimage = 'none'\ntext = 0.5\n")
    assert read_bounds(path, []).limits(evaluated=False) == {"missing.text": 0.5}


def test_slots_must_exist():
    layout = SlotLayout((Slot("text", 2), Slot("image", 2)))
    Bounds(slot_share={"text": 0.1}, missing={"image": 0.1}).check_slots(layout)
    with pytest.raises(
        IndexSpecError, match=r"bound missing\.imgae: there is no such slot, the items have text, image"
    ):
        Bounds(missing={"imgae": 0.1}).check_slots(layout)


def test_every_direction_at_its_edge():
    """A figure at its limit passes, and the next float beyond fails, in the direction of each bound."""
    for name in ("coverage", "served_quality", "slot_share.image", "image_quality", "text_quality"):
        assert [c.passed for c in check_figures({name: 0.5}, {name: 0.5})] == [True]
        assert [c.passed for c in check_figures({name: 0.5}, {name: math.nextafter(0.5, 0)})] == [False]
        assert [c.passed for c in check_figures({name: 0.5}, {name: 0.6})] == [True]
    for name in ("missing.image", "near_duplicates", "disagreement"):
        assert [c.passed for c in check_figures({name: 0.5}, {name: 0.5})] == [True]
        assert [c.passed for c in check_figures({name: 0.5}, {name: math.nextafter(0.5, 1)})] == [False]
        assert [c.passed for c in check_figures({name: 0.5}, {name: 0.4})] == [True]


def test_a_bound_on_every_kind_of_query():
    figures = {"recall.plain": 0.99, "recall.image x3": 0.9, "recallx": 0.0, "latency_p99_ms.plain": 7.0}
    checks = check_figures({"latency_p99_ms": 5.0, "recall": 0.95}, figures)
    assert checks == (
        BoundCheck("recall", "recall.plain", 0.99, 0.95, at_least=True),
        BoundCheck("recall", "recall.image x3", 0.9, 0.95, at_least=True),
        BoundCheck("latency_p99_ms", "latency_p99_ms.plain", 7.0, 5.0, at_least=False),
    )
    assert [check.passed for check in checks] == [True, False, False]
    assert str(checks[1]) == "recall.image x3 0.9 (must be at least 0.95)"
    assert str(checks[2]) == "latency_p99_ms.plain 7 (must be at most 5)"


@pytest.mark.parametrize(
    "name", ["recall", "coverage", "served_quality", "slot_share.image", "missing.text", "latency_p99_ms"]
)
def test_a_figure_that_was_not_measured_misses_its_bound(name):
    (check,) = check_figures({name: 0.0}, {"slot_share.text": 1.0, "near_duplicates": 0.0})
    assert not check.passed
    assert str(check).startswith(f"{name} not measured (must be ")


def test_nan_misses_its_bound():
    for name in ("coverage", "disagreement"):
        assert not check_figures({name: 0.5}, {name: math.nan})[0].passed
        assert not check_figures({name: math.nan}, {name: 0.5})[0].passed


def test_no_bounds_no_checks():
    assert check_figures({}, {"coverage": 0.0}) == ()


def test_names_of_bounds():
    assert all(map(is_bound, ["recall", "disagreement", "missing.image", "slot_share.a.b"]))
    assert not any(map(is_bound, ["", ".", "missing", "missing.", "recall.plain", "colour", "colour.x"]))


def test_the_decisive_checks():
    limits = {"recall": 0.9, "latency_p99_ms": 5.0, "coverage": 0.5}
    figures = {"recall.a": 0.99, "recall.b": 0.91, "recall.c": 0.8, "latency_p99_ms.a": 1.0, "latency_p99_ms.b": 4.0}
    assert [(check.figure, stands_for) for check, stands_for in decisive_checks(check_figures(limits, figures))] == [
        ("recall.c", 1),
        ("coverage", 1),
        ("recall.b", 2),
        ("latency_p99_ms.b", 2),
    ]


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "bounds.toml"
    path.write_bytes(b"\xef\xbb\xbfrecall = 0.5\n")
    assert read_bounds(path, []).recall == 0.5


# --- licences


def model(*licences):
    return {"embeddings": {"kind": "vlm", "licences": list(licences)}}


def test_without_a_bound_every_licence_is_allowed():
    Bounds().check_licences(model("qwen-research", "not stated"))
    assert Bounds().limits(evaluated=True) == {"recall": 0.95, "served_quality": 1.0}


@pytest.mark.parametrize("licence", ["qwen-research", "not stated"])
def test_a_licence_that_is_not_listed_is_refused(licence):
    bounds = read_bounds(None, ["licence.allowed=Apache-2.0, mit"])
    bounds.check_licences(model("mit", "apache-2.0"))
    bounds.check_licences({"embeddings": {"kind": "no-vlm"}})
    bounds.check_licences({})
    with pytest.raises(IndexSpecError, match=rf"licence\.allowed: .*one of apache-2\.0, mit, got '{licence}'"):
        bounds.check_licences(model("apache-2.0", licence))


@pytest.mark.parametrize("provenance", [{"id": "Qwen/Qwen2.5-VL-3B-Instruct"}, {"licences": "mit"}, {"licences": None}])
def test_a_model_embedded_before_licences_were_recorded_states_none(provenance):
    made = {"embeddings": {"kind": "vlm", **provenance}}
    assert licences_of(made) == ("not stated",)
    with pytest.raises(IndexSpecError, match="must be one of mit, got 'not stated'"):
        read_bounds(None, ["licence.allowed=mit"]).check_licences(made)


@pytest.mark.parametrize(
    "embeddings",
    [{"kind": "vlm", "licences": []}, {"kind": "vlm", "id": "qwen2_5_vl from scratch"}, {"kind": "no-vlm"}, {}, None],
)
def test_vectors_without_a_pretrained_model_have_no_licence(embeddings):
    assert licences_of({"embeddings": embeddings}) == ()


def test_not_stated_is_allowed_once_it_is_listed(tmp_path):
    path = tmp_path / "bounds.toml"
    path.write_text('[licence]\nallowed = ["not stated"]\n')
    read_bounds(path, []).check_licences(model("not stated"))
    assert read_bounds(path, ["licence.allowed=none"]).licences is None
    path.write_text("[licence]\nallowed = []\n")
    with pytest.raises(IndexSpecError, match="must be one of none"):
        read_bounds(path, []).check_licences(model("not stated"))


@pytest.mark.parametrize(
    "written", ["licence = 1", 'licence = ["mit"]', "[licence]\nallowed = [1]", "[licence]\nmit = 1"]
)
def test_licences_in_another_form_are_refused(written, tmp_path):
    path = tmp_path / "bounds.toml"
    path.write_text(written + "\n")
    with pytest.raises(IndexSpecError, match="must be a list of licences"):
        read_bounds(path, [])
