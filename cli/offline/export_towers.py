"""`vlm2rec export-towers`: writes the text and image towers of a trained run as ONNX files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.offline.progress import counted_progress
from cli.offline.threads import ThreadsOption, set_torch_threads

if TYPE_CHECKING:
    from rich.progress import TaskID

_MEGABYTE = 1e6
_console = Console(highlight=False, soft_wrap=True)


def export_towers(
    run: Annotated[Path, typer.Option("--run", help="The run directory, with a trained model.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", help="The directory to make; it must not exist.", metavar="DIR")],
    threads: ThreadsOption = None,
) -> None:
    """Write a trained run as one ONNX file a modality, to embed items outside of vlm2rec.

    For runs of vlm.family "dual-encoder" and "towers". Each file has the encoder and its head, and gives the vectors
    that `vlm2rec embed` stores. Beside them lie tokenizer, image processor, and manifest.json with hashes, licences and
    every step of the preparation. Each file is compared with PyTorch first.
    """
    from index.machine.outputs import check_directory_writable
    from training.backbones.export.job import export_towers as export
    from training.backbones.trained_model import TrainedModel
    from training.runs.lock import run_lock

    model = TrainedModel.of(run)
    check_directory_writable(out.parent)
    set_torch_threads(threads)
    with run_lock(run, shared=True), counted_progress() as bar:
        task: TaskID = bar.add_task("exporting")

        def report(step: str, done: int, every: int) -> None:
            bar.update(task, description=step, completed=done, total=every)

        exported = export(model, out, progress=report)
    licences = ", ".join(model.provenance["licences"])
    _console.print(f"licence of the pretrained model: {licences}", markup=False)
    for modality, tower in exported.items():
        parity = tower.parity
        _console.print(
            f"{modality}: {tower.file}, {tower.size / _MEGABYTE:,.1f} MB; against PyTorch in {parity.cases} batches: "
            f"largest difference {parity.difference:.1g}, smallest cosine {parity.cosine:.6f}",
            markup=False,
        )
    _console.print(f"exported: {out}", markup=False)
