"""The fingerprint of a run: which settings enter it, and under which names."""

from training.config.run_config import LossConfig, load_config
from training.finetune.run_directory import _decisive_settings


def test_renamed_keys_enter_the_fingerprint_under_their_former_names() -> None:
    loss = _decisive_settings(load_config(overrides={"loss.wpcl_weight": 0.7, "loss.confidence_gap_decay": 0.8}))[
        "loss"
    ]
    assert (loss["mu"], loss["lam"], loss["nu"], loss["lead_decay"]) == (0.7, 0.1, 0.0, 0.8)
    assert len(loss) == len(LossConfig.model_fields)
    assert not {"wpcl_weight", "crtr_weight", "unimodal_weight", "confidence_gap_decay"} & set(loss)
