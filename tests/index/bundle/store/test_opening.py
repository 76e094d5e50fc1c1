"""Opening an object store: its URL, endpoint and credentials, for a registry and for an export alike."""

import re
from collections.abc import Callable

import pytest

from index.bundle.store.store_registry import StoreRegistry
from index.errors import EventExportError, IndexingError, RegistryError
from index.event_export.directory import ExportDirectory
from tests.support.stores.s3_server import S3Server

URL = "s3://shop/live"


def opened_registry(url: str) -> None:
    StoreRegistry(url).current()


def opened_export(url: str) -> None:
    ExportDirectory.open_or_create(url)


OPENED = [opened_registry, opened_export]


@pytest.mark.parametrize("use", OPENED)
@pytest.mark.parametrize(
    "url",
    [
        *("s3://[b", "s3://[b/x", "s3://key:hunter2@shop/x", "s3://shop/x?secret=hunter2", "s3:shop/x", "s3:///x"),
        *("s3://shop/../x", "s3://shop/a//b", "s3://shop:80/x"),
    ],
)
def test_what_is_no_place_is_one_line_without_a_secret(use: Callable, url: str) -> None:
    with pytest.raises(IndexingError, match=r"s3://bucket/prefix") as refused:
        use(url)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("use", OPENED)
def test_a_profile_is_refused_as_it_would_not_be_read(
    use: Callable, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "shop")
    with pytest.raises((RegistryError, EventExportError), match="profiles are not read"):
        use(URL)
    assert s3.requests == []


@pytest.mark.parametrize("use", OPENED)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    "endpoint",
    [
        *("http://key:hunter2@127.0.0.1:9", "https://hunter2@shop.example", "127.0.0.1:9#hunter2", "http://[hunter2"),
        *("http://shop.example/?hunter2", "http://hunter 2", "ftp://hunter2"),
    ],
)
def test_an_endpoint_with_a_password_is_refused_without_it(
    use: Callable, name: str, endpoint: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, endpoint)
    with pytest.raises((RegistryError, EventExportError), match=f"^{name} must be https://HOST:PORT") as refused:
        use(URL)
    assert "hunter" not in str(refused.value)


@pytest.mark.parametrize("use", OPENED)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_an_endpoint_without_tls_is_used_and_the_most_specific_variable_wins(
    use: Callable, name: str, scheme: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT", "https://127.0.0.1:9")
    if name == "AWS_ENDPOINT":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, s3.url.replace("http", scheme))
    use(URL)
    assert s3.requests


@pytest.mark.parametrize("use", OPENED)
def test_a_refusal_names_its_code_and_no_key(use: Callable, s3: S3Server) -> None:
    with (
        s3.faulty(lambda _method, _key: "denied"),
        pytest.raises(IndexingError, match=r"\(InvalidAccessKeyId\)") as said,
    ):
        use(URL)
    assert not re.search("AKIDEXAMPLE|a-secret-for-tests", str(said.value))


@pytest.mark.parametrize("use", OPENED)
def test_the_scheme_may_be_written_in_capitals(use: Callable, s3: S3Server) -> None:
    use(URL.replace("s3", "S3"))
    assert s3.requests
