"""A closed loop says why it has no figures."""

from pathlib import Path

import pytest

from bench.load import closed_loop, open_loop
from tests.support.proxies.nginx import free_port


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    file = tmp_path / "bodies.jsonl"
    file.write_text('{"k": 1}\n')
    return file


def test_a_server_that_does_not_answer_is_named(bodies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)  # without wrk
    port = free_port()
    with pytest.raises(RuntimeError, match=rf"no request to /recommend on port {port} was answered in 0.1 s: Conn"):
        closed_loop.closed_loop(port, "/recommend", bodies, 2, 0.1)


def test_a_load_of_nothing_is_refused(tmp_path: Path, bodies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    empty = tmp_path / "empty"
    empty.touch()
    for file, connections, found in ((empty, 2, "0 bodies over 2"), (bodies, 0, "1 bodies over 0")):
        with pytest.raises(RuntimeError, match=found):
            closed_loop.closed_loop(1, "/recommend", file, connections, 0.1)


@pytest.mark.parametrize(
    ("rate", "seconds", "file", "message"),
    [
        ("0", "1", "bodies.jsonl", "--rate and --seconds must be above 0"),
        ("1", "0", "bodies.jsonl", "--rate and --seconds must be above 0"),
        ("1", "1", "empty", "--bodies must hold a JSON body a line"),
    ],
)
def test_an_open_loop_of_nothing_is_refused(
    bodies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rate: str,
    seconds: str,
    file: str,
    message: str,
) -> None:
    (bodies.parent / "empty").touch()
    given = ["--port", "1", "--rate", rate, "--seconds", seconds, "--bodies", str(bodies.parent / file)]
    monkeypatch.setattr("sys.argv", ["open_loop", *given])
    with pytest.raises(SystemExit):
        open_loop.main()
    assert message in capsys.readouterr().err
