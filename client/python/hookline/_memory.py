"""Keeps freed memory mapped.

A capture allocates and frees a message of about a megabyte many hundred times a second. glibc returns blocks of that
size to the kernel when they are freed, and getting fresh pages again costs more than everything else in the receive
path. All threads use one arena, since memory that one thread frees in its own arena is not reused by others, and
messages are freed by other threads than those that allocate them. The setting applies to the whole process, so the
first `connect` makes it, once; HOOKLINE_MALLOC=default in the environment leaves the allocator alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEEP_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more (half of HEAP_MAX_SIZE)

_done = False


def keep_freed_memory() -> bool:
    """Makes freed blocks stay mapped from now on. False if the libc is not glibc, or the environment opts out."""
    global _done
    if _done:
        return True
    if os.environ.get("HOOKLINE_MALLOC", "") == "default" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    if not mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES) and not mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD):
        return False
    _done = bool(mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)) and bool(mallopt(_M_ARENA_MAX, 1))
    return _done
