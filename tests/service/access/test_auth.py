"""API keys."""

import pytest
from starlette.datastructures import Headers

from service.access.auth import KeyRing
from service.access.key_file import KeyFile
from service.errors import KeyMissing, KeyRefused

OLD, NEW = "the-old-key-123456", "the-new-key-123456"


def headers(**sent: str) -> Headers:
    return Headers({name.replace("_", "-"): value for name, value in sent.items()})


def ring(*keys: str, open_without_keys: bool = True) -> KeyRing:
    return KeyRing([KeyFile("api_keys_file", keys)], open_without_keys=open_without_keys)


@pytest.mark.parametrize("key", [OLD, NEW])
def test_every_key_opens_in_either_header(key: str) -> None:
    both = ring(OLD, NEW)
    both.check(headers(authorization=f"Bearer {key}"))
    both.check(headers(authorization=f"bearer  {key} "))
    both.check(headers(x_api_key=key))


@pytest.mark.parametrize("key", ["wrong", OLD[:-1], OLD + "x", "ключ", OLD.upper()])
def test_any_other_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(KeyRefused) as refused:
        ring(OLD).check(Headers(raw=[(b"x-api-key", key.encode())]))
    assert key not in str(refused.value)


@pytest.mark.parametrize("sent", [{}, {"authorization": f"Basic {OLD}"}, {"authorization": "Bearer "}])
def test_none_is_asked_for(sent: dict[str, str]) -> None:
    with pytest.raises(KeyMissing, match="Authorization: Bearer KEY"):
        ring(OLD).check(headers(**sent))


def test_without_keys_data_is_open_and_admin_is_closed() -> None:
    ring().check(headers())
    with pytest.raises(KeyRefused, match="closed"):
        ring(open_without_keys=False).check(headers(x_api_key=OLD))
