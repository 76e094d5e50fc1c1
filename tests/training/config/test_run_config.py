"""Configuration files: unknown keys and bad values are refused, and a written configuration reads back the same."""

import json
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from training.config.presets import PRESETS
from training.config.renamed_keys import FORMER_KEYS
from training.config.run_config import (
    LossConfig,
    RunConfig,
    TrainConfig,
    check_new_training,
    load_config,
    load_run_config,
    to_toml,
)
from training.config.vlm_config import HeadsConfig, LoraConfig, ScratchConfig, Section, TowersConfig, VlmConfig
from training.errors import ConfigError, DatasetError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_it_is_the_tiny_preset() -> None:
    config = load_config()
    assert config == RunConfig()
    assert config.vlm.model is None


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, "[train]\nsteps = 7\n[vlm.scratch]\nlayers = 5\n[encoder]\nepochs = 2\n")
    config = load_config(path)
    assert (config.train.steps, config.vlm.scratch.layers, config.encoder.epochs) == (7, 5, 2)
    assert config.train.batch_size == RunConfig().train.batch_size
    assert config.vlm.scratch.heads == RunConfig().vlm.scratch.heads


def test_overrides_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = written(tmp_path, 'preset = "qwen2.5-vl-3b"\n[train]\nsteps = 7\nbatch_size = 5\n')
    config = load_config(path, overrides={"train.batch_size": 9, "vlm.lora.rank": 8})
    assert config.vlm.model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (config.train.steps, config.train.batch_size, config.vlm.lora.rank) == (7, 9, 8)
    assert load_config(path, preset="tiny").vlm.model is None


def test_presets_of_frozen_encoders_have_the_limits_of_their_models() -> None:
    presets = {name: load_config(preset=name).vlm for name in ("siglip2-base", "qwen3-vl-embedding-2b")}
    siglip, qwen = presets.values()
    assert (siglip.family, siglip.dtype, siglip.max_text_tokens) == ("dual-encoder", "float32", 64)
    visual_token = 32 * 32  # patches of 16 × 16 pixels, 2 × 2 of them merged
    assert qwen.family == "qwen3-vl-embedding"
    assert qwen.min_picture_pixels % visual_token == qwen.max_picture_pixels % visual_token == 0
    assert qwen.max_picture_pixels > qwen.min_picture_pixels > visual_token
    assert load_config(preset="embeddinggemma-2").vlm.dtype == "bfloat16"


