"""The gate: a bundle that misses a bound is not published, whatever shortfalls its manifest records."""

import json

import pytest

from index.bundle.bundle import Bundle
from index.bundle.gate import Bounds
from index.bundle.manifest import MANIFEST_FILE, Manifest
from index.bundle.unused_modalities import unused_modalities
from index.errors import BundleInvalid, GateRefused, IndexSpecError
from index.evaluation.measure import ExactResults, QuerySet

# Each of these is missed by the made catalogue, and only by what it names: 43 of 300 items lack their picture.
MISSED = {
    "coverage": Bounds(coverage=1.0),
    "slot_share.text": Bounds(slot_share={"text": 0.99, "image": 0.01}),
    "missing.image": Bounds(missing={"image": 0.14, "text": 0.1}),
    "near_duplicates": Bounds(near_duplicates=0.0),
    "disagreement": Bounds(disagreement=0.0),
    "served_quality": Bounds(served_quality=0.5),
    "text_quality": Bounds(text_quality=0.0),
    "image_quality": Bounds(image_quality=0.0),
}


def reseal(bundle, **changes):
    """Write a manifest that fits its own hash and says what the test wants."""
    old = Manifest.read(bundle)
    parts = {name: getattr(old, name) for name in type(old).model_fields} | changes
    for sealed in ("format", "id", "content"):
        parts.pop(sealed)
    (bundle / MANIFEST_FILE).chmod(0o644)
    (bundle / MANIFEST_FILE).write_text(Manifest.seal(**parts).to_json())


@pytest.mark.parametrize("figure", MISSED)
def test_each_bound_refuses_by_itself(registry, tmp_path, make_bundle, figure):
    bundle = make_bundle(tmp_path, bounds=MISSED[figure])
    with pytest.raises(
        GateRefused, match=rf"these figures miss their bounds: {figure} .*report\.html.*--force"
    ) as caught:
        registry.publish(bundle)
    assert [check.figure for check in caught.value.shortfalls] == [figure]
    assert registry.current() is None
    assert registry.list() == []
    assert list(Manifest.read(bundle).gate.shortfalls) == [figure]


def test_a_bundle_that_keeps_its_bound_is_published(registry, tmp_path, make_bundle, make_evaluation):
    kept = Bounds(
        coverage=0.1,
        slot_share={"text": 0.05},
        missing={"image": 0.15},
        latency_p99_ms=60_000,
        near_duplicates=1.0,
        disagreement=1.0,
        text_quality=0.5,
    )
    bundle = make_bundle(tmp_path, bounds=kept, evaluation=make_evaluation())
    published = Bundle.load(registry.path(registry.publish(bundle, force=True)))
    assert not published.manifest.forced  # nothing had to be forced
    assert registry.list()[0].shortfalls == ()
    assert registry.list()[0].bounds == len(published.manifest.index.recall) * 2 + 7


def test_recall_and_latency_are_checked_for_every_kind_of_query(registry, tmp_path, make_bundle, monkeypatch):
    measured: list[ExactResults] = []
    make = ExactResults.__init__

    def make_and_keep(exact, *given, **options):
        make(exact, *given, **options)
        measured.append(exact)

    def recall(query_set, *_):
        return 0.5 if query_set is measured[-1].kinds["image x3"] else 1.0

    monkeypatch.setattr(ExactResults, "__init__", make_and_keep)
    monkeypatch.setattr(QuerySet, "recall", recall)
    bundle = make_bundle(tmp_path, bounds=Bounds(recall=0.9, latency_p99_ms=0.0))
    with pytest.raises(GateRefused, match=r"recall\.image x3 0\.5 \(must be at least 0\.9\)") as caught:
        registry.publish(bundle)
    names = [check.figure for check in caught.value.shortfalls]
    kinds = list(Manifest.read(bundle).index.recall)
    assert sorted(names) == sorted(["recall.image x3", *(f"latency_p99_ms.{kind}" for kind in kinds)])


@pytest.mark.parametrize(("served", "passes"), [(1.0, True), (0.9999, False), (None, False)])
def test_a_model_worse_than_popularity_is_refused(registry, tmp_path, make_bundle, make_evaluation, served, passes):
    bundle = make_bundle(tmp_path, evaluation=make_evaluation(served))
    if passes:
        assert registry.publish(bundle) == registry.current()
        return
    with pytest.raises(GateRefused, match=r"served_quality (0\.9999|not measured) \(must be at least 1\)"):
        registry.publish(bundle)


