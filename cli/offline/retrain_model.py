"""The vision-language model of a retraining: the run's own embeds new items, or a new one is trained and adopted."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cli.offline.train import embed_items, embedding_progress, print_baseline, train_model

if TYPE_CHECKING:
    from training.config.run_config import RunConfig
    from training.data.dataset import Dataset
    from training.embedding.store import Embeddings

_MODEL_RUN, _REPLACED = "model-run", "replaced"
_ADOPTING, _ADOPTED = "adopting", "adopted"


def training_config(place: Path, config: Path | None, seed: int | None) -> "RunConfig":
    """The configuration by which a model is trained: a file, else RUN/config.toml.

    Args:
        place: the run directory.
        config: the file; None: RUN/config.toml.
        seed: instead of encoder.seed; None: as configured.

    Raises:
        ConfigError: there is no file, or it cannot be read or breaks a rule.
    """
    from training.config.run_config import CONFIG_FILE, load_config
    from training.errors import ConfigError

    path = config or place / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{place}: --train needs the configuration of a vision-language model; name a file by --config, or run "
            "`vlm2rec train` first"
        )
    return load_config(path, overrides={} if seed is None else {"encoder.seed": seed})


def run_embeddings(place: Path, dataset: "Dataset") -> "Embeddings":
    """The embeddings of a run, with new and changed items embedded by its model; without a model they are made so.

    Args:
        place: the run directory.
        dataset: the catalogue.

    Raises:
        TrainingError: the model cannot be loaded, or no item can be embedded.
    """
    from training.backbones.identity import KIND, MODEL_DIRECTORY
    from training.backbones.trained_model import EMBEDDINGS_DIRECTORY, TRAINING_DIRECTORY, TrainedModel
    from training.embedding.baseline_job import baseline_embeddings, existing_embeddings

    found = existing_embeddings(place / EMBEDDINGS_DIRECTORY)
    has_model = (place / TRAINING_DIRECTORY / MODEL_DIRECTORY).is_dir()
    if found is not None and found.model.get("kind") == KIND:
        return embed_items(dataset, TrainedModel.of(place), trust_times=False) if has_model else found
    with embedding_progress() as bar:
        embeddings, made = baseline_embeddings(dataset, place / EMBEDDINGS_DIRECTORY, again=False, progress=bar)
    if made:
        print_baseline(embeddings)
    return embeddings


def train_and_embed(job: Path, config: "RunConfig", before: "Dataset", everything: "Dataset") -> "Embeddings":
    """Train a model in a run of the job and embed the catalogue with it; resumes what an earlier job began.

    Args:
        job: directory of the retraining.
        config: of the training.
        before: catalogue, and the events before the cut-off, so that those after it measure the model too.
        everything: the same catalogue with every event.

    Raises:
        TrainingError: the model cannot be trained.
    """
    from training.backbones.trained_model import TRAINING_DIRECTORY, TrainedModel
    from training.config.run_config import CONFIG_FILE, to_toml

    run = job / _MODEL_RUN
    run.mkdir(exist_ok=True)
    if not (run / CONFIG_FILE).exists():
        partial = run / f"{CONFIG_FILE}.part"
        partial.write_text(to_toml(config), encoding="utf-8")
        partial.replace(run / CONFIG_FILE)
    train_model(before, config, run / TRAINING_DIRECTORY, resume=True)
    return embed_items(everything, TrainedModel.of(run), trust_times=False)


def is_adopted(job: Path, place: Path) -> bool:
    """Whether an earlier job has adopted its model; if it was killed meanwhile, that is finished now."""
    if (job / _ADOPTING).exists():
        adopt(job, place)
    return (job / _ADOPTED).exists()


def adopt(job: Path, place: Path) -> None:
    """Make the trained model and its embeddings those of the run; killed in between, the next call finishes it.

    Args:
        job: directory of the retraining, in the run directory.
        place: the run directory.
    """
    from training.backbones.trained_model import EMBEDDINGS_DIRECTORY, TRAINING_DIRECTORY
    from training.config.run_config import CONFIG_FILE

    (job / _ADOPTING).touch()
    (job / _REPLACED).mkdir(exist_ok=True)
    for name in (TRAINING_DIRECTORY, EMBEDDINGS_DIRECTORY, CONFIG_FILE):
        source, target, replaced = job / _MODEL_RUN / name, place / name, job / _REPLACED / name
        if source.exists():
            if target.exists():
                target.rename(replaced)
            source.rename(target)
    shutil.rmtree(job / _REPLACED)
    (job / _ADOPTING).rename(job / _ADOPTED)
