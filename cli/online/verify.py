"""Checks that PyTorch, ONNX and a live service give the same answers (`vlm2rec verify`)."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.online.published import published_at

if TYPE_CHECKING:
    from cli.online.parity_check import ParityCheck
    from index.bundle.bundle import Bundle
    from index.search.parity import ParityResult

_EXIT_DIFFERENT = 1
_SHOWN = 10

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


def verify(
    url: Annotated[str, typer.Argument(help="The service, as in http://127.0.0.1:8000.", metavar="URL")],
    registry: Annotated[
        str | None, typer.Option(metavar="DIR", help="Registry that the service's bundle is published in.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="That bundle's directory, in place of --registry.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory of its encoder: compare PyTorch too. Needs the extra 'train'.")
    ] = None,
    histories: Annotated[int, typer.Option(min=1, help="Probes of the bundle to ask with, spread evenly.")] = 100,
    item: Annotated[
        list[str] | None, typer.Option(help="Ask with this history too: one --item an item, oldest first.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, max=1000, help="Items of each answer.")] = 20,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference of scores that is none.")] = 1e-4,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLM2REC_API_KEYS", help="API key of the service; of several the first.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask PyTorch, ONNX and a live service with the same histories and compare items and scores.

    Exit codes: 0 they agree, 1 they differ, 2 they cannot be compared (another bundle is live, nothing answers …).
    """
    from rich.progress import track

    from cli.online.live_service import LiveService
    from cli.online.parity_check import ParityCheck

    if (registry is None) == (bundle is None):
        raise typer.BadParameter("give --registry or --bundle, exactly one of them")
    key = api_key.partition(",")[0].strip() or None if api_key else None
    with closing(LiveService(url, key, timeout_s=timeout)) as live:
        loaded = _load(live.bundle_id(), registry, bundle)
        check = ParityCheck(loaded, live, _torch(run, loaded), k=k, tolerance=tolerance)
        asked = check.histories(histories, item or [])
        for history in track(asked, "comparing", console=_err, transient=True):
            check.ask(history)
    if as_json:
        _out.print_json(json.dumps({"bundle": loaded.id, "url": url, "k": k, "pairs": _plain(check)}))
    else:
        _show(loaded, check)
    if not all(pair.agrees for pair in check.pairs):
        raise typer.Exit(_EXIT_DIFFERENT)


def _load(live_id: str, registry: str | None, bundle: Path | None) -> "Bundle":
    """The bundle that the service answers with, from the registry or from its directory."""
    from cli.errors import LiveServiceError
    from index.bundle.bundle import Bundle
    from index.bundle.manifest import Manifest
    from index.errors import BundleNotFound

    if bundle is None:
        try:
            bundle = published_at(registry or "").path(live_id)
        except BundleNotFound as error:
            raise LiveServiceError(
                f"the service answers with bundle {live_id}, which {registry} does not have; give its registry"
            ) from error
    elif bundle.is_dir() and (given := Manifest.read(bundle).id) != live_id:
        raise LiveServiceError(f"the service answers with bundle {live_id}, {bundle} is {given}; give that one")
    return Bundle.load(bundle)


def _torch(run: Path | None, bundle: "Bundle") -> Any:  # noqa: ANN401 - torch is imported only if it is asked for
    """The encoder of a run under PyTorch; None if none is asked for."""
    if run is None:
        return None
    from cli.errors import LiveServiceError
    from index.bundle.manifest import ENCODER_FILE

    try:
        from training.encoder.pytorch import TorchEncoder
    except ImportError as error:
        raise LiveServiceError(
            f"--run needs PyTorch ({error}); install the extra 'train', or leave --run away"
        ) from error
    encoder = TorchEncoder(run)
    if encoder.onnx_sha256 != bundle.manifest.files[ENCODER_FILE].sha256:
        raise LiveServiceError(
            f"{run} holds another encoder than bundle {bundle.id}; give the run that it was built from"
        )
    return encoder


def _plain(check: "ParityCheck") -> list[dict[str, Any]]:
    return [asdict(pair) | {"agrees": pair.agrees} for pair in check.pairs]


def _show(bundle: "Bundle", check: "ParityCheck") -> None:
    table = Table(title=f"bundle {bundle.id}", title_justify="left")
    for heading, justify in (("pair", "left"), ("histories", "right"), ("identical", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("largest difference", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for pair in check.pairs:
        verdict = "agree" if pair.agrees else f"{len(pair.wrong)} differ"
        difference = f"{pair.difference:.2g} of {pair.tolerance:g}"
        table.add_row(pair.name, f"{pair.histories:,}", f"{pair.identical:,}", difference, verdict)
    _out.print(table)
    for pair in check.pairs:
        _show_wrong(pair)


def _show_wrong(pair: "ParityResult") -> None:
    for line in pair.wrong[:_SHOWN]:
        _err.print(f"{pair.name}: {line}", markup=False, style="red")
    if len(pair.wrong) > _SHOWN:
        _err.print(f"{pair.name}: and {len(pair.wrong) - _SHOWN} more", markup=False, style="red")
