"""The vision-language model of a retraining: the run's own embeds new items, or a new one is trained."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cli.offline.progress import counted_progress
from cli.offline.train import embed_items, print_baseline, train_model
from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from training.config.run_config import RunConfig
    from training.data.dataset import Dataset
    from training.embedding.store import Embeddings

_console = Console(highlight=False, soft_wrap=True)


def training_config(place: Path, config: Path | None, seed: int | None) -> "RunConfig":
    """The configuration by which a model is trained: a file, else RUN/config.toml.

    Args:
        place: the run directory.
        config: the file; None: RUN/config.toml.
        seed: instead of encoder.seed; None: as configured.

    Raises:
        ConfigError: there is no file, or it cannot be read or breaks a rule.
    """
    from training.config.run_config import CONFIG_FILE, check_new_training, load_config
    from training.errors import ConfigError

    path = config or place / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{place}: --train needs the configuration of a vision-language model; name a file by --config, or run "
            "`vlm2rec train` first"
        )
    chosen = load_config(path, overrides={} if seed is None else {"encoder.seed": seed})
    if config is not None:  # that of the run has been trained with before
        check_new_training(chosen)
    return chosen


def run_embeddings(place: Path, dataset: "Dataset") -> "Embeddings":
    """The embeddings of a run, with new and changed items embedded by its model; without a model they are made so.

    A run whose embeddings were made without its model keeps to that.

    Args:
        place: the run directory.
        dataset: the catalogue.

    Raises:
        TrainingError: the embeddings of the run cannot be read, the model cannot be loaded, or no item can be embedded.
    """
    from training.backbones.identity import KIND
    from training.backbones.trained_model import EMBEDDINGS_DIRECTORY, TrainedModel
    from training.embedding.baseline_job import baseline_embeddings, existing_embeddings, has_trained_model

    found = existing_embeddings(place / EMBEDDINGS_DIRECTORY)
    if has_trained_model(place) and (found is None or found.model.get("kind") == KIND):
        return embed_items(dataset, TrainedModel.of(place), trust_times=False)
    if found is not None and found.model.get("kind") == KIND:
        return found
    with counted_progress() as bar:
        embeddings, made = baseline_embeddings(dataset, place / EMBEDDINGS_DIRECTORY, again=False, progress=bar)
    if made:
        print_baseline(embeddings, dataset)
    return embeddings


def train_and_embed(made: Path, config: "RunConfig", before: "Dataset", everything: "Dataset") -> "Embeddings":
    """Train a model aside and embed the catalogue with it; resumes what an earlier job began.

    A finished model is used also if the catalogue has changed since. An unfinished training of other items or texts, or
    of an earlier version, begins anew.

    Args:
        made: run directory of the job, for what it makes.
        config: of the training.
        before: catalogue, and the events before the cut-off, so that those after it measure the model too.
        everything: the same catalogue with every event.

    Raises:
        TrainingError: the model cannot be trained.
    """
    from training.backbones.trained_model import TRAINING_DIRECTORY, TrainedModel
    from training.config.run_config import CONFIG_FILE, to_toml

    made.mkdir(exist_ok=True)
    if not (made / CONFIG_FILE).exists():
        replace_text(made / CONFIG_FILE, to_toml(config))
    directory = made / TRAINING_DIRECTORY
    if not _is_trained(made):
        if _is_of_other_data(directory, config, before):
            _console.print("the interrupted training was of another catalogue: training begins anew")
            shutil.rmtree(directory)
        train_model(before, config, directory, resume=True)
    return embed_items(everything, TrainedModel.of(made), trust_times=False)


def _is_trained(made: Path) -> bool:
    """Whether a finished model can be used; one that this version cannot use is deleted."""
    from training.backbones.identity import MODEL_DIRECTORY
    from training.backbones.trained_model import TRAINING_DIRECTORY, TrainedModel
    from training.errors import BackboneError

    if not (made / TRAINING_DIRECTORY / MODEL_DIRECTORY).is_dir():
        return False
    try:
        TrainedModel.of(made)
    except BackboneError as error:
        _console.print(f"the model of the interrupted job cannot be used: {error}", markup=False)
        shutil.rmtree(made / TRAINING_DIRECTORY)
        return False
    return True


def _is_of_other_data(directory: Path, config: "RunConfig", before: "Dataset") -> bool:
    """Whether a training was begun with data or settings whose result would be another one."""
    from training.encoder.job import split_dataset
    from training.finetune.run_directory import RunDirectory, run_fingerprint

    mark = RunDirectory(directory).fingerprint
    if not mark.is_file():
        return directory.exists()
    parts = split_dataset(before, config.encoder.cold_items).parts
    return mark.read_text(encoding="utf-8").strip() != run_fingerprint(before, parts.train, parts.validation, config)
