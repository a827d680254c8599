"""Keeps track of the servers of one capture: which can be used now, what runs on each, and which still answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from hookline._agreement import Agreement, is_gone
from hookline._block_run import BlockRun
from hookline._sharing import Sharing
from hookline.errors import CancelledError, HooklineError, UnavailableError
from hookline.types import Retry

if TYPE_CHECKING:
    from hookline.client import Client

_log = logging.getLogger("hookline")


class Server:
    """A server as one capture sees it. Guarded by the capture's lock."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.failures = 0  # since the server last sent a row
        self.retry_at = 0.0  # by the monotonic clock
        self.is_admitted = False  # True if it has answered, and holds the same model and dataset as the others
        self.is_asked = False  # True while it is being asked whether it can be admitted
        self.error: HooklineError | None = None  # the last error


class Fleet:
    """The servers of one capture, and the capture's threads. Thread-safe: the lock of `changed` guards all of this
    object's state, and that of the capture."""

    def __init__(self, clients: Sequence[Client], agreement: Agreement, sharing: Sharing, retry: Retry) -> None:
        self.changed = threading.Condition()
        self.servers = [Server(client) for client in clients]
        self.over = False
        self.failure: Exception | None = None  # ends the capture, whichever block is next
        self.runs: set[tuple[Server, BlockRun]] = set()
        self._agreement = agreement
        self._sharing = sharing
        self._retry = retry
        self._probed: set[Server] = set()
        self._threads: list[threading.Thread] = []

    def join(self, timeout: float | None) -> bool:
        """Waits for the threads. Returns whether they have ended in time."""
        end = None if timeout is None else time.monotonic() + timeout
        others = [thread for thread in list(self._threads) if thread is not threading.current_thread()]
        for thread in others:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def usable(self) -> Server:
        """Waits, under the lock, for a server that can be called now. Raises an error if the capture is over."""
        while True:
            self.check()
            now = time.monotonic()
            admitted = [server for server in self.servers if server.is_admitted]
            for server in admitted:
                if server.retry_at <= now:
                    return server
            self.changed.wait(min((server.retry_at - now for server in admitted), default=None))

    def start(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=f"hookline-{name}", daemon=True)
        with self.changed:
            self._threads = [*(other for other in self._threads if other.is_alive()), thread]
            thread.start()

    def end(self) -> None:
        with self.changed:
            self.over = True
            runs = list(self.runs)
            self.changed.notify_all()
        for _, run in runs:
            run.cancel()

    def wait(self) -> None:
        """Waits until each server has answered or failed to. Raises if none can be used."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self.over
                    or self.failure is not None
                    or all(server.is_admitted or server.error is not None for server in self.servers)
                )
            )
            self.check()
            failed = [server for server in self.servers if not server.is_admitted]
        if len(failed) == len(self.servers):
            assert failed[0].error is not None
            raise failed[0].error  # a wrong address is reported at once, as with one server
        for server in failed:
            _log.warning("%s does not answer; the capture begins without it: %s", server.client.address, server.error)

    def check(self) -> None:
        """Under the lock: raises an error if the capture is over."""
        if self.failure is not None:
            raise self.failure
        if self.over:
            raise CancelledError("the capture was closed")

    def admit(self, server: Server) -> None:
        try:
            self._agreement.ask(server.client, self._sharing.answer_seconds)
            with self.changed:
                server.is_admitted = True
        except Exception as error:
            if isinstance(error, HooklineError) and is_gone(error):
                self.lose(server, error)
            else:
                self.fail(of_server(error, server.client))
        finally:
            with self.changed:
                server.is_asked = False
                self.changed.notify_all()

    def may_go_on(self, server: Server, run: BlockRun, error: HooklineError) -> bool:
        """Returns whether another call can succeed after this error. Notes when the server can be called again."""
        with self.changed:
            if self.over:
                return False
        if run.is_lost:
            self.lose(server, UnavailableError(f"{server.client.address} has sent nothing and does not answer"))
        elif is_gone(error):
            self.lose(server, error)
        elif error.retry_after is not None:
            with self.changed:
                server.retry_at = time.monotonic() + error.retry_after
        else:
            return False
        return True

    def lose(self, server: Server, error: HooklineError) -> None:
        """Stops using a server for a while. The capture fails once all servers have failed too often."""
        with self.changed:
            if not server.is_admitted and not server.is_asked:
                return  # the server's other block has already reported the loss
            server.is_admitted = False
            server.failures += 1
            server.error = error
            delay = min(self._retry.initial_seconds * 2.0 ** (server.failures - 1), self._retry.max_seconds)
            server.retry_at = time.monotonic() + delay
            is_gone_for_good = all(not one.is_admitted and one.failures > self._retry.attempts for one in self.servers)
            if is_gone_for_good:
                self.failure = error
            self.changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def watch(self) -> None:
        """Asks silent servers whether they are still there."""
        silence = self._sharing.silence_seconds
        while True:
            with self.changed:
                if self.changed.wait_for(lambda: self.over, silence / 4):
                    return
                now = time.monotonic()
                silent = {server for server, run in self.runs if now - run.silent_since > silence} - self._probed
                self._probed |= silent
            for server in silent:
                self.start(lambda server=server: self._probe(server), "probe")  # type: ignore[misc]

    def _probe(self, server: Server) -> None:
        is_there = True
        try:
            self._agreement.ask(server.client, self._sharing.answer_seconds)
        except Exception as error:
            is_there = False
            if not is_gone(error):
                self.fail(of_server(error, server.client))
        with self.changed:
            self._probed.discard(server)
            runs = [run for other, run in self.runs if other is server]
        for run in runs:
            run.sign() if is_there else run.give_up()


def of_server(error: Exception, client: Client) -> Exception:
    """Adds the server's address to an error."""
    if not isinstance(error, HooklineError) or client.address in error.message:
        return error
    named = type(error)(f"{error.message} (server {client.address})", error.code, error.field)
    named.retry_after = error.retry_after
    return named
