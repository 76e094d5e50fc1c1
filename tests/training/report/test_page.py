"""The page of a run: complete for any input, without external resources, with the numbers of the log."""

import base64
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training.data.dataset import Dataset
from training.embedding.store import Embeddings
from training.errors import ConfigError, EvaluationError
from training.report.data import gather
from training.report.page import as_figure, as_ratio, as_span, in_code, render_run, tone

EVERY = {"train__validate_every": 10, "train__steps": 40}
IMAGE = {"train__modalities": ["image"], **EVERY}
SECTIONS = ["What was trained", "Does it learn to rank?", "Balance over time", "Training"]
ALIKE = "What the model takes for alike"
MISSING = "What is not here"


@pytest.fixture
def page(small_shop: Dataset, parse: Any) -> Callable[..., Any]:
    """Draw a run and take the page apart; every page must be whole and refer to nothing outside itself."""

    def drawing(run: Path, **options: Any) -> Any:
        content = gather(options.pop("dataset", small_shop), run, **options)
        found = parse(render_run(content, now=datetime(2026, 1, 2, 3, 4, tzinfo=UTC)))
        assert found.tags.isdisjoint({"script", "iframe", "link", "object", "embed", "form", "base", "a"})
        for tag, attributes in found.elements:
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
            assert not attributes.keys() & {"href", "srcset", "xlink:href", "action", "data"}, (tag, attributes)
            if "src" in attributes:
                assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        styles = "".join(data for tag, data in found.text if tag == "style")
        assert "url(" not in styles
        assert "@import" not in styles
        policy = found.having("meta", **{"http-equiv": "Content-Security-Policy"})
        assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        assert "Made 2026-01-02 03:04 UTC" in found.words
        return found

    return drawing


@pytest.fixture
def whole(make_run: Callable[..., Path], full_log: Any, small_shop_embeddings: Embeddings) -> Path:
    """A finished run with a validation and embeddings."""
    run = make_run("whole", full_log, **EVERY)
    small_shop_embeddings.save(run / "embeddings")
    return run


def test_a_finished_run(whole: Path, page: Callable[..., Any]) -> None:
    found = page(whole)
    assert found.headings == [*SECTIONS, ALIKE, MISSING]
    assert (
        "A small vision-language model, made from scratch, was trained on text and image of 12 items and the histories "
        "of 6 users: 40 of 40 steps, 240 pairs of a history and its next item, in 4 min 0 s of training steps."
    ) in found.words
    # Image 0.2 and text 0.25 at step 40; gradients 1 and 3 throughout; effective ranks 12 and 6.
    assert "Both modalities are alive" in found.words
    assert "NDCG@10 by image alone is 0.2000, by text alone 0.2500." in found.words
    assert "Image gets 25 % of the gradient" in found.words
    assert "Image over text0.80NDCG@10 of each alone" in found.words
    assert "Utilisation of image: give a run that was trained on it alone, --image-alone RUN2." in found.words
    assert "other data" not in found.words


def test_every_plot_is_said_and_has_its_numbers(whole: Path, page: Callable[..., Any]) -> None:
    found = page(whole)
    plots = [svg["aria-label"] for svg in found.having("svg", role="img")]
    assert len(plots) == 16 == len(found.having("figure"))
    assert "Lead of the text over training steps: lead -0.25 at step 10, 0.5 at step 40." in plots
    assert (
        "NDCG@10 on held-out events over training steps: both 0.3 at step 20, 0.3 at step 40; text 0.25 at step 20, "
        "0.25 at step 40; image 0.1 at step 20, 0.2 at step 40."
    ) in plots
    assert len([tag for tag, _ in found.elements if tag == "table"]) == 16
    cells = [data.strip() for tag, data in found.text if tag in {"td", "th"}]
    place = cells.index("loss")  # step, loss; then one row a line
    assert cells[place - 1 : place + 9] == ["step", "loss", "10", "8", "20", "7", "30", "6", "40", "5"]
    assert all("aria-label" in svg or svg.get("aria-hidden") == "true" for tag, svg in found.elements if tag == "svg")


def test_hostile_titles_are_shown_and_nothing_more(whole: Path, page: Callable[..., Any], small_shop: Dataset) -> None:
    found = page(whole)
    titles = {data for tag, data in found.text if tag == "bdi"}
    assert "<script>alert(1)</script> 0" in titles
    assert titles <= {*small_shop.items["title"].to_list(), "text of 2"}
    assert "alert(1)</script>" not in found.source
    pictures = found.having("img")
    assert {"Picture of <script>alert(1)</script> 0", "Picture of ' onmouseover='alert(1) 10"} <= {
        picture["alt"] for picture in pictures
    }
    made = Image.open(io.BytesIO(base64.b64decode(str(pictures[0]["src"]).partition(",")[2])))
    assert (made.format, made.size) == ("JPEG", (40, 20))
    shown = [attributes for tag, attributes in found.elements if attributes.get("class") == "item"]
    assert len(shown) == 6 * (1 + 5 + 5)
    assert len(pictures) + len(found.having("div", **{"class": "no-picture"})) == len(shown)


