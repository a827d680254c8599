"""Takes care of gRPC when the program forks or ends.

gRPC's threads do not exist in a forked child, and whatever waits for them there waits forever. So gRPC is shut down
before a fork if nothing is running: parent and child then open connections of their own when they next need one, and
wait for answers with pollers of their own. If something is running, the parent continues undisturbed, and calls in the
child raise an error instead of waiting.

At the end of the program everything that is open is cancelled, and its threads are joined while they can still run:
once the interpreter finalises, a thread that holds one of grpcio's locks never releases it, and grpcio's destructors
wait for that lock.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from typing import Any, Protocol

from hookline import _pollers
from hookline.errors import FailedPreconditionError

# gRPC's threads end at once, or after a timer of up to a second if a connection attempt had failed.
_REST_SECONDS = 5.0
# Threads of cancelled calls end at once, but those that run the user's code may not.
_EXIT_SECONDS = 5.0
# The names of gRPC's threads, which the kernel cuts to 15 characters.
_GRPC_THREADS = frozenset(
    "default-executo resolver-execut event_engine grpc_global_tim timer_manager lifeguard grpc_shutdown".split()
)
_FORKED = (
    "this process was forked while its parent was using gRPC, which cannot be used after that; start processes with "
    'multiprocessing_context="spawn" (or "forkserver"), or fork them while no capture is open'
)


class Channels(Protocol):
    """A client's connections."""

    def rest(self) -> bool:
        """Closes open connections unless they are in use; the next use opens new ones. Returns whether it
        closed any."""

    def is_open(self) -> bool:
        """Returns whether there are open connections."""

    def abandon(self) -> None:
        """Forgets the connections in a forked child, without touching them."""

    def end(self, keep: bool) -> None:
        """Closes the connections at the program's end; with `keep` their destructors must not run."""


class Open(Protocol):
    """An object that uses connections for longer than one method call."""

    def cancel(self) -> None:
        """Makes threads that wait for the object return soon. Idempotent, and never blocks."""

    def join(self, timeout: float) -> bool:
        """Waits for the object's threads after `cancel`. Returns whether they have ended in time."""

    def abandon(self) -> None:
        """Forgets everything in a forked child, without touching it."""


class Running:
    """A running call of the server, which cannot be pickled."""

    def __reduce__(self) -> Any:
        kind = type(self).__name__
        raise TypeError(
            f"a running {kind} cannot be pickled; open it in the process that reads it, for example with "
            "hookline.torch.ActivationDataset"
        )


# Guards the variables below and the connections. It is reentrant, since the garbage collector can run anywhere and a
# collected capture releases its connection. It is held during a fork; the child replaces it.
lock = threading.RLock()
_channels: weakref.WeakSet[Channels] = weakref.WeakSet()
_open: weakref.WeakSet[Open] = weakref.WeakSet()
_ending: set[Open] = set()  # strong references: nothing else may hold these objects any more
_grpc_runs_at_fork = False
_others_run = False  # True if gRPC kept running although nothing here uses it: the next fork does not wait for it
_forked_beside_grpc = False


def keep_for_ever(thing: Any) -> None:
    """Keeps an object's destructor from ever running."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def check_process() -> None:
    """Raises FailedPreconditionError in a child that was forked while gRPC was running."""
    if _forked_beside_grpc:
        raise FailedPreconditionError(_FORKED)


def of_the_parent() -> FailedPreconditionError:
    """Returns the error for using a capture, client or call that the parent of this process opened."""
    return FailedPreconditionError("this process was forked from the one that the capture belongs to; open a new one")


def connected(channels: Channels) -> None:
    """Registers the connections of a client."""
    with lock:
        _channels.add(channels)


def opened(thing: Open) -> None:
    """Registers an object that must be cancelled at the program's end and abandoned in a forked child."""
    with lock:
        _open.add(thing)


def ended(thing: Open) -> None:
    """Removes an object that `opened` registered."""
    with lock:
        _open.discard(thing)


def ending(thing: Open) -> None:
    """Registers a call that is over, but whose threads may still need a moment."""
    with lock:
        _ending.difference_update([earlier for earlier in _ending if earlier.join(0)])
        _ending.add(thing)


def _grpc_runs() -> bool:
    """Returns whether gRPC has threads in this process, whether this package or other code started them."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:  # not Linux: only this package's own connections are known
        return any(channels.is_open() for channels in _channels)
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/comm") as name:
                if name.read().rstrip("\n") in _GRPC_THREADS:
                    return True
        except OSError:  # the thread has ended since
            pass
    return False


def _before_fork() -> None:
    global _grpc_runs_at_fork, _others_run
    lock.acquire()
    rested = [channels.rest() for channels in list(_channels)]
    in_use = any(channels.is_open() for channels in _channels)
    may_end = not in_use and (any(rested) or not _others_run)
    end = time.monotonic() + (_REST_SECONDS if may_end else 0)
    _grpc_runs_at_fork = _grpc_runs()
    while _grpc_runs_at_fork and time.monotonic() < end:
        time.sleep(0.002)
        _grpc_runs_at_fork = _grpc_runs()
    _others_run = may_end and _grpc_runs_at_fork


def _after_fork_in_parent() -> None:
    lock.release()


def _after_fork_in_child() -> None:
    global lock, _forked_beside_grpc
    lock = threading.RLock()
    _forked_beside_grpc = _forked_beside_grpc or _grpc_runs_at_fork
    for thing in list(_open):
        thing.abandon()
    _open.clear()
    _ending.clear()
    for channels in list(_channels):
        channels.abandon()
    if not _forked_beside_grpc:
        _pollers.renew()


def _close_all() -> None:
    """Closes everything at the program's end. Threads that are not daemons have ended by now."""
    end = time.monotonic() + _EXIT_SECONDS
    joined = []
    for things in (_open, _ending):  # in this order, since closing the open ones adds to those that are ending
        with lock:
            waited_for = list(things)
        for thing in waited_for:
            thing.cancel()
        joined += [thing.join(max(0.0, end - time.monotonic())) for thing in waited_for]
    for channels in list(_channels):
        channels.end(keep=not all(joined))


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
