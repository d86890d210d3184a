import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.address import Address, check_name, parse_address, resolve, routing_id
from kernels.errors import InputError, RemoteError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://10.0.0.1:7070", Address("10.0.0.1", 7070)),
        ("tcp://pi-1.local:1", Address("pi-1.local", 1)),
        ("tcp://[fe80::1%eth0]:65535", Address("fe80::1%eth0", 65535)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "pi:7070", "tcp://pi", "tcp://pi:0", "tcp://pi:65536", "tcp://:7", "tcp://a b:7",
     "tcp://fe80::1:7", "ipc://x", "tcp://pi:7070/"],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="write it like tcp://192"):
        parse_address(text)


NO_HOSTS = ["pi..local", ".", ".local", "a" * 64, "a." + "b" * 64, "pi\udcff", ":" * 64]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_hosts_that_no_lookup_takes_are_refused(host):
    with pytest.raises(
        InputError, match=r"can be no host name .* write it like tcp://192"
    ) as caught:
        parse_address(str(Address(host, 7070)))
    assert repr(host) in str(caught.value)


@pytest.mark.parametrize("host", NO_HOSTS)
def test_hosts_that_no_lookup_takes_cannot_be_resolved(host):
    """`serve --host` comes here without parse_address."""
    with pytest.raises(RemoteError, match="cannot be resolved"):
        resolve(Address(host, 7070), 0)


@pytest.mark.parametrize("host", ["a" * 63 + ".local", "pi.local.", "pi-ä.local"])
def test_unusual_hosts_are_taken(host):
    assert parse_address(f"tcp://{host}:7070").host == host


@given(st.text())
def test_any_host_is_looked_up_or_refused(host):
    """What getaddrinfo does with a host before it asks anyone."""
    with contextlib.suppress(InputError):
        parse_address(f"tcp://{host}:7070").host.encode("idna")


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    try:
        parse_address(text)
        check_name(text)
    except InputError:
        pass


def test_lookups_prefer_ipv4_and_go_through_all_addresses(monkeypatch):
    def lookup(host, port, type):
        return [
            (socket.AF_INET6, type, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, type, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    address = Address("localhost", 5)
    assert [resolve(address, i).host for i in range(3)] == ["127.0.0.1", "::1", "127.0.0.1"]


def test_an_unknown_host_is_named(monkeypatch):
    def lookup(host, port, type):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(RemoteError, match=r"'nowhere' cannot be resolved \(Name or service"):
        resolve(Address("nowhere", 5), 0)


def test_names():
    assert routing_id(check_name("pi-1.attic_2"), "ab") == b"pi-1.attic_2/ab"
    for name in ("", "-x", "a/b", "a b", "x" * 64, "ä"):
        with pytest.raises(InputError, match="is no agent name"):
            check_name(name)
