"""`vlm2rec evaluate`, called as the command line calls it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from cli.offline.evaluate import evaluate
from index.errors import DiskError
from index.items.item_table import ItemTable
from training.embedding.store import Embeddings
from training.errors import BackboneError, EvaluationError

Run = tuple[Path, dict[str, Any]]

app = typer.Typer()
app.command("evaluate")(evaluate)


@pytest.fixture
def ask(ring_run: Run, ring_directory: Path, tmp_path: Path) -> Any:
    """Evaluates the ring's run with these options; gives the result and the file of figures."""

    def invoke(*more: object) -> tuple[Any, Path]:
        path = tmp_path / "new" / "figures.json"
        words = [str(ring_directory), "--run", str(ring_run[0]), "--json", str(path), *map(str, more)]
        return CliRunner().invoke(app, words), path

    return invoke


def test_it_prints_a_table_and_writes_json_and_markdown(ask: Any, ring_run: Run) -> None:
    result, path = ask()
    assert result.exit_code == 0, result.output
    for shown in ("test: 40 targets", "popularity", "served encoder", "image only", "NDCG@10", "coverage@10"):
        assert shown in result.output
    figures = json.loads(path.read_text())
    (table,) = figures["tables"]
    assert (table["users"], table["whole"]) == (40, 40)
    served = next(row for row in table["rows"] if row["name"] == "served encoder")
    assert f"{served['ndcg@10']:.4f}" in result.output
    assert figures["data"] == ring_run[1]["data"]
    assert "vlm" not in figures
    assert set(served["ratios"]) == {
        "popularity", "co-occurrence", "item kNN", "EASE", "TF-IDF neighbours", "content mean"
    }  # fmt: skip
    assert set(figures["baselines"]) == {"item kNN", "EASE"}
    assert figures["baselines"]["EASE"]["regularisation"] > 0
    assert served["ratios"]["popularity"] == served["ratio_to_popularity"]
    page = path.with_suffix(".md").read_text().splitlines()
    assert page[0] == "## test: 40 targets, full ranking over 12 items, history masked"
    line = next(line for line in page if line.startswith("| served encoder |"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert len(cells) == page[4].count("|") - 1 == 12
    assert cells[1:3] == [f"{served['hr@10']:.4f}", f"{served['ndcg@10']:.4f}"]
    low, high = served["ratio_to_popularity"]["ndcg@10"][1:]
    assert cells[-1].endswith(f"[{low:.2f}, {high:.2f}]")


def test_baselines_that_are_not_wanted_or_not_there_are_no_rows(
    ring_run: Run, ring_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(ring_run[0] / "encoder", tmp_path / "run" / "encoder")
    words = [str(ring_directory), "--run", str(tmp_path / "run"), "--json", str(tmp_path / "figures.json"), "--no-ease"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    names = [row["name"] for row in json.loads((tmp_path / "figures.json").read_text())["tables"][0]["rows"]]
    assert {"EASE", "content mean"}.isdisjoint(names)
    assert "item kNN" in names
    assert "note: no content mean row:" in result.stderr


def test_a_share_for_new_items_adds_a_row(ring_run: Run, ring_directory: Path, tmp_path: Path) -> None:
    run, name = tmp_path / "run", "served encoder, fresh share 0.2"
    shutil.copytree(ring_run[0] / "encoder", run / "encoder")
    table, found = ItemTable.load(run / "encoder" / "table"), {}
    assert table.popularity.min() > 0
    for new in (0, 12):  # none is new, all are
        popularity = np.where(np.arange(12) < new, 0, table.popularity)
        replace(table, popularity=popularity, vectors=np.array(table.vectors)).save(run / "encoder" / "table")
        words = [str(ring_directory), "--run", str(run), "--json", str(tmp_path / "figures.json"), "--no-ease"]
        result = CliRunner().invoke(app, [*words, "--fresh-share", "0.2"])
        assert result.exit_code == 0, result.output
        rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())["tables"][0]["rows"]}
        found[new] = rows[name]["ndcg@10"], rows["served encoder"]["ndcg@10"]
    for kept, served in found.values():
        assert kept == pytest.approx(served)
    assert CliRunner().invoke(app, [*words, "--fresh-share", "1.1"]).exit_code == 2


def _with_repeats(directory: Path, ring: Path) -> Path:
    """Fresh users who walk three steps, of whom two of three go back to the first item at last."""
    rows = [f"w{user},r{(user + step) % 12},{step}" for user in range(6) for step in range(3)]
    rows += [f"w{user},r{user if user % 3 else user + 3},9" for user in range(6)]
    (directory / "again.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return directory / "again.csv"


def test_repeats_are_counted_and_left_out_in_a_second_table(ask: Any, ring_directory: Path, tmp_path: Path) -> None:
    result, path = ask("--users", _with_repeats(tmp_path, ring_directory))
    assert result.exit_code == 0, result.output
    assert "fresh users: 6 targets, 4 of them repeats, each a miss, full ranking over 12 items" in result.output
    assert "fresh users without repeats: 2 targets, full ranking" in result.output
    served, without = json.loads(path.read_text())["tables"]  # the gate takes the first
    assert (served["repeats"], served["exclude_seen"]) == (4, True)
    assert (without["repeats"], without["users"]) == (0, 2)
    for row, other in zip(served["rows"], without["rows"], strict=True):
        assert row["hr@10"] == pytest.approx(other["hr@10"] * 2 / 6)
    assert "## fresh users without repeats: 2 targets" in path.with_suffix(".md").read_text()


def test_a_run_that_answers_seen_items_is_measured_so(ring_run: Run, ring_directory: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(ring_run[0] / "encoder", run / "encoder")
    record = json.loads((run / "encoder" / "fit.json").read_text())
    assert record["config"].pop("exclude_seen") is True  # as an earlier version wrote it
    words = [str(ring_directory), "--run", str(run), "--users", str(_with_repeats(tmp_path, ring_directory))]
    found = {}
    for name, more in {"earlier": {}, "true": {"exclude_seen": True}, "false": {"exclude_seen": False}}.items():
        (run / "encoder" / "fit.json").write_text(json.dumps(record | {"config": record["config"] | more}))
        result = CliRunner().invoke(app, [*words, "--json", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        found[name] = json.loads((tmp_path / name).read_text())["tables"][0]
    assert found["earlier"] == found["true"]
    assert "6 targets, 4 of them repeats, full ranking over 12 items, history not masked" in result.output
    assert found["false"]["exclude_seen"] is False
    names = [row["name"] for row in found["false"]["rows"]]
    most = [table["rows"][names.index("popularity")]["hr@20"] for table in (found["true"], found["false"])]
    assert most == [pytest.approx(2 / 6), 1]


def test_without_a_file_it_is_saved_with_the_run(ring_run: Run, ring_directory: Path) -> None:
    words = [str(ring_directory), "--run", str(ring_run[0]), "--users", str(ring_directory / "fresh.csv")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (ring_run[0] / "evaluation" / "fresh-users.json").is_file()
    assert (ring_run[0] / "evaluation" / "fresh-users.md").is_file()


@pytest.mark.parametrize(("more", "title"), [(["--validation"], "validation: 40"), (["--users"], "fresh users: 6")])
def test_other_targets(ask: Any, ring_directory: Path, more: list[str], title: str) -> None:
    result, _ = ask(*more, *([ring_directory / "fresh.csv"] if more == ["--users"] else []))
    assert result.exit_code == 0, result.output
    assert title in result.output


def test_fewer_targets_are_named_as_such(ask: Any) -> None:
    result, path = ask("--targets", 7)
    assert "test: 7 targets (evenly spaced, of 40), full ranking" in result.output
    (table,) = json.loads(path.read_text())["tables"]
    assert (table["users"], table["whole"]) == (7, 40)


def test_any_row_can_be_compared_with(ask: Any) -> None:
    result, path = ask("--against", "text only")
    assert "x text only" in result.output
    (table,) = json.loads(path.read_text())["tables"]
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["text only"]["ratios"]["text only"]["ndcg@20"] == [1, 1, 1]
    expected = rows["served encoder"]["ndcg@20"] / rows["text only"]["ndcg@20"]
    assert rows["served encoder"]["ratios"]["text only"]["ndcg@20"][0] == pytest.approx(expected)
    refused, _ = ask("--against", "nobody")
    assert isinstance(refused.exception, EvaluationError)
    assert "no row 'nobody'" in str(refused.exception)


def test_a_row_that_is_not_there_is_refused_before_anything_is_ranked(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("--save-ranks", tmp_path / "ranks.parquet")
    monkeypatch.setattr("training.evaluation.evaluate.rank_sets", lambda *_, **__: pytest.fail("ranked"))
    refused, _ = ask("--against", "nobody", "--ranks", f"A={tmp_path / 'ranks.parquet'}")
    assert isinstance(refused.exception, EvaluationError)
    assert "'served encoder (A)'" in str(refused.exception)
    refused, _ = ask("--ranks", f"A={tmp_path / 'none.parquet'}")
    assert isinstance(refused.exception, EvaluationError)


def test_a_long_name_of_a_row_takes_no_digit_of_a_figure(ask: Any, tmp_path: Path) -> None:
    ask("--save-ranks", tmp_path / "ranks.parquet")
    label = "a label that is longer than every figure of the table"
    result, path = ask("--ranks", f"{label}={tmp_path / 'ranks.parquet'}", "--against", f"served encoder ({label})")
    row = json.loads(path.read_text())["tables"][0]["rows"][0]
    (line,) = [line for line in result.output.splitlines() if line.startswith(f"│ {row['name']} ")]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1:6] == [f"{row[name]:.4f}" for name in ("hr@10", "ndcg@10", "hr@20", "ndcg@20", "hr@10/100")]
    assert cells[-1].endswith("]")


def test_rows_of_another_run_stand_beside(ask: Any, tmp_path: Path) -> None:
    _, path = ask("--save-ranks", tmp_path / "ranks" / "a.parquet")
    own = {row["name"]: row for row in json.loads(path.read_text())["tables"][0]["rows"]}
    result, _ = ask("--ranks", f"[run] A={tmp_path / 'ranks' / 'a.parquet'}", "--against", "served encoder ([run] A)")
    assert result.exit_code == 0, result.output
    assert "image only ([run] A)" in result.output
    assert "popularity ([run] A)" not in result.output
    rows = {row["name"]: row for row in json.loads(path.read_text())["tables"][0]["rows"]}
    there = rows["served encoder ([run] A)"]
    assert {k: v for k, v in there.items() if k[-1].isdigit()} == {
        k: v for k, v in own["served encoder"].items() if k[-1].isdigit()
    }
    assert rows["served encoder"]["ratios"]["served encoder ([run] A)"]["hr@10"] == [1, 1, 1]
    twice, _ = ask("--ranks", tmp_path / "ranks" / "a.parquet")
    assert isinstance(twice.exception, EvaluationError)
    assert "--ranks LABEL=" in str(twice.exception)


def test_a_file_of_one_other_system_needs_no_label(ask: Any, tmp_path: Path) -> None:
    ask("--save-ranks", tmp_path / "a.parquet")
    only = pl.read_parquet(tmp_path / "a.parquet").filter(pl.col("system") == "served encoder")
    only.with_columns(pl.lit("SASRec").alias("system")).write_parquet(tmp_path / "b=1.parquet")
    result, _ = ask("--ranks", tmp_path / "b=1.parquet")
    assert result.exit_code == 0, result.output
    assert "SASRec" in result.output


def test_ranks_of_other_targets_are_refused(ask: Any, tmp_path: Path) -> None:
    ask("--save-ranks", tmp_path / "a.parquet", "--targets", 9)
    result, _ = ask("--ranks", f"A={tmp_path / 'a.parquet'}")
    assert isinstance(result.exception, EvaluationError)
    assert "other test targets" in str(result.exception)
    result, _ = ask("--ranks", f"A={tmp_path / 'a.parquet'}", "--targets", 9)
    assert result.exit_code == 0, result.output


def test_direct_ranking_needs_a_model(ask: Any) -> None:
    result, _ = ask("--direct")
    assert isinstance(result.exception, BackboneError)
    assert "vlm2rec train" in str(result.exception)


@pytest.mark.parametrize("option", ["--json", "--save-ranks"])
def test_files_that_cannot_be_written_are_a_clear_error(ask: Any, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    result, _ = ask(option, tmp_path / "file" / "x.json")
    assert isinstance(result.exception, DiskError)
    assert "cannot be written" in str(result.exception)


@pytest.mark.slow
def test_the_recipe_is_fitted_before_the_last_days_and_measured_on_them(
    ring_run: Run, ring_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(ring_run[0], tmp_path / "run")
    embeddings = Embeddings.load(tmp_path / "run" / "embeddings")
    replace(embeddings, model={"kind": "vlm"}).save(tmp_path / "run" / "embeddings")
    walks = [f"u{user},r{(user + step) % 12},2026-01-{step + 1:02d}" for user in range(40) for step in range(9)]
    (tmp_path / "walks.csv").write_text("\n".join(["user_id,item_id,timestamp", *walks]) + "\n")
    words = [str(ring_directory), "--run", str(tmp_path / "run"), "--interactions", str(tmp_path / "walks.csv")]
    result = CliRunner().invoke(app, [*words, "--split", "time", "--measure-days", "1.5"])
    assert result.exit_code == 0, result.output
    assert "after the cut-off: 40 targets" in result.output
    figures = json.loads((tmp_path / "run" / "evaluation" / "after-the-cut-off.json").read_text())
    assert figures["data"]["users"] == 40
    (table,) = figures["tables"]
    figure = {row["name"]: row["ndcg@10"] for row in table["rows"]}
    assert figure["served encoder"] > figure["popularity"]
    assert "note: it is not known whether the vision-language model has learned from measured events" in result.output
    assert figures["vlm"] == {"newest_event": None, "has_measured_events": None}


def test_a_recipe_of_another_version_is_a_clear_error(ring_run: Run, ring_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(ring_run[0] / "encoder", tmp_path / "encoder")
    path = tmp_path / "encoder" / "fit.json"
    record = json.loads(path.read_text())
    words = [str(ring_directory), "--run", str(tmp_path), "--split", "time"]
    for config in ({**record["config"], "of_a_later_version": 1}, None):
        path.write_text(json.dumps({**record, "config": config} if config else {"lists": record["lists"]}))
        failed = CliRunner().invoke(app, words)
        assert isinstance(failed.exception, EvaluationError), failed.output
        assert "run `vlm2rec fit-encoder` again" in str(failed.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--measure-days", "3"], "--measure-days goes with --split time alone"),
        (["--validation", "--users", "fresh.csv"], "--users and --validation name different targets"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(ask: Any, options: list[str], said: str) -> None:
    result, path = ask(*options)
    assert result.exit_code == 2
    assert said in result.output
    assert not path.exists()


def test_the_time_split_takes_no_option_of_the_other(ask: Any) -> None:
    result, path = ask("--split", "time", "--validation")
    assert result.exit_code == 2
    assert not path.exists()