def test_hostile_words_of_a_run(
    make_run: Callable[..., Path], full_log: Any, page: Callable[..., Any], small_shop_embeddings: Embeddings
) -> None:
    log = [{**line, "<b>": 1.0, "effective rank <i>": 2.0} for line in full_log]
    run = make_run("words", log, vlm__model="<script>alert(2)</script>", finished=False)
    (run / "train" / "diverged.json").write_text(json.dumps({"what": "<img src=x>", "step": 41}))
    dataclasses.replace(small_shop_embeddings, model={"kind": "<u>"}).save(run / "embeddings")
    (run / "evaluation.json").write_text('{"tables": "<svg onload=alert(3)>"}')
    found = page(run)
    assert "The pretrained model <script>alert(2)</script> was trained" in found.words
    assert "stopped because of the <img src=x> in step 41, which was not finite" in found.words


def test_a_run_that_is_still_going_on(make_run: Callable[..., Path], full_log: Any, page: Callable[..., Any]) -> None:
    found = page(make_run("unfinished", full_log[:1], finished=False, train__validate_every=20))
    assert found.headings == ["What was trained", "Balance over time", "Training", MISSING]
    assert "10 of 300 steps" in found.words
    assert "It has not ended" in found.words
    assert "it was not measured (none was reached yet)" in found.words
    assert "What the model takes for alike: vlm2rec embed first." in found.words
    assert "Utilisation" not in found.words.partition(MISSING)[2]


def test_a_run_that_ended_early(make_run: Callable[..., Path], full_log: Any, page: Callable[..., Any]) -> None:
    found = page(make_run("early", full_log, train__validate_every=10, train__patience=1))
    assert "It ended early" in found.words
    assert "step 20" in found.words  # of equal validations the first


def test_without_validation(make_run: Callable[..., Path], full_log: Any, page: Callable[..., Any]) -> None:
    lines = [{name: value for name, value in line.items() if "ndcg" not in name} for line in full_log]
    found = page(make_run("unseen", lines))
    assert "Does it learn to rank?" not in found.headings
    assert "it was not measured (train.validate_every = 0)" in found.words


def test_without_diagnostics(make_run: Callable[..., Path], page: Callable[..., Any]) -> None:
    found = page(make_run("bare", [{"step": 300, "loss": 2.0, "lead": 0.0, "wpcl": 0.0}]))
    assert found.headings == ["What was trained", "Training", MISSING]
    assert [svg["aria-label"] for svg in found.having("svg", role="img")] == [
        "Loss over training steps: loss 2 at step 300."  # no lead and no WPCL: this run did without
    ]
    assert "no line of the log has diagnostics" in found.words


def test_one_modality(make_run: Callable[..., Path], page: Callable[..., Any]) -> None:
    line = {"step": 40, "ndcg@10": 0.125, "gradient text": 0.0, "gradient image": 2.0, "effective rank image": 3.0}
    found = page(make_run("image", [line], **IMAGE))
    assert "Trained on image alone" in found.words
    plots = [svg["aria-label"] for svg in found.having("svg", role="img")]
    assert plots == [
        "NDCG@10 on held-out events over training steps: validation 0.125 at step 40.",
        "Gradient by modality over training steps: image 2 at step 40.",
        "Effective rank over training steps: image 3 at step 40.",
    ]
    assert "Utilisation" not in found.words.partition(MISSING)[2]


def test_utilisation_is_drawn_with_both_numbers(
    whole: Path, make_run: Callable[..., Path], page: Callable[..., Any]
) -> None:
    alone = make_run("alone", [{"step": 40, "ndcg@10": 0.4}], **IMAGE)
    found = page(whole, alone={"image": alone})
    assert "The image side has collapsed" in found.words
    assert "Utilisation of image: 0.50 (by image alone the joint model reaches an NDCG@10 of 0.2000" in found.words
    assert "joint model 0.2000 trained alone 0.4000" in re.sub(r"\s+", " ", found.words)
    assert "on the same 6 held-out events among the same 12 items" in found.words
    assert "trained on image alone 0.4" in found.words  # the line in the plot
    assert "Utilisation of text: give a run" in found.words


