"""Serves recommendations from the current bundle of a registry (`vlm2rec serve`)."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.code_loading import loading_code

_PANEL = "Redis"


def serve(
    registry: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory of published bundles.", show_default="VLM2REC_REGISTRY"),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of the Redis with the histories.",
            show_default="VLM2REC_REDIS_URL",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    embedded_redis: Annotated[
        bool,
        typer.Option(
            "--embedded-redis",
            help="Start a Redis for this service, and end it with the service.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    redis_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory in which the embedded Redis stores histories; without it they are lost at the end.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.", show_default="8000")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes (Linux).", show_default="one per core and 256 MiB, 1 on CUDA"),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
) -> None:
    """Serve the current bundle of a registry over HTTP.

    Every option has a variable too (VLM2REC_PORT …); an option wins over its variable. Ctrl-C, SIGTERM or SIGHUP ends
    the service after it has answered the requests in progress. While Redis is down it goes on serving: its answers then
    lack the users' histories, and say so.
    """
    if embedded_redis and redis is not None:
        raise typer.BadParameter("give --redis URL or --embedded-redis, not both")
    if redis_dir is not None and not embedded_redis:
        raise typer.BadParameter("--redis-dir needs --embedded-redis")
    # Requests run in parallel: a BLAS that spreads each small product over all cores only makes them wait. These
    # variables take effect only before numpy is loaded; a value that is already set stays.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    with loading_code():
        from demo.embedded_redis import EmbeddedRedis
        from service.settings.load import load_settings
        from service.workers.supervisor import serve as run

    console = Console(soft_wrap=True, highlight=False)
    defaults: dict[str, Path] = {}
    with ExitStack() as stack:
        if embedded_redis:
            server = stack.enter_context(EmbeddedRedis(redis_dir, append_only=redis_dir is not None))
            redis = server.url
            # No other service uses this Redis, so the copy of its operator state is kept and deleted with it.
            defaults["directives_file"] = server.directory / "directives.json"
        options = {"redis_url": redis, "host": host, "port": port, "workers": workers, "log_level": log_level}
        settings = load_settings(defaults, registry=registry, **options)
        run(settings, announce=lambda url: console.print(f"vlm2rec serves {url}   (API: {url}/docs)"))
