"""The configuration of a run: a TOML file (or a preset) parsed once into frozen values.

Sections: ``[vlm]`` with ``[vlm.scratch]`` and ``[vlm.lora]``, ``[loss]``, ``[train]``, ``[embed]``, ``[encoder]``. A
file may name a preset to start from (``preset = "tiny"`` at its top); a key that it does not set keeps the preset's
value.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.config.encoder_config import EncoderConfig
from training.config.renamed_keys import rename_former_keys
from training.config.types import CHUNK_PATCHES, Fusion, GapKind, WeakBy
from training.data.file_kind import encoding_fault, foreign_kind
from training.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScratchConfig(_Section):
    """Shape of a Qwen2.5-VL made from scratch; read only if ``vlm.model`` is not set.

    Attributes:
        vocabulary: most tokens of the byte-level BPE that is trained on the catalogue.
        hidden_size: width of the language model and of the embeddings.
        layers: decoder layers.
        heads: attention heads; ``hidden_size`` must be a multiple of 2 · heads.
        intermediate_size: width of its MLPs.
        vision_hidden_size: width of the vision tower.
        vision_layers: its blocks.
        vision_heads: its heads; ``vision_hidden_size`` must be a multiple of 4 · heads.
        vision_intermediate_size: width of its MLPs.
        patch_size: pixels of a patch's side; 2 × 2 patches become one visual token.
        initializer_range: standard deviation of the initial weights.
    """

    vocabulary: int = Field(default=4_096, ge=300, le=200_000)
    hidden_size: int = Field(default=64, ge=16, le=8_192)
    layers: int = Field(default=2, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    intermediate_size: int = Field(default=128, ge=16, le=32_768)
    vision_hidden_size: int = Field(default=64, ge=16, le=8_192)
    vision_layers: int = Field(default=2, ge=1, le=64)
    vision_heads: int = Field(default=4, ge=1, le=64)
    vision_intermediate_size: int = Field(default=128, ge=16, le=32_768)
    patch_size: int = Field(default=14, ge=2, le=64)
    initializer_range: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "ScratchConfig":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 · heads, got {self.hidden_size} and {self.heads}")
        if self.vision_hidden_size % (4 * self.vision_heads):
            raise ValueError(
                "vision_hidden_size must be a multiple of 4 · vision_heads, got "
                f"{self.vision_hidden_size} and {self.vision_heads}"
            )
        return self


class LoraConfig(_Section):
    """LoRA adapters on a pretrained model; read only if ``vlm.model`` is set.

    Attributes:
        rank: 0 trains every weight instead.
        alpha: scale of the adapters, α / rank.
        dropout: inside the adapters.
        targets: names of the linear layers that get one, in the language model and the vision tower alike.
    """

    rank: int = Field(default=16, ge=0, le=1_024)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv")


class VlmConfig(_Section):
    """The vision-language model.

    Attributes:
        model: directory or hub id of a Qwen-VL model; not set = made from scratch as ``vlm.scratch`` says.
        revision: commit of a hub model, 40 hexadecimal digits; a hub model must be pinned.
        dtype: dtype of the weights.
        attention: implementation of attention in transformers.
        activation_checkpointing: recompute activations in the backward pass to save memory.
        min_picture_pixels: smaller pictures are enlarged to at least so many pixels.
        max_picture_pixels: larger pictures are shrunk to at most so many pixels.
        max_text_tokens: tokens kept of an item's text.
    """

    model: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    activation_checkpointing: bool = False
    min_picture_pixels: int = Field(default=784, ge=16)
    max_picture_pixels: int = Field(default=784, ge=16)
    max_text_tokens: int = Field(default=24, ge=1, le=4_096)
    scratch: ScratchConfig = ScratchConfig()
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _ordered_pixels(self) -> "VlmConfig":
        if self.min_picture_pixels > self.max_picture_pixels:
            raise ValueError(
                "min_picture_pixels must not exceed max_picture_pixels, got "
                f"{self.min_picture_pixels} and {self.max_picture_pixels}"
            )
        return self


class LossConfig(_Section):
    """Terms of the loss (docs/method.md, "Our reading").

    Attributes:
        temperature: τ.
        fusion: how the two modalities make one similarity.
        wpcl_weight: weight of WPCL; 0 = plain fine-tuning without it.
        crtr_weight: weight of CRTR; 0 = without it.
        unimodal_weight: weight of an InfoNCE of each modality on its own, unweighted; 0 = without it.
        modality_dropout: share of the histories with both modalities of which the fused loss sees one alone.
        alpha: slope of β = 1 + α g.
        weak_by: weak modality by the moving average over batches, or row by row.
        gap_kind: g as a log-ratio clipped at 4, or as a difference of probabilities.
        relation_temperature: τ_r of CRTR.
        detach_strong: CRTR sends no gradient into the strong modality.
        confidence_gap_decay: weight of the old value in the moving average.
    """

    temperature: float = Field(default=0.1, ge=1e-4, le=100)
    fusion: Fusion = "concat"
    wpcl_weight: float = Field(default=0.5, ge=0)
    crtr_weight: float = Field(default=0.1, ge=0)
    unimodal_weight: float = Field(default=0.0, ge=0)
    modality_dropout: float = Field(default=0.0, ge=0, le=1)
    alpha: float = Field(default=1.0, ge=0)
    weak_by: WeakBy = "ema"
    gap_kind: GapKind = "log_ratio"
    relation_temperature: float = Field(default=1.0, ge=1e-3, le=1_000)
    detach_strong: bool = False
    confidence_gap_decay: float = Field(default=0.9, ge=0, lt=1)


class TrainConfig(_Section):
    """Contrastive fine-tuning.

    Attributes:
        steps: optimiser steps.
        batch_size: windows of users' events a step, of all processes together.
        pairs: ``every`` reads each event of a window after its first as a next item, in one pass over the window's
            prompt; ``last`` its last event alone, so that a window is one pair.
        max_history: items of a history that are read, the newest ones.
        modalities: what is trained; one alone for the single-modality reference.
        learning_rate: peak of AdamW's rate, after a linear warm-up.
        vision_rate: factor on the rate for the vision tower.
        weight_decay: of AdamW; not on biases and norms.
        warmup: share of the steps.
        decay: how the rate goes down after the warm-up.
        gradient_clip: largest norm of the gradient.
        precision: autocast dtype.
        chunk_tokens: prompts are encoded in groups of similar length of at most so many tokens.
        chunk_patches: pictures are seen in groups of at most so many patches.
        cached_gradients: keep the activations of one group alone instead of the batch's (GradCache), so that memory
            does not depend on ``batch_size``; costs a second forward pass.
        picture_memory_mib: preprocessed pictures kept in memory.
        workers: threads that read pictures and put the next batches together; 0 = the training thread does.
        validate_every: steps between two validations (direct ranking of held-out events); 0 = none.
        validation_users: at most so many users' held-out events.
        validation_items: at most so many items, the targets among them, are ranked.
        patience: training ends after so many validations in a row without a better one, and the best one's weights
            are kept; 0 = all steps are done and the last weights are kept.
        log_every: steps between two lines of ``log.jsonl``.
        diagnose_every: steps between two looks at how the modalities fare; 0 = none.
        checkpoint_steps: steps between two checkpoints.
        checkpoint_seconds: a checkpoint is also written after so many seconds.
        keep_checkpoints: older ones are removed.
        seed: of the initial weights, the order of the pairs and dropout.
    """

    steps: int = Field(default=300, ge=1)
    batch_size: int = Field(default=64, ge=2, le=65_536)
    pairs: Literal["every", "last"] = "every"
    max_history: int = Field(default=10, ge=1, le=512)
    modalities: tuple[Literal["text", "image"], ...] = ("text", "image")
    learning_rate: float = Field(default=7e-4, gt=0, le=1)
    vision_rate: float = Field(default=1.0, gt=0, le=100)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["no", "bf16"] = "no"
    chunk_tokens: int = Field(default=16_384, ge=64)
    chunk_patches: int = Field(default=CHUNK_PATCHES, ge=16)
    cached_gradients: bool = False
    picture_memory_mib: int = Field(default=1_024, ge=0)
    workers: int = Field(default=1, ge=0, le=64)
    validate_every: int = Field(default=0, ge=0)
    validation_users: int = Field(default=1_000, ge=1)
    validation_items: int = Field(default=10_000, ge=2)
    patience: int = Field(default=0, ge=0)
    log_every: int = Field(default=10, ge=1)
    diagnose_every: int = Field(default=10, ge=0)
    checkpoint_steps: int = Field(default=200, ge=1)
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
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


class EmbedConfig(_Section):
    """Embedding of the whole catalogue.

    Attributes:
        shard_items: items of a shard, the unit that is written and resumed.
        batch_items: items encoded at a time.
    """

    shard_items: int = Field(default=4_096, ge=1)
    batch_items: int = Field(default=256, ge=1)


class RunConfig(_Section):
    """Everything that one run is configured by."""

    vlm: VlmConfig = VlmConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    encoder: EncoderConfig = EncoderConfig.model_validate({})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {},
    "qwen2.5-vl-3b": {
        "vlm": {
            "model": "Qwen/Qwen2.5-VL-3B-Instruct",
            "revision": "66285546d2b821cf421d4f5eb2576359d3770cd3",
            "dtype": "bfloat16",
            "activation_checkpointing": True,
            "min_picture_pixels": 28 * 28 * 16,
            "max_picture_pixels": 28 * 28 * 64,
            "max_text_tokens": 64,
        },
        "train": {
            "steps": 3_000,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "precision": "bf16",
            "picture_memory_mib": 8_192,
            "workers": 4,
            "checkpoint_seconds": 900.0,
        },
        "embed": {"batch_items": 64, "shard_items": 1_024},
    },
}
"""Named starting points; "tiny" is a model from scratch that two CPU cores train in a minute."""

CONFIG_FILE = "config.toml"
"""The configuration of a run, in the run directory."""


def load_config(
    path: Path | None = None, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a configuration.

    Args:
        path: TOML file; None for the preset alone.
        preset: name of a preset, which the file's keys override; default the file's own ``preset``, else ``tiny``.
        overrides: dotted key → value, e.g. ``{"train.steps": 100}``; they override everything.

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


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML, every value written out; :func:`load_config` reads it back unchanged."""
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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
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
    try:
        return RunConfig.model_validate(_merged(_merged(PRESETS[name], written), given))
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables laid over each other, ``high`` on top."""
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
