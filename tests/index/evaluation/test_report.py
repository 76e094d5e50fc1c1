"""report.json and report.html of a bundle: figures known by hand, and a page that escapes every value."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import index
from index.build.build import build_bundle
from index.bundle.gate import Bounds
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import GateRecord, Manifest
from index.errors import BundleInvalid, BundleNotFound
from index.evaluation.plots import axis_over
from index.evaluation.report_file import read_report
from index.evaluation.report_page import as_bytes, as_figure, as_share, label, render_page
from index.items.item_ids import ItemIds

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</code></li></ul><iframe src=//evil.example>",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt;",
    "\u202egnp.exe",
    "]]><svg onload=alert(1)>",
]
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects elements, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, make_table, make_evaluation_queries, make_evaluation, encoder_path):
    """A bundle with hostile ids and titles wherever the page shows one, and with every bound set."""
    table = make_table()
    ids = [f"{HOSTILE[row % len(HOSTILE)]}{row}" for row in range(300)]
    vectors = np.array(table.vectors)
    vectors[15:30] = vectors[15]  # a group of repeated pictures
    metadata = table.metadata.set_column(
        0, "title", pa.array([HOSTILE[(row + 3) % len(HOSTILE)] for row in range(300)])
    )
    everything = Bounds(
        coverage=1.0,
        slot_share={"image": 0.9},
        missing={"image": 0.0},
        latency_p99_ms=60_000,
        near_duplicates=0.0,
        disagreement=0.0,
        text_quality=1.0,
        image_quality=1.0,
    )
    evaluation = make_evaluation()
    evaluation["tables"][0]["rows"].append(
        {"name": HOSTILE[0], "ndcg@10": 0.1, "ratio_to_popularity": {"ndcg@10": [1.0, None, None]}}
    )
    evaluation["tables"][0]["name"] = HOSTILE[1]
    return build_bundle(
        replace(table, ids=ItemIds(ids), vectors=vectors, metadata=metadata, missing=None),
        encoder_path,
        make_evaluation_queries(),
        tmp_path_factory.mktemp("hostile"),
        IndexSpec(bounds=everything, threads=1, evaluation_queries=40),
        evaluation=evaluation,
    )


def test_figures_by_hand(built):
    manifest, report = read_report(built)
    figures = manifest.gate.figures
    sizes = {name: entry.size for name, entry in manifest.files.items()}
    memory = report["memory"]
    assert memory["vectors"] == sizes["vectors.npy"]
    assert memory["index"] == sizes["index.faiss"]
    assert memory["encoder"] == sizes["encoder.onnx"]
    assert memory["items"] == next(size for name, size in sizes.items() if name.startswith("items."))
    reports = sizes["report.json"] + sizes["report.html"]
    assert sum(memory.values()) - memory["resident"] == sum(sizes.values()) - reports
    assert memory["resident"] == sum(sizes.values()) - reports + 16 * 300
    # Every seventh of 300 items lacks its picture, row 3 lacks everything.
    assert figures["missing.image"] == 44 / 300
    assert figures["missing.text"] == figures["missing.behaviour"] == 1 / 300
    assert report["missing"]["behaviour"]["cold"] == 1
    assert report["missing"]["image"]["absent"] == 44
    assert figures["coverage"] == report["answers"]["distinct_items"] / 300
    assert {
        f"slot_share.{name}": share for name, share in report["answers"]["slot_shares"].items()
    }.items() <= figures.items()
    assert figures["latency_p99_ms.plain"] == report["search_ms"]["plain"]["p99"]
    assert report["near_duplicates"]["share"] == figures["near_duplicates"]
    assert report["disagreement"]["share"] == figures["disagreement"]
    assert report["gate"] == manifest.gate.model_dump(mode="json")
    assert report["created"] == "2026-11-23 04:05:00 UTC"
    assert report["quality"] is report["evaluation"] is None


def test_the_report_includes_the_evaluation(tmp_path, make_bundle, make_evaluation):
    bundle = make_bundle(tmp_path, items=60, evaluation=make_evaluation())
    manifest, report = read_report(bundle)
    assert report["evaluation"] == make_evaluation()
    assert report["quality"]["systems"][1]["ratio"] == manifest.gate.figures["served_quality"] == 3.0
    assert manifest.gate.figures["text_quality"] == 0.5
    assert "image_quality" not in manifest.gate.figures


def test_a_report_of_another_bundle_is_refused(copied, tmp_path):
    path = copied / "report.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"coverage"', b'"coverags"'))
    with pytest.raises(BundleInvalid, match=r"report\.json: its content was altered"):
        read_report(copied)
    path.unlink()
    with pytest.raises(BundleInvalid, match=r"report\.json: the file is missing"):
        read_report(copied)
    with pytest.raises(BundleNotFound, match="there is no bundle"):
        read_report(tmp_path / "none")


@pytest.mark.parametrize(("text", "rule"), [("{", "not a readable report"), ("[1]", "must be a JSON object, got list")])
def test_a_report_of_another_form_is_refused(copied, monkeypatch, text, rule):
    (copied / "report.json").write_text(text)
    monkeypatch.setattr("index.evaluation.report_file.verify_file", lambda *_: None)
    with pytest.raises(BundleInvalid, match=rule):
        read_report(copied)


def test_the_page_is_self_contained(built):
    """Nothing that would ask another host or run: no script, no link, no address at all."""
    text = (built / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not re.search(r"https?:|//\w|url\(|@import", text)
    assert "default-src 'none'" in text
    assert not {name for name, _ in page.attributes} & {"src", "href", "action", "xlink:href"}
    assert Manifest.read(built).files["report.html"].size == len(text.encode())


def test_hostile_names_are_escaped(hostile):
    text = (hostile / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img", "iframe", "b2"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for attack in HOSTILE:
        assert attack in page.words  # as they are, for the eye
        assert attack not in text or not set("<>&\"'") & set(attack)
    assert "<script" not in text


def test_the_templates_escape_everything():
    """`safe` and friends would switch escaping off, and an attribute without quotes would let a name out of it."""
    for path in (Path(index.__path__[0]) / "templates").iterdir():
        text = path.read_text()
        assert not re.search(r"\|\s*safe|autoescape|Markup", text)
        assert not re.search(r"=\{\{", text)


def test_the_verdict_and_every_missed_bound(hostile):
    page = Page((hostile / "report.html").read_text())
    missed = Manifest.read(hostile).shortfalls
    checks = Manifest.read(hostile).checks
    assert "Below its bounds" in page.words
    assert f"{len(missed)} of {len(checks)} figures miss their bound" in page.words
    assert {check.figure for check in missed} == {
        "coverage",
        "slot_share.image",
        "missing.image",
        "near_duplicates",
        "disagreement",
        "text_quality",
        "image_quality",
    }
    for check in missed:
        assert f"{label(check.figure)} {check.figure}" in page.words
    assert "not measured" in page.words
    assert page.words.count("missed") >= len(missed)


def test_the_page_of_a_good_bundle(built):
    page = Page((built / "report.html").read_text())
    kinds = len(Manifest.read(built).index.recall)
    assert "Fit to publish" in page.words
    assert "Below" not in page.words
    assert f"All {kinds} figures with a bound keep it." in page.words
    assert "Not measured: the build was given no evaluation." in page.words
    assert f"Recall, {kinds} kinds of query" in page.words


def rendered(built, bounds=None, **changes):
    manifest, report = read_report(built)
    gate = GateRecord(bounds=bounds or {}, figures=manifest.gate.figures, shortfalls=())
    return Page(render_page(report | changes, gate))


def test_pages_of_tiny_bundles(built):
    page = rendered(built, near_duplicates=None, disagreement=None)
    assert "No bound was set" in page.words
    assert "fewer than two items have a picture" in page.words
    assert "too few items have both" in page.words
    assert "The only figure with a bound keeps it." in rendered(built, {"coverage": 0.0}).words
    assert "1 of 1 figures misses its bound" in rendered(built, {"coverage": 1.0}).words


def test_a_process_compiles_the_template_once(built, monkeypatch):
    rendered(built)
    monkeypatch.delattr("jinja2.Environment.compile")
    rendered(built)


def test_disagreement_as_exception_and_as_rule(built):
    _, report = read_report(built)
    found = report["disagreement"]
    example = {"id": "odd", "title": None, "p": 1.0, "looks_like": [{"id": "other", "title": "Other"}]}
    exception = rendered(built, disagreement=found | {"share": 0.1, "examples": [example]})
    assert re.search(r"odd ?looks like ?other Other", exception.words)
    rule = rendered(built, disagreement=found | {"share": 0.9, "examples": [example]})
    assert "no single item stands out" in rule.words
    assert "looks like" not in rule.words


@pytest.mark.parametrize(
    ("values", "high", "low", "end", "ticks"),
    [
        ([0.96, 0.9], 1.0, 0.9, 1.0, (0.9, 0.925, 0.95, 0.975, 1.0)),
        ([0.0, 6.2], None, 0.0, 8.0, (0, 2, 4, 6, 8)),
        ([0.0, 0.155], None, 0.0, 0.2, (0, 0.05, 0.1, 0.15, 0.2)),
        ([0.0, 0.0], None, 0.0, 0.25, (0, 0.25)),
        ([0.3], 1.0, 0.2, 1.0, (0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_axes(values, high, low, end, ticks):
    axis = axis_over(values, high=high)
    assert (axis.low, axis.high) == pytest.approx((low, end))
    assert axis.ticks == pytest.approx(ticks)
    assert (axis.at(axis.low), axis.at(axis.high)) == (0.0, 100.0)
    assert axis.at((axis.low + axis.high) / 2) == pytest.approx(50.0)
    assert (axis.at(axis.low - 1), axis.at(axis.high + 1)) == (0.0, 100.0)


def test_formatted_numbers():
    assert [as_bytes(size) for size in (0, 999, 231_000, 1_320_000, 2_500_000_000)] == [
        "0 bytes",
        "999 bytes",
        "231 kB",
        "1.32 MB",
        "2.5 GB",
    ]
    assert [as_share(value) for value in (0.0, 0.0067, 0.5, 1.0)] == ["0 %", "0.67 %", "50 %", "100 %"]
    assert as_figure("recall.plain", 0.97) == "0.9700"
    assert as_figure("served_quality", 3.987) == "3.99 ×"
    assert as_figure("latency_p99_ms.plain", 0.155) == "0.155 ms"
    assert as_figure("missing.image", None) == "not measured"
    assert label("missing.image") == "Items without image"
    assert label("recall.image x3") == "Recall, image x3"
