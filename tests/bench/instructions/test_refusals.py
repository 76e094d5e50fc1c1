"""What is counted as a refusal is one."""

import asyncio

import pytest

from bench.instructions.refusals import full_connection, refuse
from bench.load.open_loop import requests_of


def test_every_request_to_a_full_connection_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    asyncio.run(refuse(3))
    assert capsys.readouterr().out == "done\ndone\n"


def test_refusals_of_one_connection_have_ids_of_their_own() -> None:
    async def refused() -> list[bytes]:
        protocol, transport = full_connection()
        found = []
        for body in (b"{}", b"[]", b"1"):
            protocol.data_received(requests_of("/recommend", [body])[0])
            found.append(transport.last)
        assert transport.responses == 3
        return found

    found = asyncio.run(refused())
    assert {one.partition(b"\r\n")[0] for one in found} == {b"HTTP/1.1 429 Too Many Requests"}
    assert len({one.partition(b"x-request-id: ")[2][:32] for one in found}) == 3
