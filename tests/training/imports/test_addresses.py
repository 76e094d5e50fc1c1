"""Fetches connect to public addresses only."""

import ipaddress
import socket

import httpcore2
import pytest

from training.imports.fetching.addresses import AddressRefused, CheckedNetwork, public_address, system_resolver


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1",
        "127.255.1.2", "169.254.169.254", "168.63.129.16", "172.16.0.1", "172.31.255.255", "192.0.0.192",
        "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.5", "224.0.0.1",
        "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
        "::ffff:0:8.8.8.8", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1",
        "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2001:10::1", "2001:20::1",
        "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
        "fe80::1%eth0", "fec0::1", "ff02::1", "2600:1901::5efe:7f00:1", "2600:1901::200:5efe:808:808",
    ],
)  # fmt: skip
def test_refused(address: str) -> None:
    assert public_address(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.167.1.1", "223.255.255.254",
     "2606:4700::1111", "2a00:1450:4001:80b::200e", "2001:4860:4860::8888"],
)  # fmt: skip
def test_permitted(address: str) -> None:
    assert public_address(ipaddress.ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "why"),
    [("100.64.0.1", "shared"), ("10.0.0.1", "private"), ("169.254.1.1", "link-local"), ("224.0.0.1", "multicast"),
     ("::ffff:8.8.8.8", "IPv4-mapped"), ("2002:808:808::1", "6to4"), ("2600:1901::5efe:7f00:1", "ISATAP")],
)  # fmt: skip
def test_the_reason_says_which_rule(address: str, why: str) -> None:
    assert public_address(ipaddress.ip_address(address)) == why


@pytest.mark.parametrize("spelled", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "localhost", "::1"])
def test_every_spelling_of_this_machine_is_refused(spelled: str) -> None:
    network = CheckedNetwork(rule=public_address, resolver=system_resolver)
    network.begin(10)
    with pytest.raises((AddressRefused, httpcore2.ConnectError), match=r"which is|cannot be resolved"):
        network.connect_tcp(spelled, 80)


def test_a_name_is_resolved_once_and_that_address_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second answer of the name server cannot matter, because there is no second question."""
    connected: list[tuple[str, int]] = []

    def create_connection(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError("made")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    answers = iter([["10.0.0.1", "8.8.8.8", "1.1.1.1"], ["127.0.0.1"]])
    network = CheckedNetwork(rule=public_address, resolver=lambda _host, _port: next(answers))
    network.begin(10)
    with pytest.raises(httpcore2.ConnectError, match="made"):
        network.connect_tcp("img.test", 80)
    assert connected == [("8.8.8.8", 80), ("1.1.1.1", 80)]
    with pytest.raises(AddressRefused, match=r"img\.test has the address 127\.0\.0\.1, which is loopback"):
        network.connect_tcp("img.test", 80)
    assert len(connected) == 2
