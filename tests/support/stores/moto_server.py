"""The S3 server of moto, which answers conditional writes as S3 does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.stores.s3_server import environment_of


@contextmanager
def moto_server(monkeypatch: pytest.MonkeyPatch, bucket: str) -> Iterator[str]:
    """The address of a server with an empty bucket, to which the variables lead."""
    import boto3
    from moto.server import ThreadedMotoServer

    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in environment_of(url).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=bucket)
    yield url
    started.stop()
