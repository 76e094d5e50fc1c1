"""All commands in order: from a made catalogue to `POST /recommend`."""

import contextlib
import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import load_file, save_file

from cli.errors import LiveServiceError
from cli.main import main
from cli.online.verify import verify
from index.bundle.bundle import Bundle
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.errors import BundleNotFound
from tests.support.environments import without_coverage
from training.errors import ExportError


class Ran(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def vlm2rec(*arguments: object) -> Ran:
    """Run a command in this process, which has loaded torch already; `make check-slow` runs each as a process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:  # noqa: PT012 - what it prints too
        patch.setattr(sys, "argv", ["vlm2rec", *map(str, arguments)])
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            main()
    return Ran(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def done(ran: Ran) -> str:
    assert ran.code == 0, ran.out + ran.err
    return ran.out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small catalogue taken through every offline command without a VLM."""
    home = tmp_path_factory.mktemp("path")
    data, run = home / "data", home / "run"
    done(vlm2rec("data", "make-demo", data, "--items", 60, "--users", 300, "--evaluation-users", 400))
    done(vlm2rec("data", "check", data, "--json", home / "check.json"))
    (home / "few.toml").write_text("[encoder]\nepochs = 5\n")
    done(vlm2rec("fit", data, "--run", run, "--config", home / "few.toml"))
    users = data / "evaluation.parquet"
    done(vlm2rec("evaluate", data, "--run", run, "--users", users, "--json", home / "evaluation.json"))
    evaluation = ("--evaluation", home / "evaluation.json")
    # So few items, users and epochs teach little; see test_the_gate_is_on_by_default.
    done(vlm2rec("index", "build", "--run", run, "--out", home / "built", *evaluation, "--bound", "served_quality=0.5"))
    (bundle,) = [path for path in (home / "built").iterdir() if path.is_dir()]
    done(vlm2rec("index", "publish", bundle, "--registry", home / "bundles"))
    return home


@pytest.fixture(scope="module")
def url(built: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(built / "bundles"), "--embedded-redis"]
    service = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        line = service.stdout.readline()
        yield next(word for word in line.split() if word.startswith("http"))
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
        assert service.stdout is not None
        service.stdout.close()


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_answers_what_exact_arithmetic_gives(built: Path, url: str) -> None:
    registry = Registry(built / "bundles")
    bundle = Bundle.load(registry.path(str(registry.current())))
    assert bundle.list_scores is not None  # fitting makes lists that count here
    for probe in range(5):
        rows = bundle.evaluation_queries.history(probe)
        items = [bundle.ids.id(int(row)) for row in rows]
        answer = post(f"{url}/recommend", {"items": items, "k": 10, "explain": True})
        allowed = bundle.indexed.copy()
        allowed[rows] = False
        scores = (bundle.encode([rows]) @ bundle.vectors(np.arange(len(bundle))).T)[0]
        scores += bundle.list_scores.dense([rows[bundle.indexed[rows]]])[0]
        best = np.argsort(-np.where(allowed, scores, -np.inf), kind="stable")[:10]
        assert answer["strategy"] == "sequence"
        assert [item["item_id"] for item in answer["items"]] == [bundle.ids.id(int(row)) for row in best]
        np.testing.assert_allclose([item["score"] for item in answer["items"]], scores[best], rtol=1e-4)
        for item in answer["items"]:
            assert set(item["contributions"]) == {"text", "image", "behaviour"}
            assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)


def test_pytorch_onnx_and_the_live_service_agree(built: Path, url: str) -> None:
    registry = built / "bundles"
    ran = done(vlm2rec("verify", url, "--registry", registry, "--run", built / "run", "--histories", 20, "--json"))
    pairs = {pair["name"]: pair for pair in json.loads(ran)["pairs"]}
    assert set(pairs) == {"PyTorch – ONNX", "ONNX – live"}
    for pair in pairs.values():
        assert pair["agrees"]
        assert pair["histories"] == 20
        assert pair["difference"] < 1e-4
    (bundle,) = [path for path in registry.iterdir() if path.is_dir()]
    table = done(vlm2rec("verify", url, "--bundle", bundle, "--histories", 5))
    assert "ONNX – live" in table
    assert "agree" in table


