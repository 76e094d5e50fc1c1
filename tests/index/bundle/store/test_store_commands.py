"""The commands `vlm2rec index …` on a registry in an object store."""

import pytest
from typer.testing import CliRunner

from cli.online.index import app
from index.errors import BundleNotFound, RegistryError

REGISTRY = ("--registry", "s3://shop/live")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, s3):
    monkeypatch.setenv("VLM2REC_REGISTRY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_from_publishing_to_pruning(bundles, s3, cache):
    first, second, third = (bundle.name for bundle in bundles)
    assert "nothing is published yet" in call("list", *REGISTRY)
    assert "nothing is published yet" in call("verify", *REGISTRY)
    with pytest.raises(BundleNotFound, match="nothing is published yet"):
        call("show", *REGISTRY)
    for bundle in bundles:
        assert f"published: {bundle.name}" in call("publish", bundle, *REGISTRY)
    assert not cache.exists() or not list(cache.glob("*/2*"))
    lines = call("list", *REGISTRY).splitlines()
    assert [name for line in lines for name in (first, second, third) if name in line] == [first, second, third]
    assert "plain" in call("show", *REGISTRY)
    assert f"current: {second}" in call("rollback", *REGISTRY)
    assert "nothing to delete" in call("prune", *REGISTRY, "--keep", 2, "--spare", first)
    assert f"current: {third}" in call("rollback", *REGISTRY, "--to", third)
    assert f"deleted: {first}" in call("prune", *REGISTRY, "--keep", 1)
    output = call("verify", *REGISTRY)
    assert f"s3://shop/live/{third}: whole, 40 items" in output
    assert not list(cache.glob("*/.verify-*"))
    for key, (content, modified) in list(s3.objects.items()):
        if second in key and key.endswith("items.arrow"):
            s3.objects[key] = (content[:-1] + b"?", modified)
    output = call("verify", *REGISTRY, code=1)
    assert f"{third}: whole" in output
    assert "items.arrow: its content is not what the manifest says" in output


@pytest.mark.parametrize("size", ["", "0", "-1", "many", "1e3"])
def test_a_wrong_bound_of_the_cache_is_named(monkeypatch, size):
    monkeypatch.setenv("VLM2REC_REGISTRY_CACHE_MB", size)
    with pytest.raises(RegistryError, match="VLM2REC_REGISTRY_CACHE_MB must be a number of MiB"):
        call("list", *REGISTRY)