def test_a_forced_publication_is_recorded(registry, tmp_path, make_bundle):
    bundle = make_bundle(tmp_path, bounds=MISSED["coverage"])
    name = registry.publish(bundle, force=True)
    assert Bundle.load(registry.path(name)).manifest.forced
    info = registry.list()[0]
    assert info.forced
    assert [check.figure for check in info.shortfalls] == ["coverage"]
    assert not Manifest.read(bundle).forced
    with pytest.raises(GateRefused):
        registry.publish(bundle)  # having been forced once is no licence


def test_a_manifest_cannot_hide_its_shortfalls(registry, tmp_path, make_bundle):
    bundle = make_bundle(tmp_path, bounds=MISSED["coverage"])
    gate = Manifest.read(bundle).gate
    reseal(bundle, gate=gate.model_copy(update={"shortfalls": ()}))
    with pytest.raises(GateRefused, match="coverage"):
        registry.publish(bundle)
    reseal(bundle, gate=gate.model_copy(update={"shortfalls": ()}), forced=True)
    with pytest.raises(GateRefused, match="coverage"):
        registry.publish(bundle)
    without = {name: value for name, value in gate.figures.items() if name != "coverage"}
    reseal(bundle, gate=gate.model_copy(update={"figures": without}))
    with pytest.raises(GateRefused, match="coverage not measured"):
        registry.publish(bundle)
    assert registry.current() is None


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda raw: raw["gate"]["figures"].update(coverage=1.0), "does not fit its own hash"),
        (lambda raw: raw["gate"]["bounds"].update(coverage=0.0), "does not fit its own hash"),
        (lambda raw: raw["gate"]["shortfalls"].append("coverage"), "does not fit its own hash"),
        (lambda raw: raw["index"]["recall"].update(plain=1.5), "does not fit its own hash"),
        (
            lambda raw: raw["gate"]["figures"].update(coverage=float("nan")),
            r"gate\.figures\.coverage: Input should be a",
        ),
        (lambda raw: raw["index"]["recall"].update(plain=float("inf")), r"index\.recall\.plain: Input should be a"),
        (lambda raw: raw["gate"]["bounds"].update(colour=0.0), "unknown bound 'colour'"),
        (lambda raw: raw["gate"].pop("bounds"), r"gate\.bounds: Field required"),
        (lambda raw: raw.pop("gate"), "gate: Field required"),
        (lambda raw: raw["gate"].update(passed=True), r"gate\.passed: Extra inputs"),
    ],
)
def test_an_altered_gate_is_refused(copied, change, rule):
    raw = json.loads((copied / MANIFEST_FILE).read_text())
    change(raw)
    (copied / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=rf"manifest\.json.*{rule}"):
        Manifest.read(copied)


def test_bounds_that_cannot_be_checked_are_refused_before_the_build(tmp_path, make_bundle, make_evaluation):
    with pytest.raises(IndexSpecError, match=r"bound slot_share\.sound: there is no such slot"):
        make_bundle(tmp_path / "a", bounds=Bounds(slot_share={"sound": 0.1}))
    other = make_evaluation() | {"model": {"encoder": {"hash": "0" * 16}}}
    with pytest.raises(IndexSpecError, match="measured the encoder"):
        make_bundle(tmp_path / "b", evaluation=other)
    assert list(tmp_path.iterdir()) == []


# --- modalities that hardly count

MEASURED = {"missing.text": 0.1, "slot_share.text": 0.7, "missing.image": 0.0, "slot_share.image": 0.2}


def test_modalities_that_count_are_no_warning():
    assert unused_modalities(MEASURED | {"text_quality": 1.0, "image_quality": 1.7}) == ()
    assert unused_modalities({}) == ()


def test_a_small_share_of_the_scores_is_named():
    (found,) = unused_modalities(MEASURED | {"slot_share.image": 0.003})
    assert (found.slot, found.present, found.share, found.quality) == ("image", 1.0, 0.003, None)
    assert str(found) == "image: 100 % of the items have it, but it gives 0.3 % of the scores"
    assert unused_modalities(MEASURED | {"slot_share.image": 0.05}) == ()


def test_a_rank_below_popularity_is_named():
    (found,) = unused_modalities(MEASURED | {"text_quality": 0.87, "image_quality": 1.0})
    assert str(found) == "text: 90 % of the items have it, but alone it ranks worse than popularity (0.87 ×)"
    (both,) = unused_modalities(MEASURED | {"slot_share.image": 0.01, "image_quality": 0.5})
    assert str(both).endswith("but it gives 1 % of the scores and alone it ranks worse than popularity (0.50 ×)")


@pytest.mark.parametrize("missing", [0.5, 0.9])
def test_a_modality_that_half_of_the_items_lack_may_count_little(missing):
    assert unused_modalities(MEASURED | {"slot_share.image": 0.0, "missing.image": missing}) == ()
