"""Memory that a call offers to a server on the same machine, so that values do not go through a socket.

server/service/shared_memory/SHARED_MEMORY.md specifies the protocol.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from typing import Callable

from hookline import _network
from hookline.errors import InternalError

METADATA = "hookline-shared-memory"
# Less of a larger memory would stay in the processor's cache.
BYTES = 8 << 20

_MAGIC = b"HKLNSHM1"
_KEY_BYTES = 16
# A server answers at once, but another program that took the socket's name may not.
_ANSWER_SECONDS = 2.0


class SharedMemory:
    """The memory that one call shares with the server; `offer` makes it. Not thread-safe."""

    def __init__(self, key: bytes, memory: mmap.mmap, connection: socket.socket) -> None:
        self._key = key
        self._view = memoryview(memory)
        self._connection: socket.socket | None = connection
        self._released: list[int] = []  # released offsets that were not sent to the server yet
        self._told_at = 1  # they are sent when there are this many

    @property
    def metadata(self) -> tuple[str, str]:
        """The entry of a call's metadata that names the memory to the server."""
        return (METADATA, self._key.hex())

    def set_message_bytes(self, max_message_bytes: int) -> None:
        """Takes the message size of `started`: the server cuts the memory into pieces of it, rounded up to pages."""
        piece_bytes = (max_message_bytes + 4095) // 4096 * 4096
        self._told_at = max(1, len(self._view) // piece_bytes // 2) if piece_bytes else 1

    def view(self, offset: int, length: int) -> memoryview:
        """Returns the values of a chunk, valid until they are released."""
        if offset < 0 or offset + length > len(self._view):
            raise InternalError(
                f"the server sent a chunk with data_offset {offset} and {length} bytes, in shared memory of "
                f"{len(self._view)}"
            )
        return self._view[offset : offset + length]

    def release(self, offset: int) -> None:
        """Lets the server reuse the memory of these values. Several offsets are sent at once, since each send wakes
        the server."""
        self._released.append(offset)
        if len(self._released) >= self._told_at and self._connection is not None:
            try:
                self._connection.sendall(struct.pack(f"<{len(self._released)}q", *self._released))
            except OSError:  # the server has already ended the call
                self.close()
            self._released.clear()

    def close(self) -> None:
        """Ends the sharing, after the call. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def offers(address: str, wanted: bool) -> Callable[[], SharedMemory | None]:
    """Returns a function that makes the offer for a call to this address."""
    return (lambda: offer(address)) if wanted else (lambda: None)


def offer(address: str) -> SharedMemory | None:
    """Offers memory to the server at `address`. None if the server is not on this machine or does not accept
    the offer."""
    port = _network.loopback_port(address)
    if port is None or not hasattr(os, "memfd_create"):
        return None
    import fcntl  # not on every system

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(f"\0hookline-{port}")
        descriptor = os.memfd_create("hookline", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            key = os.urandom(_KEY_BYTES)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            connection.sendmsg([_MAGIC + key], [rights])
            if connection.recv(1) == b"\1":
                return SharedMemory(key, mmap.mmap(descriptor, BYTES, prot=mmap.PROT_READ), connection)
        finally:
            os.close(descriptor)
    except OSError:
        pass
    connection.close()
    return None
