"""Endpoints files: the addresses of servers, written by whoever starts them (deploy/slurm).

One address a line, HOST:PORT; blank lines, and lines that begin with `#`, count for nothing. A writer puts the file in
place by renaming it, so that a reader finds all of it or none.
"""

from __future__ import annotations

import os

from hookline import _network

# Far more than a cluster has servers; a larger file is not one of these.
MAX_BYTES = 1 << 20


def read(path: str | os.PathLike[str]) -> list[str]:
    """The addresses in the order of the file, at least one. OSError: the file cannot be read; ValueError: it is not an
    endpoints file, with the line that is wrong."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    name = os.fspath(path)
    if len(data) > MAX_BYTES:
        raise ValueError(f"endpoints: {name!r} has more than {MAX_BYTES} bytes; it should have one HOST:PORT a line")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"endpoints: {name!r} is not ASCII text; it should have one HOST:PORT a line") from None
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
        raise ValueError(f"endpoints: {name!r} names no server; it should have one HOST:PORT a line")
    return addresses


def read_one(path: str | os.PathLike[str]) -> str:
    """The address of a file that names one server. ValueError also where it names several: a client has one server."""
    addresses = read(path)
    if len(addresses) > 1:
        raise ValueError(
            f"endpoints: {os.fspath(path)!r} names {len(addresses)} servers and a client connects to one; "
            f"pass one of them as address: {', '.join(addresses[:8])}{', ...' if len(addresses) > 8 else ''}"
        )
    return addresses[0]
