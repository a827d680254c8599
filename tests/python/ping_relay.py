"""A relay between a client and a server that counts which of the server's HTTP/2 pings the client answers."""

import socket
import threading

_PREFACE_BYTES = 24
_HEADER_BYTES = 9
_PING, _ACK = 6, 1


class PingRelay:
    """Passes on connections to a port of this machine."""

    def __init__(self, port):
        self._port = port
        self._answered = threading.Semaphore(0)
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for end in [self._listener, *self._sockets]:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other side has closed it
                pass
            end.close()

    def wait_for_answers(self, pings, timeout):
        """Waits until the client has answered `pings` more pings. Returns whether it did so in time."""
        while self._answered.acquire(blocking=False):
            pass
        return all(self._answered.acquire(timeout=timeout) for _ in range(pings))

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # the relay ends
                return
            self._sockets += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server, self._count_answers), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, bytearray.clear), daemon=True).start()

    def _pass_on(self, source, target, look):
        seen = bytearray()
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
                seen += data
                look(seen)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one side is gone
            pass

    def _count_answers(self, seen):
        """Removes whole frames from the client's bytes and counts the answers among them."""
        if seen[:3] == b"PRI":
            if len(seen) < _PREFACE_BYTES:
                return
            del seen[:_PREFACE_BYTES]
        while len(seen) >= _HEADER_BYTES:
            frame = _HEADER_BYTES + int.from_bytes(seen[:3], "big")
            if len(seen) < frame:
                return
            if seen[3] == _PING and seen[4] & _ACK:
                self._answered.release()
            del seen[:frame]
