"""`vlm2rec fit`: from a data set to everything that the index needs, without a vision-language model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.offline.encoder import ConfigOption, InteractionsOption, SeedOption, chosen_config, fit_and_print
from cli.offline.left_out import print_left_out
from cli.offline.progress import counted_progress
from cli.offline.threads import ThreadsOption, set_torch_threads
from cli.offline.train import print_baseline

_RUNS = Path("runs")

_console = Console(highlight=False, soft_wrap=True)


def fit(
    data: Annotated[str, typer.Argument(help="The data set: a directory, or s3://bucket/prefix.", metavar="DATA")],
    run: Annotated[
        Path | None, typer.Option("--run", help="The run directory; default runs/NAME of DATA.", metavar="RUN")
    ] = None,
    interactions: InteractionsOption = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Embed the catalogue without a vision-language model and fit everything that serves: minutes on two cores.

    `vlm2rec embed --no-vlm` and `vlm2rec fit-encoder` in one command: TF-IDF and picture statistics, item slots,
    sequence encoder, item-to-item lists, refit and thumbnails. Resumes after an interruption; texts and pictures that
    did not change are not embedded again.
    """
    from index.machine.outputs import check_directory_writable
    from training.data.data_place import DataPlace
    from training.data.dataset import load_dataset
    from training.embedding.baseline_job import baseline_embeddings, refuse_vlm_embeddings
    from training.encoder.encoder_files import ENCODER_DIRECTORY
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    shop = DataPlace.open(data)
    place = run or _RUNS / shop.short_name
    check_directory_writable(place, place / "embeddings", place / ENCODER_DIRECTORY)
    chosen = chosen_config(place, config, seed)
    dataset = load_dataset(shop, interactions=interactions)
    print_left_out(dataset, _console)
    set_torch_threads(threads)
    with writing_run(place):
        place.mkdir(parents=True, exist_ok=True)
        with run_lock(place):
            refuse_vlm_embeddings(place)
            with counted_progress() as bar:
                embeddings, made = baseline_embeddings(dataset, place / "embeddings", again=False, progress=bar)
            if made:
                print_baseline(embeddings, dataset)
            fit_and_print(dataset, embeddings, chosen, place)
    _console.print(f"next: vlm2rec index build --run {place} --publish bundles/", markup=False)