def test_other_weights_and_another_bundle_are_noticed(
    built: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(**given: Any) -> None:
        asked = {"registry": None, "bundle": None, "run": None, "item": None, "api_key": None, "as_json": False}
        verify(url, **{**asked, "histories": 5, "k": 20, "tolerance": 1e-4, "timeout": 20.0, **given})

    run, registry = tmp_path / "run", str(built / "bundles")
    shutil.copytree(built / "run" / "encoder", run / "encoder")
    served = run / "encoder" / "served"
    weights = load_file(served / "encoder.safetensors")
    weights["leave.bias"] += 0.01
    save_file(weights, served / "encoder.safetensors")
    with pytest.raises(typer.Exit) as ended:
        check(registry=registry, run=run)
    assert ended.value.exit_code == 1
    printed = capsys.readouterr()
    assert "5 differ" in printed.out
    assert "PyTorch – ONNX: history " in printed.err
    (served / "encoder.onnx").write_bytes(b"another")
    for error, given, says in (
        (LiveServiceError, {"registry": registry, "run": run}, "holds another encoder than bundle"),
        (ExportError, {"registry": registry, "run": tmp_path}, "no fitted encoder here"),
        (LiveServiceError, {"registry": str(tmp_path)}, f"which {tmp_path} does not have"),
        (BundleNotFound, {"bundle": tmp_path / "nothing"}, "there is no bundle"),
        (typer.BadParameter, {}, "give --registry or --bundle"),
    ):
        with pytest.raises(error, match=says):
            check(**given)


def test_stores_events(built: Path, url: str) -> None:
    item = (built / "data" / "items.csv").read_text().splitlines()[5].split(",")[0]
    assert post(f"{url}/events", {"user_id": "ünï", "item_id": item})["stored"] == 1
    answer = post(f"{url}/recommend", {"user_id": "ünï", "k": 3})
    assert (answer["strategy"], answer["history_used"]) == ("sequence", 1)
    assert item not in [found["item_id"] for found in answer["items"]]


def test_every_item_with_a_readable_picture_is_shown_and_can_be_searched(built: Path, url: str) -> None:
    with (built / "data" / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {bool(row["image"]) for row in rows} == {True, False}
    for row in rows:
        item_id, title, image = row["item_id"], row["title"], row["image"]
        with urllib.request.urlopen(f"{url}/items/{item_id}", timeout=60) as answer:
            assert json.load(answer)["picture"] == bool(image)
        if image:
            with urllib.request.urlopen(f"{url}/items/{item_id}/image", timeout=60) as answer:
                picture = Image.open(io.BytesIO(answer.read()))
            assert (picture.format, max(picture.size) <= 256) == ("JPEG", True)
        if title:
            query = urllib.parse.urlencode({"q": title.upper()})
            with urllib.request.urlopen(f"{url}/items?{query}", timeout=60) as answer:
                assert item_id in [item["item_id"] for item in json.load(answer)["items"]]


def test_a_user_has_a_profile_and_samples_can_be_played_with(built: Path, url: str) -> None:
    with urllib.request.urlopen(f"{url}/users/samples", timeout=60) as answer:
        sample = json.load(answer)["samples"][0]
    items = [item["item_id"] for item in (*sample["history"], sample["target"])]
    assert len(post(f"{url}/recommend", {"items": items, "k": 2})["items"]) == 2
    events = [{"user_id": "played", "item_id": item, "timestamp": at} for at, item in enumerate(items)]
    post(f"{url}/events", {"events": events})
    with urllib.request.urlopen(f"{url}/users/played/profile", timeout=60) as answer:
        profile = json.load(answer)
    assert profile["steps"] == len(items) - 1
    assert sum(profile["shares"].values()) == pytest.approx(1)


def test_reports_were_written(built: Path) -> None:
    assert json.loads((built / "check.json").read_text())
    evaluation = json.loads((built / "evaluation.json").read_text())
    served = next(row for row in evaluation["tables"][0]["rows"] if row["name"] == "served encoder")
    (bundle,) = (path for path in (built / "bundles").iterdir() if path.is_dir())
    gate = Manifest.read(bundle).gate
    assert gate.bounds["served_quality"] == 0.5
    assert gate.figures["served_quality"] == served["ratio_to_popularity"]["ndcg@10"][0]
    assert "Fit to publish" in (bundle / "report.html").read_text()


def test_the_gate_is_on_by_default(built: Path) -> None:
    evaluation = json.loads((built / "evaluation.json").read_text())
    served = next(row for row in evaluation["tables"][0]["rows"] if row["name"] == "served encoder")
    served["ratio_to_popularity"]["ndcg@10"] = [0.99, 0.9, 1.1]
    path, registry = built / "worse.json", built / "worse"
    path.write_text(json.dumps(evaluation))
    ran = vlm2rec(
        "index", "build", "--run", built / "run", "--out", built / "w", "--evaluation", path, "--publish", registry
    )
    assert ran.code == 1
    assert "served_quality 0.99 (must be at least 1)" in " ".join(ran.err.split())
    assert not (registry / "pointer.json").exists()


def test_another_encoders_evaluation_is_refused(built: Path) -> None:
    stale = json.loads((built / "evaluation.json").read_text())
    stale["model"]["encoder"]["hash"] = "0" * 16
    path = built / "stale.json"
    path.write_text(json.dumps(stale))
    ran = vlm2rec("index", "build", "--run", built / "run", "--out", built / "stale", "--evaluation", path)
    assert ran.code == 2
    assert "measured the encoder '0000000000000000'" in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_features_without_a_model_cannot_be_reindexed(built: Path) -> None:
    ran = vlm2rec("reindex", built / "data", "--run", built / "run", "--registry", built / "bundles")
    assert ran.code == 2
    assert "a new item cannot be embedded alone" in ran.err
    assert len(Registry(built / "bundles").list()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reindex", "nowhere", "--run", "run", "--registry", "bundles"), "nowhere"),
        (("train", "nowhere", "--run", "run"), "nowhere"),
        (("embed", "nowhere", "--run", "run", "--no-vlm"), "nowhere"),
        (("fit-encoder", "nowhere", "--run", "run"), "nowhere"),
        (("fit", "nowhere"), "nowhere"),
        (("evaluate", "nowhere", "--run", "run"), "run/encoder"),
        (("index", "build", "--run", "nowhere", "--out", "built"), "nowhere"),
        (("index", "publish", "nowhere", "--registry", "bundles"), "nowhere"),
        (("data", "check", "nowhere"), "nowhere"),
        (("verify", "http://127.0.0.1:9", "--registry", "nowhere"), "127.0.0.1:9 does not answer"),
    ],
)
def test_a_path_that_is_not_there_is_one_clear_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    ran = vlm2rec(*arguments)
    assert ran.code == 2, ran.out + ran.err
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_a_registry_that_is_not_there_is_one_clear_line_of_a_service(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "serve", "--registry", "nowhere"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert "nowhere" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_interrupting_a_long_command_is_not_an_error_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "data", "make-demo", str(tmp_path / "data")]
    # An interrupt within coverage's own lock would leave it locked for ever.
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=without_coverage()
    )
    while running.poll() is None and not any(tmp_path.iterdir()):
        time.sleep(0.01)  # it is at work as soon as there is something
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert not (tmp_path / "data").exists()


def test_an_interrupt_while_the_commands_are_loaded_is_not_an_error_message() -> None:
    code = (
        "import os, signal, sys\n"
        "from cli.main import main\n"
        "class Interrupting:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "assert 'typer' not in sys.modules\n"
        "sys.meta_path.insert(0, Interrupting)\n"
        "sys.argv = ['vlm2rec', '--help']\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")
