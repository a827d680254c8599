"""Keeps a TCP port for servers that come and go, so that no other program gets it meanwhile."""

import socket


class HeldPort:
    """A port of 127.0.0.1 at which nobody listens, until a server of ours does.

    A bound socket allows its address to be used again. So a server can bind the same port, but the kernel gives it to
    no program that asks for any port.
    """

    def __init__(self):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.number}"

    def __del__(self):
        self._socket.close()
