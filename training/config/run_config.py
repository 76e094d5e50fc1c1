"""Parses the configuration of a run, a TOML file or a preset, into frozen values.

Sections: ``[vlm]`` (:mod:`training.config.vlm_config`), ``[loss]``, ``[train]``, ``[embed]``, ``[encoder]``. A
file may name a preset to start from (``preset = "tiny"`` at its top); a key that it does not set keeps the preset's
value.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from training.config.encoder_config import EncoderConfig
from training.config.presets import PRESETS
from training.config.renamed_keys import rename_former_keys
from training.config.types import CHUNK_PATCHES, Count, Fusion, GapKind, WeakBy, WpclKind
from training.config.vlm_config import Section, VlmConfig
from training.data.tables.file_kind import encoding_fault, foreign_kind
from training.errors import ConfigError


class LossConfig(Section):
    """Terms of the loss (docs/method.md, "Our reading").

    Attributes:
        temperature: τ, divides the similarities.
        fusion: how the two modalities form one similarity.
        wpcl_weight: μ, weight of WPCL; 0 switches it off.
        crtr_weight: λ, weight of CRTR; 0 switches it off.
        unimodal_weight: ν, weight of an InfoNCE of each modality alone; 0 switches it off.
        modality_dropout: share of the histories with both modalities of which the fused loss gets only one.
        alpha: α, slope of β = 1 + α g.
        wpcl_kind: ``margin`` weighs all negatives of a row by β; ``per_negative`` those that the weak modality confuses
            with the next item and the strong one does not; ``hard_negatives`` those that are nearest.
        hardness: η of ``hard_negatives``.
        negative_shift: γ, moves the negatives of the fused loss from the strong modality to the weak one; 0 switches it
            off. Needs ``gap_kind`` ``one_sided``, ``own_scale`` or ``auc``, or ``weak_by = "row"``.
        weak_by: choose the weak modality by the moving average of the confidences over batches, row by row, or by the
            moving average of the AUC, which does not depend on the scale of the similarities.
        gap_kind: g as a log-ratio clipped at 4, as a difference of probabilities, as the log-ratio of the strong to the
            weak modality alone (``one_sided``), the same with similarities divided by their own spread
            (``own_scale``), or as a difference of AUC.
        relation_temperature: τ_r of CRTR.
        relation_positive: CRTR compares the next item too, beside the negatives.
        detach_strong: no gradient of CRTR flows into the strong modality.
        confidence_gap_decay: weight of the old value in the moving average of the confidence gap.
    """

    temperature: float = Field(default=0.1, ge=1e-4, le=100)
    fusion: Fusion = "concat"
    wpcl_weight: float = Field(default=0.5, ge=0)
    crtr_weight: float = Field(default=0.1, ge=0)
    unimodal_weight: float = Field(default=0.0, ge=0)
    modality_dropout: float = Field(default=0.0, ge=0, le=1)
    alpha: float = Field(default=1.0, ge=0)
    wpcl_kind: WpclKind = "margin"
    hardness: float = Field(default=1.0, ge=0, le=100)
    negative_shift: float = Field(default=0.0, ge=0, le=0.25)
    weak_by: WeakBy = "ema"
    gap_kind: GapKind = "log_ratio"
    relation_temperature: float = Field(default=1.0, ge=1e-3, le=1_000)
    relation_positive: bool = False
    detach_strong: bool = False
    confidence_gap_decay: float = Field(default=0.9, ge=0, lt=1)


class TrainConfig(Section):
    """Contrastive fine-tuning.

    Attributes:
        steps: optimiser steps.
        batch_size: windows of users' events a step, of all processes together.
        pairs: ``every`` reads each event of a window after its first as a next item, in one pass over the window's
            prompt; ``last`` its last event alone, so that a window is one pair.
        max_history: longest history; the newest items are read.
        modalities: modalities to train; a single one for the single-modality reference.
        learning_rate: peak of AdamW's rate, after a linear warm-up.
        vision_rate: factor on the rate for the vision tower.
        text_layers_rate: factor on the rate for the layers of ``vlm.towers.trained_text_layers``.
        adapters_rate: factor on the rate for the adapters of ``vlm.adapters``.
        weight_decay: of AdamW; not on biases and norms.
        warmup: share of the steps.
        decay: shape of the learning rate after the warm-up.
        gradient_clip: largest norm of the gradient.
        precision: autocast dtype.
        chunk_tokens: prompts are encoded in groups of similar length of at most this many tokens.
        chunk_patches: pictures are encoded in groups of at most this many patches.
        cached_gradients: keep the activations of one group instead of the whole batch's (GradCache), so that memory
            does not depend on ``batch_size``; costs a second forward pass.
        shard: every process holds a part of each weight, of its gradient and of its moments (FSDP2), for models that do
            not fit a card; needs several processes, ``cached_gradients`` and a run directory that all of them share.
        picture_memory_mib: memory for preprocessed pictures.
        workers: threads that read pictures and assemble the next batches; 0 = the training thread does both.
        validate_every: steps between two validations (direct ranking of held-out events); 0 = none.
        validation_users: largest number of users in a validation.
        validation_items: largest number of ranked items, the targets included.
        patience: training ends after this many validations in a row without improvement, and the best weights are kept;
            0 = all steps run and the last weights are kept.
        log_every: steps between two lines of ``log.jsonl``.
        diagnose_every: steps between two diagnoses of the modalities; 0 = none.
        checkpoint_steps: steps between two checkpoints.
        checkpoint_seconds: a checkpoint is also written after this many seconds.
        keep_checkpoints: number of newest checkpoints that are kept.
        seed: of the initial weights, the order of the pairs and dropout.
    """

    steps: int = Field(default=300, ge=1, le=10_000_000)
    batch_size: int = Field(default=64, ge=2, le=65_536)
    pairs: Literal["every", "last"] = "every"
    max_history: int = Field(default=10, ge=1, le=512)
    modalities: tuple[Literal["text", "image"], ...] = ("text", "image")
    learning_rate: float = Field(default=7e-4, gt=0, le=1)
    vision_rate: float = Field(default=1.0, gt=0, le=100)
    text_layers_rate: float = Field(default=0.03, gt=0, le=100)
    adapters_rate: float = Field(default=0.1, gt=0, le=100)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["no", "bf16"] = "no"
    chunk_tokens: Count = Field(default=16_384, ge=64)
    chunk_patches: Count = Field(default=CHUNK_PATCHES, ge=16)
    cached_gradients: bool = False
    shard: bool = False
    picture_memory_mib: Count = Field(default=1_024, ge=0)
    workers: int = Field(default=1, ge=0, le=64)
    validate_every: Count = Field(default=0, ge=0)
    validation_users: Count = Field(default=1_000, ge=1)
    validation_items: Count = Field(default=10_000, ge=2)
    patience: Count = Field(default=0, ge=0)
    log_every: Count = Field(default=10, ge=1)
    diagnose_every: Count = Field(default=10, ge=0)
    checkpoint_steps: Count = Field(default=200, ge=1)
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    keep_checkpoints: Count = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _some_modality(self) -> "TrainConfig":
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities must name text, image or both once, got {list(self.modalities)}")
        return self

    @model_validator(mode="after")
    def _something_to_wait_for(self) -> "TrainConfig":
        if self.patience and not self.validate_every:
            raise ValueError(f"patience needs validate_every, got {self.patience} and 0")
        return self

    @model_validator(mode="after")
    def _equal_passes(self) -> "TrainConfig":
        if self.shard and not self.cached_gradients:
            raise ValueError(
                "shard needs cached_gradients = true, so that all processes encode equally many groups, got false"
            )
        return self


class EmbedConfig(Section):
    """Embedding of the whole catalogue.

    Attributes:
        shard_items: items of a shard, the unit that is written and resumed.
        batch_items: items encoded at a time.
    """

    shard_items: Count = Field(default=4_096, ge=1)
    batch_items: Count = Field(default=256, ge=1)


class RunConfig(Section):
    """The configuration of a run."""

    vlm: VlmConfig = VlmConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    encoder: EncoderConfig = EncoderConfig.model_validate({})

    @model_validator(mode="after")
    def _sharded_family(self) -> "RunConfig":
        if self.train.shard and self.vlm.encodes_items:
            raise ValueError(
                'train.shard is for vlm.family = "qwen-vl"; heads on a frozen encoder fit any device; set it to false, '
                f'got family = "{self.vlm.family}"'
            )
        return self


CONFIG_FILE = "config.toml"
"""The configuration of a run, in the run directory."""


def load_config(
    path: Path | None = None, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a configuration.

    Args:
        path: TOML file; None for the preset alone.
        preset: name of a preset, which the file's keys override; default the file's own ``preset``, else ``tiny``.
        overrides: dotted key → value, e.g. ``{"train.steps": 100}``; they take precedence over file and preset.

    Raises:
        ConfigError: the file is unreadable, a preset or key is unknown, or a value breaks its rule.
    """
    return _load(path, preset, overrides or {}, warn=True)


