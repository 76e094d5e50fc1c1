"""The settings of the store in which items are searched."""

import sys
from pathlib import Path

import pytest

from service.container import open_retriever
from service.errors import SettingsError, StartError
from service.retrieval.faiss_retriever import FAISS
from service.settings.load import load_settings
from service.settings.retrieval_settings import parse_milvus_url
from service.settings.worker_place import WorkerPlace


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("milvus+http://host:19530", ("http://host:19530", "")),
        ("milvus+https://host", ("https://host", "")),
        ("milvus+http://host/", ("http://host", "")),
        ("milvus+http://[::1]:19530/shop_1", ("http://[::1]:19530", "shop_1")),
    ],
)
def test_urls(url: str, parsed: tuple[str, str]) -> None:
    assert parse_milvus_url(url) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "milvus",
        "http://host",
        "milvus+grpc://host",
        "milvus+http://root:secret@host",
        "milvus+http://host/a/b",
        "milvus+http://host/1a",
        "milvus+http://host?token=secret",
        "milvus+http://",
        "Faiss",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"retriever: .*must be faiss, or milvus\+http") as error:
        load_settings(registry="r", retriever=url)
    assert "secret" not in str(error.value)


def test_faiss_is_the_default() -> None:
    chosen = load_settings(registry="r").retrieval
    assert (chosen.kind, chosen.token, chosen.timeout_s) == ("faiss", "", 0.25)


def test_the_token_comes_from_a_file_or_a_setting(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("root:a-secret\n")
    chosen = {"registry": "r", "retriever": "milvus+http://host"}
    read = load_settings(**chosen, retriever_token_file=tmp_path / "token")
    assert read.retrieval.token == "root:a-secret"
    assert "a-secret" not in repr(read)
    assert load_settings(**chosen, retriever_token="key").retrieval.token == "key"
    with pytest.raises(SettingsError, match="set retriever_token or retriever_token_file, not both"):
        load_settings(**chosen, retriever_token_file=tmp_path / "token", retriever_token="root:a-secret")
    with pytest.raises(SettingsError, match="retriever_token_file must name a file that can be read"):
        load_settings(**chosen, retriever_token_file=tmp_path / "none")


def test_each_worker_has_all_threads_that_wait(tmp_path: Path) -> None:
    place = WorkerPlace(number=1, count=2, directory=tmp_path)
    waiting = load_settings(registry="r", retriever="milvus+http://host")
    assert waiting.for_worker(place).engine.engine_threads == 0
    assert load_settings(registry="r").for_worker(place).engine.engine_threads >= 1
    chosen = load_settings(registry="r", retriever="milvus+http://host", engine_threads=6)
    assert chosen.for_worker(place).engine.engine_threads == 3


def test_a_service_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(StartError, match="Milvus needs pymilvus; install the extra 'milvus'"):
        open_retriever(load_settings(registry="r", retriever="milvus+http://host"))
    assert open_retriever(load_settings(registry="r")) is FAISS