def test_the_revision_of_a_preset_is_of_its_own_model_only(tmp_path: Path) -> None:
    own = load_config(preset="siglip2-base").vlm.revision
    assert own is not None
    other = written(tmp_path, 'preset = "siglip2-base"\n[vlm]\nmodel = "acme/siglip"\n')
    assert load_config(other).vlm.revision is None
    assert load_config(other).vlm.max_text_tokens == 64
    assert load_config(other, overrides={"vlm.revision": "b" * 40}).vlm.revision == "b" * 40
    same = written(tmp_path, 'preset = "siglip2-base"\n[vlm]\nmodel = "google/siglip2-base-patch16-224"\n')
    assert load_config(same).vlm.revision == own


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_being_written_and_read(preset: str, tmp_path: Path) -> None:
    config = load_config(preset=preset, overrides={"vlm.revision": 'a "quoted" \\ tag'})
    assert load_config(written(tmp_path, to_toml(config))) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nsteps = 0\n", ("train.steps", "greater than or equal to 1", "got 0")),
        (f"[train]\nsteps = {10**20}\n", ("train.steps", "less than or equal to 10000000", f"got {10**20}")),
        ("[train]\nsteps = 1e20\n", ("train.steps", "got 1e+20")),
        ("[encoder]\nepochs = 10001\n", ("encoder.epochs", "less than or equal to 10000", "got 10001")),
        ("[loss]\nwpcl_weight = inf\n", ("loss.wpcl_weight", "finite", "got inf")),
        ("[encoder]\nweight_decay = nan\n", ("encoder.weight_decay", "finite", "got nan")),
        ('[train]\nsteps = "many"\n', ("train.steps", "got 'many'")),
        ("[train]\nspeed = 3\n", ("train.speed", "unknown key")),
        ("[trian]\nsteps = 3\n", ("trian", "unknown key")),
        ('[loss]\nfusion = "mean"\n', ("loss.fusion", "'sum' or 'concat'", "got 'mean'")),
        ("[vlm.scratch]\nheads = 3\n", ("vlm.scratch", "multiple of 2 · heads", "64 and 3")),
        ("[vlm.scratch]\nvision_heads = 5\n", ("vlm.scratch", "multiple of 4 · vision_heads")),
        ("[vlm]\nmin_picture_pixels = 999\n", ("vlm", "must not exceed", "999 and 784")),
        ('[train]\nmodalities = ["text", "text"]\n', ("train", "modalities must name")),
        ("[train]\nmodalities = []\n", ("train", "modalities must name")),
        ("[train]\npatience = 2\n", ("train", "patience needs validate_every", "got 2 and 0")),
        ('[train]\ndecay = "step"\n', ("train.decay", "'cosine', 'linear' or 'constant'", "got 'step'")),
        ('preset = "huge"\n', ("preset must be one of tiny", "'huge'")),
        ("steps = \n", ("must be TOML",)),
    ],
)
def test_a_broken_rule_is_named_with_section_key_and_value(text: str, said: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_every_broken_rule_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"loss\.temperature.*train\.steps"):
        load_config(overrides={"train.steps": 0, "loss.temperature": 0})


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read"):
        load_config(tmp_path / "none.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'preset = "t\xefny"\n')
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('preset = "tiny"\n'.encode("utf-16"), r"this is UTF-16.*iconv -f UTF-16 -t UTF-8"),
        ("# “tiny” model\n".encode("cp1252"), r"must be UTF-8, line 1 is not: it is likely Windows-1252"),
        (b"\x1f\x8b\x08", r"this is gzip-compressed"),
        (b"a = " + b"[" * 5000, r"must be TOML"),
        (b"[train]\nsteps = 1" + b"0" * 5000, r"must be TOML"),
    ],
)
def test_a_file_of_another_kind_is_named_with_a_remedy(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_a_byte_order_mark_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\nsteps = 7\n")
    assert load_config(path).train.steps == 7


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().train.steps = 3  # type: ignore[misc]


OLD_LOSS = "[loss]\nmu = 0.7\nlam = 0.3\nnu = 0.2\nlead_decay = 0.8\n"
NEW_LOSS = {"wpcl_weight": 0.7, "crtr_weight": 0.3, "unimodal_weight": 0.2, "confidence_gap_decay": 0.8}


@pytest.mark.parametrize(("key", "former"), FORMER_KEYS.items())
def test_a_former_key_works_with_a_warning_that_names_the_new_one(key: str, former: str, tmp_path: Path) -> None:
    section, _, old = former.partition(".")
    path = written(tmp_path, f"[{section}]\n{old} = 0.25\n")
    with pytest.warns(FutureWarning, match=rf"run\.toml: {former} is now called {key}") as caught:
        config = load_config(path)
    with pytest.warns(FutureWarning, match=f"{former} is now called {key}"):
        overridden = load_config(overrides={former: 0.25})
    assert config == overridden == load_config(overrides={key: 0.25})
    assert len(caught) == 1


def test_an_override_by_the_new_key_wins_over_the_former_key_in_a_file(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="loss.mu"):
        config = load_config(written(tmp_path, "[loss]\nmu = 0.7\n"), overrides={"loss.wpcl_weight": 0.9})
    assert config.loss.wpcl_weight == 0.9


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss\.mu is the former name of loss\.wpcl_weight.*remove loss\.mu"):
        load_config(written(tmp_path, "[loss]\nmu = 0.7\nwpcl_weight = 0.7\n"))


def test_a_bad_value_under_a_former_key_is_refused(tmp_path: Path) -> None:
    with (
        pytest.warns(FutureWarning, match="loss.mu"),
        pytest.raises(ConfigError, match=r"loss\.wpcl_weight: .*got -1"),
    ):
        load_config(written(tmp_path, "[loss]\nmu = -1\n"))


def test_a_stored_configuration_with_former_keys_loads_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(OLD_LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_run_config(tmp_path)
    assert config == load_config(overrides={f"loss.{key}": value for key, value in NEW_LOSS.items()})


def test_a_run_directory_without_a_configuration_is_the_tiny_preset(tmp_path: Path) -> None:
    assert load_run_config(tmp_path) == load_config()


@pytest.mark.parametrize(
    "key", ["train.steps", "train.validate_every", "loss.wpcl_weight", "vlm.scratch.layers", "vlm.heads.length",
            "embed.batch_items", "encoder.epochs", "encoder.dropout", "encoder.cold_items"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["true", "false"])
def test_a_boolean_is_no_number(key: str, value: str, tmp_path: Path) -> None:
    section, _, name = key.rpartition(".")
    with pytest.raises(ConfigError, match=rf"{key}: .*must be a number, got {value.capitalize()}"):
        load_config(written(tmp_path, f"[{section}]\n{name} = {value}\n"))


PAGE = Path(__file__).parents[3] / "docs" / "training.md"
SECTIONS = {
    "vlm": VlmConfig,
    "vlm.scratch": ScratchConfig,
    "vlm.lora": LoraConfig,
    "vlm.towers": TowersConfig,
    "vlm.heads": HeadsConfig,
    "loss": LossConfig,
    "train": TrainConfig,
}


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


@pytest.mark.parametrize("name", SECTIONS)
def test_no_whole_number_is_without_a_bound(name: str) -> None:
    for key, field in SECTIONS[name].model_fields.items():
        if field.annotation is int:
            limits = [getattr(rule, "le", None) or getattr(rule, "lt", None) for rule in field.metadata]
            assert any(limit is not None and limit <= 2**31 for limit in limits), key


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_lists_every_key_with_its_default_and_meaning(name: str) -> None:
    section = SECTIONS[name]
    table = PAGE.read_text().split(f"### `[{name}]`")[1].split("###")[0]
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    keys = {key: field for key, field in section.model_fields.items() if not is_section(field.annotation)}
    assert list(rows) == list(keys)
    meanings = " ".join((section.__doc__ or "").split()).replace("``", "`")
    for key, field in keys.items():
        _, _, shown, meaning, _ = rows[key].split("|")
        default = "–" if field.default is None else json.dumps(field.default)
        assert default in shown
        assert f"{key}: {meaning.strip()}" in meanings


@pytest.mark.parametrize(("gap_kind", "weak_by"), [("log_ratio", "ema"), ("probability", "auc")])
def test_a_shift_by_a_gap_without_direction_is_refused(gap_kind: str, weak_by: str, tmp_path: Path) -> None:
    """Rows in which the weak modality is ahead would be shifted as well; a run that has learned so is still read."""
    loss = {"loss.negative_shift": 0.1, "loss.gap_kind": gap_kind, "loss.weak_by": weak_by}
    said = rf'needs a gap .*got gap_kind = "{gap_kind}" with weak_by = "{weak_by}"; set loss\.gap_kind to "one_sided"'
    with pytest.raises(ConfigError, match=said):
        check_new_training(load_config(overrides=loss))
    (tmp_path / "config.toml").write_text(
        f'[loss]\nnegative_shift = 0.1\ngap_kind = "{gap_kind}"\nweak_by = "{weak_by}"\n'
    )
    assert load_run_config(tmp_path).loss.negative_shift == 0.1
    assert load_config(tmp_path / "config.toml").loss.negative_shift == 0.1  # as a fit and --resume read it
    words = ["train", str(tmp_path / "data"), "--run", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, [*words, "--config", str(tmp_path / "config.toml")])
    assert isinstance(refused.exception, ConfigError)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "config.toml").rename(tmp_path / "run" / "config.toml")
    resumed = CliRunner().invoke(app, [*words, "--resume"])
    assert isinstance(resumed.exception, DatasetError)  # the configuration is taken; there is no data set here


def test_trained_text_layers_are_for_towers() -> None:
    with pytest.raises(ConfigError, match=r'trained_text_layers is for family = "towers", got "qwen-vl"'):
        load_config(overrides={"vlm.towers.trained_text_layers": 1})


@pytest.mark.parametrize("other", [{"gap_kind": "one_sided"}, {"gap_kind": "own_scale"}, {"weak_by": "row"}])
def test_a_shift_by_a_gap_with_a_direction_is_accepted(other: dict[str, str]) -> None:
    loss = {"loss.negative_shift": 0.1, **{f"loss.{key}": value for key, value in other.items()}}
    check_new_training(load_config(overrides=loss))