def load_run_config(run: Path) -> RunConfig:
    """Read the configuration that a run directory stores; former names of keys are accepted without a warning.

    Args:
        run: the run directory; without a stored configuration the preset ``tiny`` is used.

    Raises:
        ConfigError: the file is unreadable, a preset or key is unknown, or a value breaks its rule.
    """
    path = run / CONFIG_FILE
    return _load(path if path.is_file() else None, None, {}, warn=False)


def check_new_training(config: RunConfig) -> None:
    """Refuse what a run that is trained already may have, and a new training must not.

    Raises:
        ConfigError: the gap also shifts negatives where the weak modality is ahead.
    """
    loss = config.loss
    if loss.negative_shift and loss.gap_kind in {"log_ratio", "probability"} and loss.weak_by != "row":
        raise ConfigError(
            "loss.negative_shift needs a gap that is 0 in rows where the weak modality is ahead, got "
            f'gap_kind = "{loss.gap_kind}" with weak_by = "{loss.weak_by}"; set loss.gap_kind to "one_sided", '
            '"own_scale" or "auc", or loss.weak_by to "row"'
        )


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML with every value; :func:`load_config` reads it back unchanged."""
    lines: list[str] = []
    _write_table(lines, "", config.model_dump(mode="json", exclude_none=True))
    return "\n".join(lines).lstrip("\n") + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        kind = foreign_kind(path)
        if kind is not None:
            raise ConfigError(f"{path}: a configuration must be TOML in UTF-8, this {kind}")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}; check --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: a configuration {encoding_fault(path)}") from error
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise ConfigError(f"{path}: a configuration must be TOML in UTF-8: {error}") from error


def _load(path: Path | None, preset: str | None, overrides: Mapping[str, Any], *, warn: bool) -> RunConfig:
    where = "configuration" if path is None else str(path)
    written = {} if path is None else _read(path)
    named = written.pop("preset", None)
    name = preset or named or "tiny"
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    given: dict[str, Any] = {}
    for key, value in overrides.items():
        *sections, last = key.split(".")
        nested: dict[str, Any] = {last: value}
        for section in reversed(sections):
            nested = {section: nested}
        given = _merged(given, nested)
    for values in (written, given):
        rename_former_keys(values, where, warn=warn)
    own = _merged(written, given)
    try:
        return RunConfig.model_validate(_merged(_preset_for(name, own), own))
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error


def _preset_for(name: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The preset, without its revision where another model is named: a commit belongs to one model alone."""
    preset, vlm = PRESETS[name], own.get("vlm")
    below = preset.get("vlm", {})
    if not isinstance(vlm, Mapping) or vlm.get("model", below.get("model")) == below.get("model"):
        return preset
    return {**preset, "vlm": {key: value for key, value in below.items() if key != "revision"}}


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested tables; ``high`` takes precedence."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both and isinstance(below, Mapping) else value
    return merged


def _explain(error: ValidationError, where: str) -> str:
    """One line per broken rule: section.key, the rule, the value received."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; check its spelling and section")
        else:
            shown = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
            lines.append(f"{key}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{shown}")
    return f"{where}: " + "; ".join(lines)


def _write_table(lines: list[str], name: str, table: Mapping[str, Any]) -> None:
    scalars = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if name and scalars:
        lines.append(f"\n[{name}]")
    lines.extend(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in scalars.items())
    for key, value in table.items():
        if isinstance(value, Mapping):
            _write_table(lines, f"{name}.{key}" if name else key, value)
