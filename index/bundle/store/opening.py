"""Opens the object store that a URL names: address, credentials, patience, and what a message may say of an error.

Credentials and region come from the usual ``AWS_*`` variables, a web identity token, or the metadata service of the
container or machine. No message has a password, a key or the body of an answer.
"""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

from index.errors import RegistryError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEME: Final = "s3"
ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""The first one that is set names the endpoint."""

_FORM: Final = f"an object store must be named as {SCHEME}://bucket/prefix, without user, password or parameters"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_CONNECT_S: Final = 3
_NO_RETRY_BELOW_S: Final = 10
_MOST_RETRIES: Final = 5
_LONGEST_DETAIL: Final = 200
_USER: Final = re.compile(r"//\S*@")
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")


class StoreUrl(NamedTuple):
    """The parts of a URL.

    Attributes:
        bucket: name of the bucket.
        prefix: what all keys begin with, without slashes around it; may be empty.
    """

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``s3://bucket/prefix``.

        Raises:
            RegistryError: it has another form; the message does not quote it, as it may hold a password.
        """
        parts = _split(url)
        if parts is None or parts.scheme != SCHEME or not _BUCKET.fullmatch(parts.netloc):
            raise RegistryError(_FORM)
        prefix = parts.path.strip("/")
        if parts.query or parts.fragment or (prefix and any(part in {"", ".", ".."} for part in prefix.split("/"))):
            raise RegistryError(_FORM)
        return cls(parts.netloc, prefix)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.bucket}/{self.prefix}".rstrip("/")


def open_store(url: StoreUrl, *, patience_s: int) -> Any:  # noqa: ANN401 - a store of obstore, which is imported here
    """Open a store; nothing is sent yet.

    Args:
        url: of the store.
        patience_s: longest time of one request in seconds; it is not tried again where this is below 10.

    Raises:
        RegistryError: a profile is named, the endpoint breaks a rule, or the extra is missing.
    """
    if os.environ.get("AWS_PROFILE"):
        raise RegistryError(
            "AWS_PROFILE is set, but profiles are not read: unset it and export the keys, as with "
            "`aws configure export-credentials --format env`"
        )
    endpoint = _endpoint()
    try:
        from obstore.store import S3Store
    except ImportError:
        raise RegistryError(f"{url}: the extra is missing; install it with pip install 'vlm2rec[{SCHEME}]'") from None
    client: ClientConfig = {
        "timeout": timedelta(seconds=patience_s),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "allow_http": endpoint.lower().startswith("http://"),
    }
    retries: RetryConfig = {
        "max_retries": 0 if patience_s < _NO_RETRY_BELOW_S else _MOST_RETRIES,  # a poll is followed by the next one
        "retry_timeout": timedelta(seconds=patience_s),
    }
    try:
        return S3Store(
            url.bucket,
            prefix=url.prefix or None,
            config={"endpoint": endpoint} if endpoint else {},
            client_options=client,
            retry_config=retries,
            checksum_algorithm="SHA256",  # the store refuses what did not arrive whole
        )
    except Exception as error:  # noqa: BLE001 - whatever the library finds wrong with a variable; its text quotes them
        raise RegistryError(f"{url}: cannot be opened ({error_detail(error)})") from None


def error_detail(error: Exception) -> str:
    """What went wrong, without the body of an answer: that of a refused request repeats the id of the key."""
    text = _USER.sub("//", str(error))
    code = _CODE.search(text)
    first = text.partition("\n")[0].partition("<")[0].strip(" :")[:_LONGEST_DETAIL]
    return (first or type(error).__name__) + (f" ({code[1]})" if code else "")


def _endpoint() -> str:
    """The endpoint that the variables name; empty: that of AWS.

    Raises:
        RegistryError: it is no address of a server.
    """
    for name in ENDPOINT_VARIABLES:
        if value := os.environ.get(name, "").strip():
            parts = _split(value)
            # A user in it would replace the signature of a request, and stand in each message of the library.
            if (
                parts is None
                or parts.scheme not in {"http", "https"}
                or not _HOST.fullmatch(re.sub(r":[0-9]{1,5}$", "", parts.netloc))
                or parts.query
                or parts.fragment
            ):
                raise RegistryError(
                    f"{name} must be https://HOST:PORT or http://HOST:PORT, without user and password; credentials are "
                    "those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
            return value
    return ""


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # as of s3://[b
        return None
