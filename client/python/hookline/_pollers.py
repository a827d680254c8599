"""Replaces gRPC's pollers in a forked child.

Some versions of gRPC, such as Debian's 1.51, keep their epoll set, and the eventfd that wakes its waiters, when they
shut down, and use both again afterwards. A forked child shares these two with its parent: each would take the other's
events, and wait forever for answers that the other was notified of. So while gRPC is shut down, a child gets an epoll
set and an eventfd of its own under the same descriptor numbers.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import sys
from dataclasses import dataclass
from typing import Any

# The libraries that can contain gRPC: grpcio's, the distribution's, and the C++ client's if gRPC is linked into it.
_LIBRARIES = ("cygrpc", "libgrpc", "libhookline_client")
_REGISTRATION = re.compile(r"^tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)", re.MULTILINE)
_EPOLL_CTL_ADD = 1
_EFD_NONBLOCK = 0o4000


class _EpollEvent(ctypes.Structure):
    """The kernel's `struct epoll_event`, which has no padding on x86-64."""

    _pack_ = 1 if os.uname().machine == "x86_64" else 8
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


@dataclass(frozen=True)
class _WakeUp:
    """An eventfd that is registered with an epoll set."""

    epoll: int
    event: int
    events: int
    data: int  # in gRPC's registrations, the address of one of its variables


def renew() -> None:
    """Gives a forked child an epoll set and an eventfd of its own, while gRPC is shut down. Never raises."""
    if not sys.platform.startswith("linux"):
        return  # elsewhere gRPC waits with poll(), which shares nothing
    try:
        wake_ups = _registered_eventfds()
        ranges = _address_ranges() if wake_ups else []
        for wake_up in wake_ups:
            if any(start <= wake_up.data < end for start, end in ranges):
                _replace(wake_up)
    except OSError:  # no /proc, or no descriptor left: the next call of gRPC reports it
        pass


def _registered_eventfds() -> list[_WakeUp]:
    found = []
    for epoll in map(int, os.listdir("/proc/self/fd")):
        if not _is_of_kind(epoll, "eventpoll"):
            continue
        with open(f"/proc/self/fdinfo/{epoll}") as info:
            registrations = _REGISTRATION.findall(info.read())
        for event, events, data in registrations:
            if _is_of_kind(int(event), "eventfd"):
                found.append(_WakeUp(epoll, int(event), int(events, 16), int(data, 16)))
    return found


def _is_of_kind(descriptor: int, kind: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == f"anon_inode:[{kind}]"
    except OSError:  # the descriptor of the directory listing itself, which is closed by now
        return False


def _address_ranges() -> list[tuple[int, int]]:
    """Finds the libraries' code and variables in memory: the parts mapped from their files, and the anonymous part
    behind them."""
    ranges: list[tuple[int, int]] = []
    inside = False
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, _, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in addresses.split("-"))
            named = bool(name) and any(library in os.path.basename(name[0]) for library in _LIBRARIES)
            inside = named or (inside and not name and start == ranges[-1][1])
            if inside:
                ranges.append((start, end))
    return ranges


def _replace(wake_up: _WakeUp) -> None:
    """Puts a new epoll set and a new eventfd in the place of those that are shared with the parent."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    event = libc.eventfd(0, _EFD_NONBLOCK)
    if event < 0:
        raise OSError(ctypes.get_errno(), "eventfd")
    os.dup2(event, wake_up.event, inheritable=False)
    os.close(event)
    with select.epoll() as epoll:
        os.dup2(epoll.fileno(), wake_up.epoll, inheritable=False)
    registration = _EpollEvent(wake_up.events, wake_up.data)
    if libc.epoll_ctl(wake_up.epoll, _EPOLL_CTL_ADD, wake_up.event, ctypes.byref(registration)) != 0:
        raise OSError(ctypes.get_errno(), "epoll_ctl")
