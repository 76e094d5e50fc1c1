"""The fingerprint of a run: which settings enter it, and under which names."""

from training.config.run_config import LossConfig, load_config
from training.finetune.run_directory import _ADDED, _decisive_settings


def test_renamed_keys_enter_the_fingerprint_under_their_former_names() -> None:
    loss = _decisive_settings(load_config(overrides={"loss.wpcl_weight": 0.7, "loss.confidence_gap_decay": 0.8}))[
        "loss"
    ]
    assert (loss["mu"], loss["lam"], loss["nu"], loss["lead_decay"]) == (0.7, 0.1, 0.0, 0.8)
    assert len(loss) == len(LossConfig.model_fields) - len(_ADDED["loss"])
    assert not {"wpcl_weight", "crtr_weight", "unimodal_weight", "confidence_gap_decay"} & set(loss)


def test_keys_that_came_later_enter_the_fingerprint_only_where_they_are_used() -> None:
    before = _decisive_settings(load_config())["loss"]
    assert not set(_ADDED["loss"]) & set(before)
    used = _decisive_settings(load_config(overrides={"loss.negative_shift": 0.2, "loss.weak_by": "row"}))["loss"]
    assert used == before | {"negative_shift": 0.2, "weak_by": "row"}
    frozen = _decisive_settings(load_config(preset="towers-minilm"))
    assert "trained_text_layers" not in frozen["vlm"]["towers"]
    assert not {"text_layers_rate", "adapters_rate"} & set(frozen["train"])
    assert "adapters" not in frozen["vlm"]
    trained = load_config(preset="towers-minilm", overrides={"vlm.towers.trained_text_layers": 1})
    assert _decisive_settings(trained)["vlm"]["towers"]["trained_text_layers"] == 1
    adapted = load_config(preset="siglip2-base", overrides={"vlm.adapters": True, "train.adapters_rate": 0.2})
    assert _decisive_settings(adapted)["vlm"]["adapters"] is True
    assert _decisive_settings(adapted)["train"]["adapters_rate"] == 0.2
