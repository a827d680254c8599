"""Endpoints files: the addresses of servers, written by the script that starts them (deploy/slurm).

Each line is one address, HOST:PORT. Blank lines, and lines that begin with `#`, are ignored. A writer puts the file in
place by renaming it, so that a reader never finds an incomplete file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from hookline import _network

# This is far more than the addresses of a cluster's servers need; a larger file is not an endpoints file.
MAX_BYTES = 1 << 20
# The number is limited because each running capture has a few threads for each server.
MAX_SERVERS = 256
# An address with this prefix is the path of an endpoints file.
_SCHEME = "hookline://"


def read(path: str | os.PathLike[str]) -> list[str]:
    """Returns the addresses in the order of the file, at least one. OSError if the file cannot be read; ValueError,
    which names the wrong line, if it is not an endpoints file."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    name = os.fspath(path)
    if len(data) > MAX_BYTES:
        raise ValueError(f"endpoints: {name!r} has more than {MAX_BYTES} bytes; it should have one HOST:PORT per line")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"endpoints: {name!r} is not ASCII text; it should have one HOST:PORT per line") from None
    addresses = []
    for number, line in enumerate(lines, 1):
        address = line.strip()
        if not address or address.startswith("#"):
            continue
        try:
            _network.check_address(address)
        except ValueError as error:
            raise ValueError(f"endpoints: {name!r}, line {number}: {error}") from None
        addresses.append(address)
    if not addresses:
        raise ValueError(f"endpoints: {name!r} names no server; it should have one HOST:PORT per line")
    return addresses


def addresses(
    address: str | Sequence[str] | None, endpoints: str | os.PathLike[str] | None, secure: bool
) -> str | list[str]:
    """Returns the address of one server, or those of several, from the arguments of `connect`, one of which is None.
    `secure`: the servers show certificates, which cannot tell apart the several addresses of one name."""
    if isinstance(address, str) and address.startswith(_SCHEME):
        endpoints, address = address[len(_SCHEME) :], None
    if endpoints is not None:
        found = read(endpoints)
        return found[0] if len(found) == 1 else _checked("endpoints", found)
    if isinstance(address, (list, tuple)):
        return _checked("address", [one for name in address for one in _resolved(name, secure)])
    assert address is not None
    return address  # type: ignore[return-value]  # the caller refuses anything but a str


def _checked(name: str, found: list[str]) -> list[str]:
    if not found:
        raise ValueError(f"{name}: names no server; give the HOST:PORT of each")
    twice = next((one for index, one in enumerate(found) if one in found[:index]), None)
    if twice is not None:
        raise ValueError(f"{name}: {twice!r} is named twice; name each server once")
    if len(found) > MAX_SERVERS:
        raise ValueError(f"{name}: names {len(found)} servers; a client has at most {MAX_SERVERS}")
    return found


def _resolved(address: str, secure: bool) -> list[str]:
    """Returns all addresses of a name: its IPv4 addresses if it has any, else its IPv6 addresses, since a server often
    has one of each. A name that DNS does not know is left to gRPC, which reports it on use."""
    if not isinstance(address, str) or "://" in address:
        return [address]
    _network.check_address(address)
    host, port = _network.host_and_port(address)
    if port is None or not _network.is_name(host):
        return [address]
    try:
        infos = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        return [address]
    found = [info[4][0] for info in infos if info[0] == socket.AF_INET] or [f"[{info[4][0]}]" for info in infos]
    unique = list(dict.fromkeys(str(one) for one in found))
    if len(unique) < 2:
        return [address]
    if secure:
        raise ValueError(
            f"address: {host!r} has {len(unique)} addresses, which one name in a certificate cannot tell apart; list "
            "the servers by their own names"
        )
    return [f"{one}:{port}" for one in unique]
