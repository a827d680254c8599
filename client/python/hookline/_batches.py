"""Cuts the row stream into aligned batches of exact size, and mixes rows.

Batch k holds the rows k B to k B + B - 1 of every hook point, where B is `batch_rows`. If budgets differ, a hook point
whose budget ends inside a batch has fewer rows in it, and is left out of later batches. Row i of every tensor of a
batch is the same token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hookline._arrays import Allocator, Block
from hookline.errors import InternalError

COLUMNS = (("sequence", np.int64), ("position", np.int32), ("token_id", np.uint32))


@dataclass(frozen=True)
class Layout:
    """The shape of a capture's stream."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    budgets: tuple[int, ...]  # rows granted
    dtype: str
    batch_rows: int
    provenance: bool

    def rows(self, batch: int, hook_point: int) -> int:
        """The number of rows of a hook point in a batch, if the source does not end before."""
        return max(0, min(self.batch_rows, self.budgets[hook_point] - batch * self.batch_rows))

    def most_rows(self, batch: int) -> int:
        """The number of rows in a batch of the hook point that has most."""
        return max(0, min(self.batch_rows, max(self.budgets) - batch * self.batch_rows))


class RawBatch:
    """A batch that is being filled or is full: for each hook point its block (None if its budget is used up) and rows.

    equal_blocks: all blocks have room for the same number of rows, even if a budget ends inside the batch.
    """

    def __init__(self, layout: Layout, index: int, allocator: Allocator, equal_blocks: bool = False) -> None:
        self.index = index
        self.first_row = index * layout.batch_rows
        self.rows = [0] * len(layout.names)
        self.blocks: list[Block | None] = []
        self.pending = 0  # the number of hook points that still have room
        self.most_rows = most_rows = layout.most_rows(index)  # of the hook point that has most
        for hook_point, width in enumerate(layout.widths):
            rows = layout.rows(index, hook_point)
            if rows:
                self.pending += 1
                rows = most_rows if equal_blocks else rows
                self.blocks.append(allocator.allocate(hook_point, self.first_row, rows, width))
            else:
                self.blocks.append(None)
        self.columns: list[np.ndarray[Any, Any]] = (
            [np.empty(most_rows, dtype) for _, dtype in COLUMNS] if layout.provenance else []
        )


class Assembler:
    """Places rows into batches."""

    def __init__(self, layout: Layout, allocator: Allocator) -> None:
        self.layout = layout
        self.received = [0] * len(layout.names)
        self._allocator = allocator
        self._open: dict[int, RawBatch] = {}
        self._next = 0  # the oldest batch not handed out

    def place(self, hook_point: int, rows: int) -> Iterator[tuple[RawBatch, int, int, int]]:
        """Yields where a hook point's next rows go, in order: `(batch, row in its block, row among these, count)`. The
        rows count as written once the next item is asked for."""
        first = self.received[hook_point]
        if first + rows > self.layout.budgets[hook_point]:
            raise InternalError(
                f"{self.layout.names[hook_point]}: {first + rows} rows came, "
                f"but {self.layout.budgets[hook_point]} were granted"
            )
        done = 0
        while done < rows:
            index, offset = divmod(first + done, self.layout.batch_rows)
            batch = self._open.get(index)
            if batch is None:
                batch = self._open[index] = RawBatch(self.layout, index, self._allocator)
            block = batch.blocks[hook_point]
            assert block is not None
            count = min(rows - done, block.rows - offset)
            yield batch, offset, done, count
            done += count
            self.received[hook_point] = first + done
            batch.rows[hook_point] = offset + count
            if offset + count == block.rows:
                batch.pending -= 1

    def write(
        self, hook_point: int, rows: int, values: np.ndarray[Any, Any], columns: Sequence[np.ndarray[Any, Any]]
    ) -> None:
        """Writes the next rows of a hook point, given as raw bytes, and their provenance columns. Copies once."""
        row_bytes = len(values) // rows
        for batch, offset, done, count in self.place(hook_point, rows):
            block = batch.blocks[hook_point]
            assert block is not None
            target = block.raw.reshape(-1).view(np.uint8)
            target[offset * row_bytes : (offset + count) * row_bytes] = values[
                done * row_bytes : (done + count) * row_bytes
            ]
            for batch_column, column in zip(batch.columns, columns):
                batch_column[offset : offset + count] = column[done : done + count]

    def complete(self) -> Iterator[RawBatch]:
        """Yields the batches that are full, oldest first."""
        while self._next in self._open and self._open[self._next].pending == 0:
            yield self._open.pop(self._next)
            self._next += 1

    def finish(self) -> Iterator[RawBatch]:
        """Yields the rest after the stream's end: at most one batch, unless a server misaligned its hook points."""
        for index in sorted(self._open):
            yield self._open.pop(index)


