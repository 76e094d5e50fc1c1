"""Licences of pretrained models: from a card, a known hub id, a package, or as the user states them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.backbones.licences import licences
from training.config.presets import PRESETS
from training.config.run_config import load_config

Named = Callable[..., list[str]]


@pytest.fixture
def named() -> Named:
    """Licences of a configuration with these keys."""
    return lambda **keys: licences(load_config(overrides={k.replace("__", "."): v for k, v in keys.items()}).vlm)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: Apache-2.0\n---\n# Model\n", "apache-2.0"),
        ('---\nlicense: "mit"\n---\n', "mit"),
        ("---\nlicense: other\nlicense_name: Qwen-Research\nlicense_link: x\n---\n", "qwen-research"),
        ("---\nlicense_name: 'gemma'\nlicense: other\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: mit\nlicense_name: own\n---\n", "mit"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "not stated"),
        ("# Model\nlicense: mit\n", "not stated"),
        ("", "not stated"),
        (None, "not stated"),
    ],
)
def test_a_directory_states_its_licence_at_the_top_of_its_card(
    card: str | None, licence: str, named: Named, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert named(vlm__model=str(tmp_path)) == [licence]


def test_the_licence_of_every_preset_from_a_hub_is_known() -> None:
    hub = [name for name in PRESETS if load_config(preset=name).vlm.model]
    assert len(hub) == 4
    assert {name: licences(load_config(preset=name).vlm) for name in hub if name != "qwen2.5-vl-3b"} == {
        name: ["apache-2.0"] for name in hub if name != "qwen2.5-vl-3b"
    }


def test_known_hub_ids_and_others(named: Named) -> None:
    assert licences(load_config(preset="qwen2.5-vl-3b").vlm) == ["qwen-research"]
    assert named(vlm__model="Qwen/Qwen2.5-VL-7B-Instruct") == ["apache-2.0"]
    assert named(vlm__model="acme/unknown") == ["not stated"]


def test_two_towers_have_the_licences_of_both(named: Named, tmp_path: Path) -> None:
    assert licences(load_config(preset="towers-minilm").vlm) == ["not stated"]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    towers = {"vlm__towers__text_model": str(tmp_path), "vlm__towers__image_model": "package:x"}
    assert named(vlm__family="towers", **towers) == ["mit", "not stated"]


def test_the_user_can_state_it_and_a_model_from_scratch_has_none(named: Named) -> None:
    assert named(vlm__model="acme/unknown", vlm__licence=" MIT ") == ["mit"]
    assert named() == []
    assert named(vlm__licence="mit") == []
