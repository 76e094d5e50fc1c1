"""A prune spares the bundles that services on this machine have pinned."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from index.bundle.registry import Registry
from service.bundles.operator_state import OperatorStateCopy, pinned_bundles
from service.settings.load import load_settings
from service.stores.protocols import Edition


def test_pins_in_the_usual_place_and_in_named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert pinned_bundles() == set()
    for number in range(3):
        usual = load_settings(registry=str(tmp_path / f"registry-{number}")).operator_state_file
        OperatorStateCopy(Edition("a", 1), None if number == 2 else f"pin-{number}").save(usual)
    named = tmp_path / "own.json"
    OperatorStateCopy(Edition("a", 1), "other").save(named)
    assert pinned_bundles(named, tmp_path / "none.json") == {"pin-0", "pin-1", "other"}
    usual.write_text("[")
    assert pinned_bundles() == {"pin-0", "pin-1"}


def test_prune_spares_what_a_service_here_has_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day_bundles: list[Path]
) -> None:
    registry = Registry(tmp_path / "registry")
    for bundle in day_bundles:
        registry.publish(bundle, force=True)
    first, second, third, fourth = (bundle.name for bundle in day_bundles)
    file = tmp_path / "directives.json"
    OperatorStateCopy(Edition("a", 1), first).save(file)
    monkeypatch.setenv("VLM2REC_DIRECTIVES_FILE", str(file))
    words = ["index", "prune", "--registry", str(registry.root), "--keep", "1"]
    result = CliRunner().invoke(app, words)
    assert result.output == f"deleted: {second}\n"
    assert [info.id for info in registry.list()] == [first, third, fourth]
