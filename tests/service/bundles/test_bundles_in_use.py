"""A deletion spares the bundles that services have pinned or run an experiment with."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.online.bundles_in_use import named_in_redis, published_in
from index.bundle.registry import Registry
from service.bundles.operator_state import OperatorStateCopy, named_bundles
from service.errors import OperatorStateUnavailable
from service.experiments.experiment import Arm, Experiment
from service.settings.load import load_settings
from service.stores.protocols import Edition
from tests.support.stores.real_redis import open_operator_state
from tests.support.stores.redis_servers import free_port

PREFIX = "test-bundles-in-use"


def experiment(*bundles: str | None) -> str:
    """An experiment with an arm for each of these bundles, as it is stored."""
    arms = tuple(Arm(f"arm{number}", 1 / len(bundles), bundle) for number, bundle in enumerate(bundles))
    return Experiment("prices", "salt", arms).to_json()


def test_pins_in_the_usual_place_and_in_named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert named_bundles() == set()
    for number in range(3):
        usual = load_settings(registry=str(tmp_path / f"registry-{number}")).operator_state_file
        OperatorStateCopy(Edition("a", 1), None if number == 2 else f"pin-{number}").save(usual)
    named = tmp_path / "own.json"
    OperatorStateCopy(Edition("a", 1), "other").save(named)
    assert named_bundles(named, tmp_path / "none.json") == {"pin-0", "pin-1", "other"}
    usual.write_text("[")
    assert named_bundles() == {"pin-0", "pin-1"}


def test_bundles_of_an_experiment_are_named_and_an_unknown_form_hides_no_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    OperatorStateCopy(Edition("a", 1), "pin", experiment=experiment("old", "new")).save(one)
    OperatorStateCopy(Edition("a", 1), "second pin", experiment='{"format": 99}').save(other)
    assert named_bundles(one, other) == {"pin", "old", "new", "second pin"}
    OperatorStateCopy(Edition("a", 1), experiment=experiment(None, None)).save(one)
    assert named_bundles(one) == set()


@pytest.mark.parametrize("way", ["pin", "experiment"])
def test_prune_spares_what_a_service_here_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day_bundles: list[Path], way: str
) -> None:
    registry = Registry(tmp_path / "registry")
    for bundle in day_bundles:
        registry.publish(bundle, force=True)
    first, second, third, fourth = (bundle.name for bundle in day_bundles)
    file = tmp_path / "directives.json"
    copy = OperatorStateCopy(Edition("a", 1), first)
    if way == "experiment":
        copy = OperatorStateCopy(Edition("a", 1), experiment=experiment(fourth, first))
    copy.save(file)
    monkeypatch.setenv("VLM2REC_DIRECTIVES_FILE", str(file))
    words = ["index", "prune", "--registry", str(registry.root), "--keep", "1"]
    result = CliRunner().invoke(app, words)
    assert result.output == f"deleted: {second}\n"
    assert [info.id for info in registry.list()] == [first, third, fourth]


def test_what_replicas_use_is_read_from_their_redis(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLM2REC_REDIS_PREFIX", PREFIX)

    async def write(pin: str | None, definition: str | None, before: str | None) -> None:
        store = open_operator_state(redis_url, prefix=PREFIX, timeout_s=5.0)
        assert await store.pin(pin, Edition())
        assert await store.set_experiment(definition, Edition(), instead_of=before)
        await store.close()

    assert named_in_redis(redis_url) == set()
    running = experiment("old", "new")
    asyncio.run(write("pin", running, None))
    assert named_in_redis(redis_url) == {"pin", "old", "new"}
    assert named_in_redis(None) == set()
    monkeypatch.setenv("VLM2REC_REDIS_URL", redis_url)
    assert named_in_redis(None) == {"pin", "old", "new"}
    monkeypatch.delenv("VLM2REC_REDIS_URL")
    file = tmp_path / "service.toml"
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    file.write_text("port = 81\n")
    assert named_in_redis(None) == set()
    file.write_text(f'redis_url = "{redis_url}"\n')
    assert named_in_redis(None) == {"pin", "old", "new"}
    other = json.dumps({"format": 99})
    asyncio.run(write(None, other, running))
    with pytest.raises(OperatorStateUnavailable, match=r"the stored experiment cannot be read .* end it"):
        named_in_redis(redis_url)
    asyncio.run(write(None, None, other))
    assert named_in_redis(redis_url) == set()


def test_prune_deletes_nothing_where_the_given_redis_does_not_answer(tmp_path: Path, day_bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    for bundle in day_bundles[:3]:
        registry.publish(bundle, force=True)
    words = ["index", "prune", "--registry", str(registry.root), "--keep", "1"]
    result = CliRunner().invoke(app, [*words, "--redis", f"redis://127.0.0.1:{free_port()}/0"])
    assert isinstance(result.exception, OperatorStateUnavailable)
    assert len(registry.list()) == 3


def test_a_registry_names_its_current_bundle_and_the_one_before(tmp_path: Path, day_bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    assert published_in(registry) is None
    first, second, third = (bundle.name for bundle in day_bundles[:3])
    registry.publish(day_bundles[0], force=True)
    assert published_in(registry) == {first}
    registry.publish(day_bundles[1], force=True)
    registry.publish(day_bundles[2], force=True)
    assert published_in(registry) == {third, second}
    registry.rollback(first)
    assert first in (published_in(registry) or ())