def test_other_data_is_reported(whole: Path, page: Callable[..., Any], small_shop: Dataset) -> None:
    changed = dataclasses.replace(
        small_shop, items=small_shop.items.head(11), interactions=small_shop.interactions.head(10)
    )
    assert "Careful: it was trained on other data" in page(whole, dataset=changed).words


def test_nothing_but_a_directory(tmp_path: Path, page: Callable[..., Any]) -> None:
    found = page(tmp_path)
    assert found.headings == ["What was trained", MISSING]
    assert "No training was logged in this run." in found.words


@pytest.mark.parametrize("damage", ["{", '{"format": 9}'])
def test_damaged_embeddings_are_reported(whole: Path, page: Callable[..., Any], damage: str) -> None:
    (whole / "embeddings" / "embeddings.json").write_text(damage)
    found = page(whole)
    assert ALIKE not in found.headings
    assert "embed the catalogue again" in found.words


def test_embeddings_of_other_items(whole: Path, page: Callable[..., Any], small_shop_embeddings: Embeddings) -> None:
    other = [f"other {row}" for row in range(len(small_shop_embeddings))]
    dataclasses.replace(small_shop_embeddings, item_ids=other, model={"kind": "no-vlm"}).save(whole / "embeddings")
    assert "no embedded item is in this data set" in page(whole).words


def test_what_there_must_be(whole: Path, page: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such run directory; check --run"):
        page(tmp_path / "none")
    with pytest.raises(EvaluationError, match=r"cannot be used .*check --evaluation"):
        page(whole, evaluation=tmp_path / "none.json")


def test_the_evaluation_with_and_without_each_slot(
    ring_run: tuple[Path, dict[str, Any]], ring_dataset: Dataset, page: Callable[..., Any], tmp_path: Path
) -> None:
    run, record = ring_run
    values = {"popularity": 0.1, "co-occurrence": 0.3, "served encoder": 0.8, "text only": 0.4, "image only": 0.2}
    values["text only, without lists"] = 0.3
    rows = [
        {"name": name, "ndcg@10": value, "ratio_to_popularity": {"ndcg@10": [10 * value, 10 * value - 0.5, None]}}
        for name, value in values.items()
    ]
    table = {"name": "fresh users", "users": 2000, "items": 12, "rows": rows}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"tables": [table], "model": record["model"]}))
    found = page(run, dataset=ring_dataset, evaluation=path)
    assert found.headings == ["What was trained", "What if a modality is missing?", ALIKE, MISSING]
    assert "on 2,000 held-out events (fresh users)" in found.words
    bars = [svg["width"] for svg in found.having("rect") if str(svg["class"]).startswith("fill-")]
    # all slots, text only, the same without lists, image only of 0.8
    assert bars == ["100.0", "50.0", "37.5", "25.0"]
    cells = [data.strip() for tag, data in found.text if tag in {"td", "th"}]
    place = cells.index("text only")
    assert cells[place : place + 4] == ["text only", "0.4000", "4", "3.5 … –"]
    assert "vectors were made without a model" in found.words


def test_an_evaluation_that_excludes_nothing_is_of_a_run_that_excludes_nothing(
    ring_run: tuple[Path, dict[str, Any]], ring_dataset: Dataset, page: Callable[..., Any], tmp_path: Path
) -> None:
    run, record = tmp_path / "run", ring_run[1]
    shutil.copytree(ring_run[0] / "encoder", run / "encoder")
    rows = [{"name": "served encoder", "ndcg@10": 0.8, "ratio_to_popularity": {}}]
    table = {"name": "test", "users": 40, "items": 12, "exclude_seen": False, "rows": rows}
    (run / "evaluation.json").write_text(json.dumps({"tables": [table], "model": record["model"]}))
    assert "What if a modality is missing?" not in page(run, dataset=ring_dataset).headings
    config = record["config"] | {"exclude_seen": False}
    (run / "encoder" / "fit.json").write_text(json.dumps(record | {"config": config}))
    assert "What if a modality is missing?" in page(run, dataset=ring_dataset).headings


def test_words_and_numbers() -> None:
    assert [as_span(value) for value in (59.4, 60, 3_599, 3_600, 90_000)] == [
        "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h"
    ]  # fmt: skip
    assert [as_figure(value) for value in (None, 0.123456, 12345.6, -1e6)] == ["–", "0.1235", "12,346", "-1,000,000"]
    assert (as_ratio(None), as_ratio(0.456)) == ("–", "0.46")
    names = ("ndcg@10", "ndcg@10 text", "gradient vision tower", "gap")
    assert [tone(name) for name in names] == ["tone-every", "tone-text", "tone-vision", "tone-plain"]
    assert in_code("a `b<` c `d") == "a <code>b&lt;</code> c d"
