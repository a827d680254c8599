"""Memory for rows whose number is only known at the end, which holds each row once.

Appending to a list of tensors and concatenating them holds every row twice for a while. Here the address space for a
whole budget is reserved at once, and pages are allocated as they are written, so that the rows are contiguous from
the start.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np

from hookline._arrays import RAW_DTYPES, Block, array_block

_MAP_NORESERVE = 0x4000 if sys.platform.startswith("linux") else 0


class RowStore:
    """Rows of one hook point, up to `capacity_rows`, received in host memory and returned on `device`.

    Another thread can write to `block`s while the other methods run, since these touch only the rows in
    their arguments.
    """

    def __init__(self, name: str, capacity_rows: int, width: int, dtype: str, device: Any) -> None:
        import torch

        self.width = width
        self._torch = torch
        self._dtype = getattr(torch, dtype)
        self._device = torch.device(device)
        self._moved: Any = None  # the first rows, on the device, if that is not the host
        row_bytes = width * RAW_DTYPES[dtype].itemsize
        size = capacity_rows * row_bytes
        try:
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            raise MemoryError(
                f"{name}: the system has no address space for {capacity_rows} rows of {width} {dtype} ({size} bytes: "
                f"{error}); set max_activations to what memory can hold"
            ) from None
        self._advise("MADV_HUGEPAGE", 0, size)  # allocating a small page costs about as much as filling it
        self._raw: np.ndarray[Any, Any] = np.frombuffer(self._memory, RAW_DTYPES[dtype]).reshape(capacity_rows, width)

    def block(self, first_row: int, rows: int) -> Block:
        """Returns the memory to receive these rows into."""
        raw = self._raw[first_row : first_row + rows]
        return array_block(raw, raw)

    def tensor(self, rows: int) -> Any:
        """Returns the first `rows` rows on the device. On the host this is a view; saving it saves only these rows. To
        another device the rows are moved, and the host keeps no copy."""
        if rows == 0:
            return self._torch.empty(0, dtype=self._dtype, device=self._device)
        moved = 0 if self._moved is None else len(self._moved)
        if self._device.type == "cpu":
            return self._host(0, rows)
        if rows > moved:
            new = self._host(moved, rows).to(self._device)
            self._moved = new if self._moved is None else self._torch.cat([self._moved, new])
            row_bytes = self._raw.strides[0]
            first = -(-moved * row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            self._advise("MADV_DONTNEED", first, rows * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE - first)
        return self._moved

    def _host(self, first: int, end: int) -> Any:
        itemsize = self._raw.itemsize
        flat = self._torch.frombuffer(
            self._memory, dtype=self._dtype, offset=first * self.width * itemsize, count=(end - first) * self.width
        )
        return flat.reshape(end - first, self.width)

    def _advise(self, advice: str, start: int, length: int) -> None:
        if length > 0 and hasattr(mmap, advice):
            try:
                self._memory.madvise(getattr(mmap, advice), start, length)
            except OSError:
                pass  # it is only advice: an older kernel may not know it
