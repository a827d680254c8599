"""Calls in which the client sends more after its request."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from hookline import _lifetime
from hookline._connection import Connection, StreamCall


class _Outbox:
    """Queues messages for grpcio, which takes them on a thread of its own."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, message: bytes) -> None:
        self._messages.put(message)

    def messages(self) -> Iterator[bytes]:
        self._thread = threading.current_thread()
        while (message := self._messages.get()) is not None:
            yield message

    def cancel(self) -> None:
        """Ends `messages` after the queued ones."""
        self._messages.put(None)

    def join(self, timeout: float) -> bool:
        """Waits for grpcio's thread after `cancel`. Returns whether the thread has ended in time."""
        end = time.monotonic() + timeout
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(max(0.0, end - time.monotonic()))
        return not thread.is_alive()

    def abandon(self) -> None:
        pass


class TwoWayCall(StreamCall):
    """A call with messages in both directions. The thread that iterates reads the answers. Raises grpc.RpcError."""

    def __init__(self, connection: Connection, method: str, request: bytes) -> None:
        self._outbox = _Outbox()
        self._outbox.put(request)
        super().__init__(connection, method, request)

    def _start(self, channel: Any, method: str, request: bytes, metadata: Any) -> Any:
        return channel.stream_stream(method)(self._outbox.messages(), metadata=metadata)

    def send(self, message: bytes) -> None:
        """Queues a message. It is dropped if the call is over."""
        self._outbox.put(message)

    def _release(self) -> None:
        if self._holds:
            self._outbox.cancel()
            _lifetime.ending(self._outbox)
        super()._release()
