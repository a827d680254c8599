"""The gRPC side of a client: channels that are opened on first use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.experimental

from hookline import _lifetime, _network
from hookline._native import NativeClient
from hookline._security import Security
from hookline.errors import CancelledError, FailedPreconditionError, HooklineError, from_rpc_error

_experimental: Any = grpc.experimental  # types-grpcio lacks ChannelOptions
_SINGLE_THREADED_UNARY_STREAM: str = _experimental.ChannelOptions.SingleThreadedUnaryStream

# The largest `max_message_bytes` that a request can ask for.
MAX_RECEIVE_BYTES = 16 << 20


def channel_options(address: str) -> list[tuple[str, int]]:
    """Returns the options of the channels that this package opens."""
    return [
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_send_message_length", -1),
        # The client itself decides when to retry; gRPC's own wait of a second and more would only add to that.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # gRPC also gives up an attempt to connect after this time, and a distant or busy server may need that long.
        ("grpc.min_reconnect_backoff_ms", 20000),
        ("grpc.max_reconnect_backoff_ms", 5000),
        *_network.proxy_options(address),
    ]


def open_channel(
    module: Any,
    address: str,
    credentials: grpc.ChannelCredentials | None,
    security: Security,
    options: list[tuple[str, int]],
) -> Any:
    """Opens a channel of `module`, which is grpc or grpc.aio."""
    if credentials is None and security.tls is not None:
        credentials = security.tls.credentials()
    if credentials is None:
        return module.insecure_channel(address, options=options)
    return module.secure_channel(address, credentials, options=options)


class Connection:
    """A client's channels, opened on first use. Thread-safe."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        functions: Any,
        shared_memory: bool,
        security: Security,
    ) -> None:
        self.address = address
        self.security = security
        self._credentials = credentials
        self._functions = functions  # of the C++ client's library; None: everything goes through grpcio
        self._shared_memory = shared_memory
        self._users = 0  # guarded by _lifetime.lock, like all that follows
        self._closed = False
        self._channel: grpc.Channel | None = None
        self._native: NativeClient | None = None
        _lifetime.connected(self)

    @property
    def is_native(self) -> bool:
        """True if captures are received by the C++ client's library."""
        return self._functions is not None

    def acquire(self) -> None:
        """Begins a use of the channels, which stay open until `release`."""
        _lifetime.check_process()
        with _lifetime.lock:
            self._check_open()
            self._users += 1

    def release(self) -> None:
        with _lifetime.lock:
            self._users = max(0, self._users - 1)  # 0 in a child that was forked in between

    @property
    def channel(self) -> grpc.Channel:
        """grpcio's channel. Only for use between `acquire` and `release`."""
        with _lifetime.lock:
            self._check_open()
            if self._channel is None:
                # The thread that places the rows also reads them: reading on one of grpcio's threads costs a third of
                # the speed.
                options = [*channel_options(self.address), (_SINGLE_THREADED_UNARY_STREAM, 1)]
                self._channel = open_channel(grpc, self.address, self._credentials, self.security, options)
            return self._channel

    @property
    def native(self) -> NativeClient:
        """The library's channel. Only for use between `acquire` and `release`."""
        with _lifetime.lock:
            self._check_open()
            if self._native is None:
                self._native = NativeClient(
                    self._functions, self.address, MAX_RECEIVE_BYTES, self._shared_memory, self.security
                )
            return self._native

    def close(self) -> None:
        """Closes the channels for good. Idempotent."""
        with _lifetime.lock:
            self._closed = True
            self._close_channels()

    def rest(self) -> bool:
        if self._users or not self.is_open():
            return False
        self._close_channels()
        return True

    def abandon(self) -> None:
        channel, self._channel = self._channel, None
        native, self._native = self._native, None
        if channel is not None:
            _lifetime.keep_for_ever(channel)
        if native is not None:
            native.abandon()
        self._users = 0

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("the client is closed; connect again")

    def is_open(self) -> bool:
        return self._channel is not None or self._native is not None

    def end(self, keep: bool) -> None:
        if keep and self._channel is not None:
            _lifetime.keep_for_ever(self._channel)
        self.close()

    def _close_channels(self) -> None:
        channel, self._channel = self._channel, None
        native, self._native = self._native, None
        if channel is not None:
            channel.close()
        if native is not None:
            native.close()


class StreamCall(Iterator[bytes]):
    """A call with one request. The thread that iterates reads the answers. Raises grpc.RpcError."""

    def __init__(self, connection: Connection, method: str, request: bytes) -> None:
        self._connection = connection
        self._reading = threading.Lock()
        self._forked = False
        connection.acquire()
        self._holds = True
        try:
            channel: Any = connection.channel  # messages stay bytes
        except BaseException:  # for example a TLS file that cannot be read, or a client that was closed
            self._release()
            raise
        try:
            self._call: Any = self._start(channel, method, request, connection.security.metadata)
        except ValueError:  # grpcio raises it for a channel that was closed in between
            self._release()
            raise CancelledError("the client was closed") from None
        _lifetime.opened(self)

    def _start(self, channel: Any, method: str, request: bytes, metadata: Any) -> Any:
        return channel.unary_stream(method)(request, metadata=metadata)

    def __next__(self) -> bytes:
        if self._forked:
            raise _lifetime.of_the_parent()
        with self._reading:
            try:
                return bytes(next(self._call))
            except (StopIteration, grpc.RpcError):
                self._release()
                raise

    def exception(self, error: Any) -> HooklineError:
        """Makes the exception for a grpc.RpcError of this call; it names the proxy that the call went through."""
        return _network.name_proxy(from_rpc_error(error), self._connection.address)

    def cancel(self) -> None:
        if not self._forked:
            self._call.cancel()
            self._release()

    def join(self, timeout: float) -> bool:
        inside = not self._reading.acquire(timeout=timeout)
        return not inside  # the lock is kept, so that no thread reads again

    def abandon(self) -> None:
        self._forked = True
        _lifetime.keep_for_ever(self._call)

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._connection.release()
            _lifetime.ended(self)

    def __del__(self) -> None:
        if getattr(self, "_holds", False) and not self._forked and not sys.is_finalizing():
            self.cancel()
