"""`vlm2rec retrain`: from an export of events to a published bundle; killed at any step it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from cli.offline.encoder import chosen_config
from cli.offline.retraining import comparison
from cli.offline.retraining import retrain as command
from index.bundle.event_types import EventTypes
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.event_export.directory import ExportDirectory
from index.event_export.erasures import user_hash
from index.event_export.stream_ids import StreamId
from tests.support.stores.stream_entries import stream_entry

pytestmark = pytest.mark.usefixtures("shared_graphs")

RING = 12
DAY = 86_400
START = 1_790_000_000
RECIPE = """
[encoder]
text_dim = 8
behaviour_dim = 8
slots = ["text", "behaviour"]
width = 16
max_history = 5
batch_size = 16
epochs = {epochs}
learning_rate = {rate}
list_neighbours = {neighbours}
dropout = 0.0
warmup_steps = 1
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Twelve items on a ring; the data set has the first three steps of every user, the export the others."""
    data = tmp_path / "shop"
    data.mkdir()
    words = ["amber", "birch", "coral", "dune", "ember", "fern", "grove", "heath", "iris", "jade", "kelp", "lotus"]
    rows = [f"i{item},{words[item]} {words[(item + 1) % RING]}" for item in range(RING)]
    (data / "items.csv").write_text("\n".join(["item_id,title", *rows]) + "\n")
    own = [f"u{user},i{(user + step) % RING},{START + step * DAY}" for user in range(60) for step in range(3)]
    (data / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *own]) + "\n")
    export = ExportDirectory.open_or_create(tmp_path / "export")
    events = [(user, (user + step) % RING, START + step * DAY) for step in range(3, 7) for user in range(60)]
    write(export, [(f"u{user}", f"i{item}", at) for user, item, at in events])
    return data


def write(export: ExportDirectory, rows: list[tuple[str, str, int]], start: int = 0, kind: str = "") -> None:
    entries = [
        stream_entry(
            max(at, START + 3 * DAY) * 1000,
            start + n,
            {"user_id": user, "item_id": item, "timestamp": str(at), "type": kind},
        )
        for n, (user, item, at) in enumerate(rows)
    ]
    export.commit([export.write_entries(0, entries)])


def recipe(tmp_path: Path, *, epochs: int = 5, rate: float = 0.01, neighbours: int | str = 5) -> Path:
    path = tmp_path / f"recipe-{epochs}-{rate}-{neighbours}.toml"
    path.write_text(RECIPE.format(epochs=epochs, rate=rate, neighbours=neighbours))
    return path


def retrain(shop: Path, config: Path, *more: object) -> Result:
    home = shop.parent
    arguments = ["retrain", shop, "--events", home / "export", "--registry", home / "bundles", "--run", home / "run"]
    options = ["--config", config, "--measure-days", "1.5", "--threads", "1", "--bound", "recall=0.5", *more]
    return CliRunner().invoke(app, [str(word) for word in [*arguments, *options]])


def manifest(shop: Path) -> Manifest:
    registry = Registry(shop.parent / "bundles")
    current = registry.current()
    assert current is not None
    return Manifest.read(registry.path(current))


def systems(shop: Path) -> set[str]:
    return {row["name"] for row in manifest(shop).model["retrain"]["comparison"]["table"]["rows"]}


@pytest.mark.slow
def test_killed_at_any_step_it_goes_on_and_the_manifest_says_how(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = ExportDirectory(shop.parent / "export")
    late = [("u1", "gone", START + 9), ("u99", "i1", START + 5 * DAY), ("u98", "i1", START + 5 * DAY)]
    write(export, late, start=100)
    write(export, [(f"u{user}", "i0", START + 6 * DAY) for user in range(20)], start=200, kind="impression")
    write(export, [("u2", "i7", START + 6 * DAY)], start=300, kind="dislike")
    export.add_erasures(0, {user_hash(export.key, "u99"): StreamId(2**60, 0)})
    steps: list[tuple[Any, str]] = [
        (comparison, "fit_and_print"),
        (command, "compared"),
        (command, "fit_and_print"),
        (command, "_built"),
    ]
    config, run, bundles = recipe(shop.parent), shop.parent / "run", shop.parent / "bundles"
    for owner, step in steps:
        whole = getattr(owner, step)

        def killed(*arguments: Any, whole: Any = whole, **options: Any) -> None:
            whole(*arguments, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(owner, step, killed)
            last = retrain(shop, config)
            assert last.exit_code == 130
    assert not bundles.exists()
    assert not (run / "encoder").exists(), "the run keeps what it has until the gate agrees"
    with monkeypatch.context() as patched:
        patched.setattr(command, "fit_and_print", None)  # nothing is fitted again
        patched.setattr(comparison, "fit_and_print", None)
        done = retrain(shop, config)
    assert done.exit_code == 0, done.output
    assert "an earlier job was interrupted: going on with its interactions" in done.stdout
    assert "263 of 264 exported events (left out: 1 erased, 0 duplicates, 0 incomplete, 0 future)" in done.stdout
    assert "1 of them late, 1 out of order" in done.stdout
    assert "180 interactions of the data set before them (0 others count as exported)" in done.stdout
    assert "1 interactions are of items that the catalogue lacks; left out" in last.stdout
    assert not (run / "retrain").exists(), "copies of users' events go with the job"
    retrained = manifest(shop).model["retrain"]
    assert retrained["fitted_on"] == "everything"
    assert retrained["exported"]["erased"] == 1
    assert retrained["cutoff"] == START + 6 * DAY - 1.5 * DAY
    assert systems(shop) == {"popularity", "new recipe"}
    assert retrained["comparison"]["models"] == {}, "texts and pictures learn from no event"
    assert manifest(shop).model["volume"] == {"events": 180}, "re-indexing compares the data set with itself"
    fitted = json.loads((run / "encoder" / "fit.json").read_text())
    assert fitted["counted_on_export"] is True
    assert fitted["left_out"] == {"impression": 20, "negative": 1}, "what was shown or disliked is no like"
    assert manifest(shop).event_types == EventTypes.of(None, None), "and the bundle says what the types meant"
    build = ["index", "build", "--run", str(run), "--publish", str(bundles), "--bound", "recall=0.5"]
    assert CliRunner().invoke(app, build).exit_code == 0
    known = command._served_recipe(Registry(bundles), run)
    assert known == chosen_config(run, config, None), "the bundle does not name it, but the run has its encoder"
    assert command._served_recipe(Registry(bundles), shop.parent) is None


@pytest.mark.slow
def test_a_worse_recipe_than_the_served_one_is_refused(shop: Path) -> None:
    good, bad = recipe(shop.parent), recipe(shop.parent, epochs=1, rate=1e-6, neighbours=0)
    assert retrain(shop, good).exit_code == 0
    first = manifest(shop)
    (shop.parent / "run" / "evaluation.json").write_text("of the first encoder")
    (shop.parent / "run" / "retrain").mkdir()
    (shop.parent / "run" / "retrain" / "bundle").write_text(f"{shop.parent / 'run' / 'bundles' / first.id}\nspec\n")
    assert retrain(shop, good).stdout == f"published: {first.id} by an interrupted job\n"
    fitted = (shop.parent / "run" / "encoder" / "fit.json").read_bytes()
    refused = retrain(shop, bad)
    assert refused.exit_code == 1, refused.output
    assert "refused: NDCG@10 of the new recipe is" in refused.stderr
    assert manifest(shop).id == first.id
    assert (shop.parent / "run" / "encoder" / "fit.json").read_bytes() == fitted, "nor does the run have it"
    forced = retrain(shop, bad, "--force")
    assert forced.exit_code == 0, forced.output
    assert not (shop.parent / "run" / "evaluation.json").exists(), "the next re-indexing would refuse it"
    assert systems(shop) == {"popularity", "new recipe", "served recipe"}


@pytest.mark.slow
def test_a_bundle_that_a_killed_job_built_for_other_bounds_is_built_again(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = recipe(shop.parent, epochs=1, neighbours=0), command._built

    def killed(*arguments: Any, **options: Any) -> None:
        whole(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "_refusal", lambda _: "")
    with monkeypatch.context() as patched:
        patched.setattr(command, "_built", killed)
        assert retrain(shop, config).exit_code == 130
    monkeypatch.setattr(command, "fit_and_print", None)  # only the bundle is made again
    refused = retrain(shop, config, "--bound", "latency_p99_ms=0.0")
    assert refused.exit_code == 1, refused.output
    assert "these figures miss their bounds: latency_p99_ms" in refused.stderr


@pytest.mark.slow
def test_a_number_that_the_catalogue_decides_makes_no_other_recipe(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_refusal", lambda _: "")
    config, run = recipe(shop.parent, epochs=1, neighbours='"auto"'), shop.parent / "run"
    longer = [f"u{user},i{(user + step) % RING},{START + step * DAY}" for user in range(60) for step in range(5)]
    (shop.parent / "longer.csv").write_text("\n".join(["user_id,item_id,timestamp", *longer]) + "\n")
    fit = ["fit", shop, "--interactions", shop.parent / "longer.csv", "--run", run, "--config", config]
    build = ["index", "build", "--run", run, "--publish", shop.parent / "bundles", "--bound", "recall=0.5"]
    for arguments in (fit, build):
        assert CliRunner().invoke(app, [str(word) for word in arguments]).exit_code == 0
    done = retrain(shop, config)
    assert done.exit_code == 0, done.output
    assert systems(shop) == {"popularity", "new recipe"}


def test_without_an_event_before_the_last_days_there_is_nothing_to_learn(shop: Path) -> None:
    done = retrain(shop, recipe(shop.parent), "--measure-days", "400")
    assert "so none is left to learn from before them; give fewer --measure-days" in str(done.exception)
