"""`vlm2rec experiments report` against a server that answers like the service."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.errors import LiveServiceError

ARMS = [{"name": "control", "share": 0.5, "bundle": None, "defaults": {}}, {"name": "new", "share": 0.5}]
KEY = "an-admin-key-for-tests"


def groups(arm: str, clicks: int) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "group": group, "answers": 100, "users": 20, "clicks": clicks + group % 3, "latency_us": 500_000}
        for group in range(256)
    ]


def drafted(arm: str, wins: int) -> list[dict[str, Any]]:
    counted = {"answers": 100, "shown": 500, "clicks": 30, "ties": 2, "revenue": 2.5, "degraded": 1}
    return [{"arm": arm, "group": group, "wins": wins + group % 2, **counted} for group in range(256)]


BODIES = {
    "models": {"experiment": {"name": "models", "arms": ARMS}, "groups": groups("control", 5) + groups("new", 9)},
    "new": {"experiment": {"name": "models", "arms": ARMS}, "groups": []},
    "draft": {
        "experiment": {"name": "draft", "arms": ARMS, "interleave": True},
        "groups": drafted("control", 8) + drafted("new", 12),
    },
    "empty": {"experiment": {"name": "empty", "arms": ARMS, "interleave": True}, "groups": []},
    "odd": {"experiment": [], "groups": []},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            admitted = self.headers["X-API-Key"] == KEY
            body = BODIES.get(self.path.split("/")[2]) if admitted else None
            known = body is not None
            body = body or {"detail": "no experiment of this name runs"}
            sent = json.dumps(body).encode()
            self.send_response(200 if known else 404 if admitted else 401)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def ran(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["experiments", "report", *arguments], env={"COLUMNS": "80"})


def test_the_report_ends_with_its_verdict(url: str) -> None:
    result = ran("models", "--url", url, "--api-key", f"{KEY},another")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "verdict: keep"
    assert any("new: clicks per answer +0.0400 (+66.7%)" in line for line in lines)
    # Whole also where the terminal is narrow, or none.
    assert " ".join(lines[1].split()) == "arm share answers clicks conversions revenue latency ms degraded"
    assert " ".join(lines[2].split()).startswith("control 50% 25,600 0.0600 [0.0590, 0.0610] 0.0000 ")


def test_the_report_as_json(url: str) -> None:
    found = json.loads(ran("models", "--url", url, "--api-key", KEY, "--json", "--goal", "conversions").stdout)
    assert (found["verdict"], found["goal"], found["candidates"][0]["test"]["p"]) == ("not yet", "conversions", 1.0)
    assert found["candidates"][0]["test"]["low"] is None


def test_the_report_of_an_interleaved_experiment(url: str) -> None:
    result = ran("draft", "--url", url, "--api-key", KEY)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "experiment draft: interleaved, items of both arms in every answer"
    assert " ".join(lines[1].split()) == "arm answers items clicks conversions revenue wins degraded"
    assert " ".join(lines[3].split()) == "new 25,600 128,000 7,680 0 640.00 3,200 1.00%"
    assert lines[4] == "both arms as many clicks: 512 answers"
    assert lines[5].startswith("new: preferred in 58.7% of 5,888 answers, always valid interval [")
    assert lines[6].startswith("  keep: its items get clicks in more answers than the others: p is ")
    assert lines[7] == "verdict: keep"
    found = json.loads(ran("draft", "--url", url, "--api-key", KEY, "--json").stdout)
    assert (found["verdict"], [arm["wins"] for arm in found["arms"]], found["ties"]) == ("keep", [2176, 3200], 512)


def test_an_interleaved_experiment_without_answers_waits(url: str) -> None:
    lines = ran("empty", "--url", url, "--api-key", KEY).stdout.splitlines()
    assert lines[-3:] == [
        "new: preferred in – of 0 answers",
        "  not yet: 100 answers with clicks are needed, there are 0",
        "verdict: not yet",
    ]


def test_revenue_is_not_compared_where_answers_are_interleaved(url: str) -> None:
    result = ran("draft", "--url", url, "--api-key", KEY, "--goal", "revenue")
    assert result.exit_code == 2
    assert "clicks or conversions where answers are" in result.output


def test_something_else_than_an_experiment_is_an_error(url: str) -> None:
    result = ran("odd", "--url", url, "--api-key", KEY)
    assert isinstance(result.exception, LiveServiceError)
    assert "answers with something else than an experiment" in str(result.exception)


def test_an_unknown_experiment_is_an_error(url: str) -> None:
    result = ran("other", "--url", url, "--api-key", KEY)
    assert isinstance(result.exception, LiveServiceError)
    assert "no experiment of this name runs" in str(result.exception)


def test_without_answers_there_are_no_figures_that_are_none(url: str) -> None:
    result = ran("new", "--url", url, "--api-key", KEY)
    assert result.stdout.splitlines()[-1] == "verdict: not yet"
    assert "nan" not in result.stdout
    assert "inf" not in result.stdout


def test_a_missing_key_names_the_variable_of_the_admin_keys(url: str) -> None:
    result = ran("models", "--url", url)
    assert isinstance(result.exception, LiveServiceError)
    assert str(result.exception).endswith("give its API key with --api-key or VLM2REC_ADMIN_KEYS")