class Shuffler:
    """Mixes rows through a buffer, all hook points alike.

    The rows of each incoming batch replace rows at random places of the full buffer, which then leave. The result
    depends only on the rows, the seed, `buffer_rows` and `batch_rows`. When a hook point's budget ends, the buffer is
    emptied first, so that every batch still holds the same tokens in all of its tensors.
    """

    def __init__(self, layout: Layout, allocator: Allocator, buffer_rows: int, seed: int) -> None:
        self._layout = layout
        self._out = Assembler(layout, allocator)
        self._capacity = max(1, min(buffer_rows, max(layout.budgets)))
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._members: tuple[int, ...] = ()
        self._buffers: dict[int, np.ndarray[Any, Any]] = {}
        self._columns: list[np.ndarray[Any, Any]] = []
        self._filled = 0

    def push(self, batch: RawBatch, start: int = 0) -> Iterator[RawBatch]:
        """Takes a batch from row `start` on. Yields the batches that are ready now."""
        for end in sorted({rows for rows in batch.rows if rows > start}):
            members = tuple(i for i, rows in enumerate(batch.rows) if rows >= end)
            if members != self._members:
                self._drain()
                self._enter(batch, members)
            self._mix(batch, start, end)
            start = end
        yield from self._out.complete()

    def finish(self) -> Iterator[RawBatch]:
        """Yields the rows that are still in the buffer."""
        self._drain()
        yield from self._out.complete()
        yield from self._out.finish()

    def _enter(self, batch: RawBatch, members: tuple[int, ...]) -> None:
        self._members = members
        for member in list(self._buffers):
            if member not in members:
                del self._buffers[member]
        for member in members:
            if member not in self._buffers:
                block = batch.blocks[member]
                assert block is not None
                self._buffers[member] = np.empty((self._capacity, block.raw.shape[1]), block.raw.dtype)
        if batch.columns and not self._columns:
            self._columns = [np.empty(self._capacity, column.dtype) for column in batch.columns]

    def _mix(self, batch: RawBatch, start: int, end: int) -> None:
        while start < end:
            if self._filled < self._capacity:
                count = min(end - start, self._capacity - self._filled)
                places: Any = slice(self._filled, self._filled + count)
                self._filled += count
            else:
                count = min(end - start, self._capacity)
                places = self._random.choice(self._capacity, count, replace=False)
                self._emit(places)
            for member in self._members:
                block = batch.blocks[member]
                assert block is not None
                self._buffers[member][places] = block.raw[start : start + count]
            for buffer, column in zip(self._columns, batch.columns):
                buffer[places] = column[start : start + count]
            start += count

    def _drain(self) -> None:
        if self._filled:
            self._emit(self._random.permutation(self._filled))
        self._filled = 0

    def _emit(self, places: np.ndarray[Any, Any]) -> None:
        for member in self._members:
            for batch, offset, done, count in self._out.place(member, len(places)):
                block = batch.blocks[member]
                assert block is not None
                taken = places[done : done + count]
                # mode="clip" lets take write to `out` directly; the places are in range.
                np.take(self._buffers[member], taken, axis=0, out=block.raw[offset : offset + count], mode="clip")
                for column, buffer in zip(batch.columns, self._columns):
                    np.take(buffer, taken, out=column[offset : offset + count], mode="clip")
