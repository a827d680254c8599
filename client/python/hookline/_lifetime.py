"""Looks after gRPC when the program forks or ends.

gRPC's threads do not exist in a forked child, and whatever waits for them there waits for ever. So gRPC is put to rest
before a fork wherever nothing is running: parent and child then open connections of their own when they next need one,
and wait for their answers by pollers of their own.
Where something is running, the parent goes on undisturbed, and the child is told so instead of waiting.

At the end of the program whatever is open is cancelled and its threads are joined while they can still run: once the
interpreter finalises, a thread that holds one of grpcio's locks never gives it back, and grpcio's destructors wait for
it.
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

# gRPC's threads end at once, or after a timer of up to a second where a connection attempt had failed.
_REST_SECONDS = 5.0
# Threads of cancelled calls end at once; those that run the user's code may not.
_EXIT_SECONDS = 5.0
# The kernel keeps their names so, 15 characters long.
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
        """Closes them if nobody uses them; the next use opens others. Whether there were any."""

    def is_open(self) -> bool:
        """Returns whether there are any."""

    def abandon(self) -> None:
        """Lets go of them without touching them, in a forked child."""

    def end(self, keep: bool) -> None:
        """Closes them at the program's end; with `keep` their destructors must not run."""


class Open(Protocol):
    """An object that uses connections for longer than one method's time."""

    def cancel(self) -> None:
        """Makes what waits for it return soon. Idempotent, and never blocks."""

    def join(self, timeout: float) -> bool:
        """Waits for its threads after `cancel`; whether they have ended in time."""

    def abandon(self) -> None:
        """Lets go of everything without touching it, in a forked child."""


class Running:
    """A call of the server that goes on, which no pickle can take along."""

    def __reduce__(self) -> Any:
        kind = type(self).__name__
        raise TypeError(
            f"a running {kind} cannot be pickled; open it in the process that reads it, for example with "
            "hookline.torch.ActivationDataset"
        )


# Guards what follows and the connections. Reentrant, since a collected capture gives back its connection wherever the
# collector happens to run. Held over a fork, and another one in the child.
lock = threading.RLock()
_channels: weakref.WeakSet[Channels] = weakref.WeakSet()
_open: weakref.WeakSet[Open] = weakref.WeakSet()
_ending: set[Open] = set()  # also where nobody else holds them any more
_grpc_runs_at_fork = False
_others_run = False  # gRPC went on running although nothing here uses it: the next fork does not wait for it
_forked_beside_grpc = False


def keep_for_ever(thing: Any) -> None:
    """Keeps the destructor of something from ever running."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def check_process() -> None:
    """FailedPreconditionError in a child that was forked while gRPC was running."""
    if _forked_beside_grpc:
        raise FailedPreconditionError(_FORKED)


def of_the_parent() -> FailedPreconditionError:
    """The error for the use of a capture that the parent of this process opened."""
    return FailedPreconditionError("this process was forked from the one that the capture belongs to; open another")


def connected(channels: Channels) -> None:
    """Notes the connections of a client."""
    with lock:
        _channels.add(channels)


def opened(thing: Open) -> None:
    """Notes what has to be cancelled at the program's end and abandoned in a forked child."""
    with lock:
        _open.add(thing)


def ended(thing: Open) -> None:
    """Forgets it."""
    with lock:
        _open.discard(thing)


def ending(thing: Open) -> None:
    """Notes a call that is over, but whose threads may need a moment more."""
    with lock:
        _ending.difference_update([earlier for earlier in _ending if earlier.join(0)])
        _ending.add(thing)


def _grpc_runs() -> bool:
    """Returns whether gRPC has threads in this process, this package's or anybody's."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:  # not Linux: what is known here must do
        return any(channels.is_open() for channels in _channels)
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/comm") as name:
                if name.read().rstrip("\n") in _GRPC_THREADS:
                    return True
        except OSError:  # it has ended since
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
    for things in (_open, _ending):  # in this order: what is open ends in calls that are ending
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
