"""Composes the commands and prints an error of a package as one line.

Command modules import nothing heavy at module level, so `vlm2rec --help` and `vlm2rec serve` never load torch.
"""

import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

import typer
from rich.console import Console

from cli.capacity import plan
from cli.errors import CliError
from cli.offline import demo, encoder, evaluate, export_towers, fit, reindex, report, train
from cli.offline.data import check, demo_data, fetch_images, import_data
from cli.offline.retraining import retrain
from cli.online import backup as backup_commands
from cli.online import events as event_commands
from cli.online import experiments, serve, verify
from cli.online import index as index_commands
from demo.errors import DemoError
from index.errors import ExportBusy, IndexingError
from service.errors import ServiceError
from training.errors import RunBusy, TrainingError

_EXIT_BAD_INPUT = 2
_EXIT_BUSY = 75  # EX_TEMPFAIL
# In the words of torch, of C++, of the loader and of Python; the last also where a limit on threads is reached.
_NO_MEMORY = "allocate memory|bad_alloc|failed to map segment|can't start new thread"

app = typer.Typer(
    name="vlm2rec",
    help="Multimodal sequential recommendations: train, index and serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Import, check or make a data set.", no_args_is_help=True)
data_app.command("check")(check.check)
data_app.command("import")(import_data.import_data)
data_app.command("fetch-images")(fetch_images.fetch_images)
data_app.command("make-demo")(demo_data.make_demo)

app.command("demo", rich_help_panel="Start here")(demo.demo)
app.command("fit", rich_help_panel="Start here")(fit.fit)
app.command("plan", rich_help_panel="Start here")(plan.plan)
app.add_typer(data_app, name="data", rich_help_panel="Offline")
app.command("train", rich_help_panel="Offline")(train.train)
app.command("embed", rich_help_panel="Offline")(train.embed)
app.command("export-towers", rich_help_panel="Offline")(export_towers.export_towers)
app.command("fit-encoder", rich_help_panel="Offline")(encoder.fit_encoder)
app.command("evaluate", rich_help_panel="Offline")(evaluate.evaluate)
app.command("report", rich_help_panel="Offline")(report.report)
app.command("retrain", rich_help_panel="Offline")(retrain.retrain)
app.command("reindex", rich_help_panel="Offline")(reindex.reindex)
app.add_typer(
    index_commands.app,
    name="index",
    help="Build, publish and inspect bundles.",
    rich_help_panel="Online",
    no_args_is_help=True,
)
app.add_typer(
    event_commands.app,
    name="events",
    help="Export and compact the events of a service.",
    rich_help_panel="Online",
    no_args_is_help=True,
)
app.add_typer(
    backup_commands.app,
    name="backup",
    help="Back up and restore histories, operator state and bundles.",
    rich_help_panel="Online",
    no_args_is_help=True,
)
app.add_typer(
    experiments.app,
    name="experiments",
    help="Look at experiments of a live service.",
    rich_help_panel="Online",
    no_args_is_help=True,
)
app.command("serve", rich_help_panel="Online")(serve.serve)
app.command("verify", rich_help_panel="Online")(verify.verify)


def run() -> None:
    """Run the command line; an error of a package becomes one line and an exit code, never a traceback."""
    show_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Print a warning for users, such as a renamed key, as one line, without the line of code that gave it."""
        if issubclass(category, FutureWarning):
            _print(f"warning: {message}", "yellow")
        else:
            show_others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    _escape_what_cannot_be_encoded()
    _check_words(sys.argv[1:])
    try:
        app()
    except (IndexingError, TrainingError, ServiceError, DemoError, CliError) as error:
        _fail(str(error), _EXIT_BUSY if isinstance(error, RunBusy | ExportBusy) else _EXIT_BAD_INPUT)
    except OSError as error:
        from index.machine.disk import describe_file_error

        if error.errno == errno.ENOMEM:
            _fail_for_memory(error)
        described = describe_file_error(error)
        if described is None:
            raise
        _fail(described)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not isinstance(error, MemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        _fail_for_memory(error)


def _escape_what_cannot_be_encoded() -> None:
    """Print an escape where the encoding of the output lacks a character; an error would end a job of hours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_words(words: Sequence[str]) -> None:
    """Refuse arguments that no command can use: an empty one would mean the working directory."""
    for word in words:
        if not word or re.fullmatch("--[a-z-]+=", word):
            name = word.rstrip("=") or "an argument"
            _fail(f"{name}: must not be empty; give a value, a variable of the shell may be unset")
        try:
            word.encode()
        except UnicodeEncodeError:
            _fail(f"{os.fsencode(word)!r}: an argument must be UTF-8; give the path another name")


def _fail_for_memory(error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or "an allocation failed"
    limits = "ulimit -v, the control group"
    if "new thread" in reason:
        limits = f"ulimit -u, {limits}"
    _fail(
        f"not enough memory: {reason}. Raise the limit ({limits}), or use a machine with more; then start the same "
        "command again"
    )


def _fail(message: str, code: int = _EXIT_BAD_INPUT) -> NoReturn:
    _print(f"error: {message}", "red")
    sys.exit(code)


def _print(line: str, style: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False, style=style)
