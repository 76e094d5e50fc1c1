"""The nightly job publishes to a registry in an object store."""

import pytest

from index.bundle.registries import open_registry

URL = "s3://shop/bundles"


@pytest.mark.slow
def test_it_publishes_once_and_stops_before_the_work_while_the_store_is_gone(own, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM2REC_REGISTRY_CACHE", str(tmp_path / "cache"))
    where = ("--registry", URL)
    published = own.reindex(*where)
    assert published["outcome"] == "published"
    assert open_registry(URL, tmp_path / "other").current() == published["bundle"]
    assert not (own.home / "bundles").exists()
    written = s3.asked("PUT", "vectors.npy")
    assert own.reindex(*where)["outcome"] == "nothing to do"
    assert s3.asked("PUT", "vectors.npy") == written == 1
    own.set(3, title="another title")
    with s3.faulty(lambda _method, _key: "denied"):
        failed = own.reindex(*where, code=2)
    assert failed["outcome"] == "failed"
    assert "s3://shop/bundles/" in failed["error"]
    assert "AKIDEXAMPLE" not in str(failed)
    again = own.reindex(*where, "--keep", 1)
    assert (again["outcome"], again["embedding"]["encoded"]) == ("published", 1)
    assert [info.id for info in open_registry(URL, tmp_path / "other").list()] == [
        published["bundle"],
        again["bundle"],
    ]
