"""`vlm2rec demo`: builds the demo catalogue with the ordinary commands and serves it."""

import csv
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import demo as demo_package
from demo.bound_process import bound_command
from demo.errors import DemoError
from index.machine.text_files import replace_text

_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_DEMO_USERS = 20
_CONFIG = Path(demo_package.__file__).parent / "demo.toml"

_console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Stage:
    """One step of the build: a `vlm2rec` command line, skipped if it already ran with the same arguments.

    Attributes:
        name: title on the terminal and key in the record.
        arguments: words after `vlm2rec`.
    """

    name: str
    arguments: tuple[str, ...]


class StageRecord:
    """The finished stages, in one JSON file; a changed stage invalidates itself and all later ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: list[list[str]] = []
        try:
            done = json.loads(path.read_text())["done"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # no usable record: build everything again
        if isinstance(done, list):
            self._done = done

    def has(self, position: int, stage: Stage) -> bool:
        """Whether the stage at this position ran with these arguments and no earlier stage changed."""
        return len(self._done) > position and self._done[position] == [stage.name, *stage.arguments]

    def add(self, position: int, stage: Stage) -> None:
        """Record a stage as done and drop all later ones."""
        self._done = [*self._done[:position], [stage.name, *stage.arguments]]
        replace_text(self._path, json.dumps({"done": self._done}, indent=1) + "\n")


def demo(
    directory: Annotated[Path, typer.Argument(help="Directory of the data, the run and the bundles.")] = Path(".demo"),
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 8000,
    no_vlm: Annotated[
        bool, typer.Option("--no-vlm", help="Use TF-IDF and picture features instead of training a VLM.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build everything again.")] = False,
    exit_after_check: Annotated[
        bool, typer.Option("--exit-after-check", help="Send one request, print the answer and stop.")
    ] = False,
) -> None:
    """Build the demo catalogue, train on it, index it and serve it.

    Finished stages are reused, so a second start takes seconds. Ctrl-C stops the service and its Redis.
    """
    from index.machine.disk import translate_disk_errors

    _check_port(host, port)
    with translate_disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        record_path = directory / ("stages-no-vlm.json" if no_vlm else "stages.json")
        if rebuild:
            # Remove the record first: a partly removed run is then built again, never reused.
            record_path.unlink(missing_ok=True)
            shutil.rmtree(_run_directory(directory, no_vlm=no_vlm), ignore_errors=True)
        _build(_stages(directory, no_vlm=no_vlm), StageRecord(record_path))
    _serve(directory, host, port, no_vlm=no_vlm, exit_after_check=exit_after_check)


def _stages(directory: Path, *, no_vlm: bool) -> list[Stage]:
    data, run = str(directory / "data"), str(_run_directory(directory, no_vlm=no_vlm))
    registry, config = _registry(directory, no_vlm=no_vlm), str(_CONFIG)
    train = [Stage("train the vision-language model", ("train", data, "--run", run, "--config", config, "--resume"))]
    return [
        Stage("make the catalogue", ("data", "make-demo", data)),
        Stage("check the catalogue", ("data", "check", data)),
        *([] if no_vlm else train),
        Stage("embed the items", ("embed", data, "--run", run, *(["--no-vlm"] if no_vlm else []))),
        Stage("fit the sequence encoder", ("fit-encoder", data, "--run", run, "--config", config)),
        Stage(
            "evaluate on fresh users",
            (
                "evaluate",
                data,
                "--run",
                run,
                "--users",
                f"{data}/evaluation.parquet",
                "--json",
                f"{run}/evaluation.json",
                "--no-direct",  # encoding 20,000 histories with two models takes minutes
            ),
        ),
        Stage("build and publish the bundle", ("index", "build", "--run", run, "--publish", str(registry))),
    ]


def _run_directory(directory: Path, *, no_vlm: bool) -> Path:
    return directory / ("run-no-vlm" if no_vlm else "run")


def _registry(directory: Path, *, no_vlm: bool) -> Path:
    return directory / ("bundles-no-vlm" if no_vlm else "bundles")


def _build(stages: list[Stage], record: StageRecord) -> None:
    started = time.monotonic()
    for position, stage in enumerate(stages):
        title = f"[{position + 1}/{len(stages)}] {stage.name}"
        if record.has(position, stage):
            _console.print(f"{title}: already done", style="dim")
            continue
        _console.print(title, style="bold")
        _console.print(f"  $ vlm2rec {shlex.join(stage.arguments)}", style="dim", markup=False)
        _run(stage)
        record.add(position, stage)
        _console.print(f"  {time.monotonic() - started:.0f} s so far", style="dim")


def _run(stage: Stage) -> None:
    command = bound_command([sys.executable, "-m", "cli.main", *stage.arguments])
    code = subprocess.run(command, check=False).returncode
    if code in {-signal.SIGINT, 130}:
        raise KeyboardInterrupt
    if code != 0:
        raise DemoError(
            f"the step {stage.name!r} ended with exit code {code}; its own message is above. "
            "Run the same command again to continue, or with --rebuild to start over"
        )


def _serve(directory: Path, host: str, port: int, *, no_vlm: bool, exit_after_check: bool) -> None:
    command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(_registry(directory, no_vlm=no_vlm))]
    command += ["--embedded-redis", "--redis-dir", str(directory / "redis")]
    command += ["--host", host, "--port", str(port), "--log-level", "warning"]
    # The service gets its own process group: Ctrl-C reaches only this process, which then stops the service gracefully.
    service = subprocess.Popen(bound_command(command), start_new_session=True)
    # SIGHUP: the terminal was closed, which the service does not notice. `nohup` ignores it, and it stays ignored.
    caught = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupt) for number in caught}
    try:
        everywhere = host in {"0.0.0.0", "::"}  # noqa: S104 - a comparison
        url = f"http://{'127.0.0.1' if everywhere else host}:{port}"
        _wait_until_ready(service, url)
        users = _store_histories(directory / "data", url)
        body = {"user_id": users[0], "k": 3, "explain": True, "fields": ["title"]}
        if exit_after_check:
            print(json.dumps(_post(f"{url}/recommend", body), indent=2, ensure_ascii=False))  # noqa: T201
            return
        _announce(url, users, body)
        service.wait()
        raise DemoError(f"the service stopped unexpectedly with exit code {service.returncode}; its log is above")
    except KeyboardInterrupt:
        _console.print("\nstopping the service …", style="dim")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _stop(service)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _stop(service: subprocess.Popen[bytes]) -> None:
    if service.poll() is None:
        service.send_signal(signal.SIGTERM)
        try:
            service.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def _wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise DemoError(f"the service did not start (exit code {service.returncode}); its message is above")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1.0):  # noqa: S310 - always http to the own service
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise DemoError(f"the service was not ready within {_READY_TIMEOUT_S:.0f} s; see its log above")


def _store_histories(data: Path, url: str) -> list[str]:
    """Store the histories of a few users, so that requests by user id work; repeating is harmless.

    Does not use polars: its SIGINT handler restarts system calls, so Ctrl-C would not end the wait for the service.
    """
    histories: dict[str, list[dict[str, Any]]] = {}
    with (data / "interactions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["user_id"] not in histories and len(histories) == _DEMO_USERS:
                break
            events = histories.setdefault(row["user_id"], [])
            event_id = f"demo-{row['user_id']}-{len(events)}"
            events.append({**row, "timestamp": int(row["timestamp"]), "event_id": event_id})
    _post(f"{url}/events", {"events": [event for events in histories.values() for event in events]})
    return list(histories)


def _post(url: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    request = urllib.request.Request(  # noqa: S310 - always http to the own service
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise DemoError(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from error
    except (urllib.error.URLError, OSError) as error:
        raise DemoError(f"{url} cannot be reached: {error}") from error


def _announce(url: str, users: list[str], body: dict[str, Any]) -> None:
    _console.print(f"\nvlm2rec is ready: {url}   (API: {url}/docs)", style="bold green")
    _console.print(f"Users with a history: {', '.join(users[:5])}, …", markup=False)
    _console.print("Ask for recommendations:", style="bold")
    _console.print(
        f"curl -s {url}/recommend -H 'content-type: application/json' -d '{json.dumps(body)}'\n", markup=False
    )
    _console.print("Ctrl-C stops the service and its Redis.", style="dim")


def _check_port(host: str, port: int) -> None:
    """Refuse a port in use before the build, which takes minutes."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DemoError(
                f"port {port} on {host} cannot be used ({error.strerror}); "
                "choose another with --port, or PORT=… for `make demo`"
            ) from error
