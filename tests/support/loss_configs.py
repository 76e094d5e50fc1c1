"""Configures the loss of a test: plain fine-tuning on fused sums, unless an option says otherwise."""

from typing import Any

from training.config.run_config import LossConfig


def loss_config(**options: Any) -> LossConfig:
    """A configuration in which every term but InfoNCE is off; values outside of its bounds are accepted."""
    assert options.keys() <= LossConfig.model_fields.keys()
    return LossConfig(fusion="sum", wpcl_weight=0.0, crtr_weight=0.0).model_copy(update=options)
