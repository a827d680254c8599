"""A running capture: an iterator of batches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Callable

import numpy as np

from hookline import _lifetime
from hookline._arrays import Allocator, numpy_view
from hookline._batches import COLUMNS, RawBatch, Shuffler
from hookline._notes import notes_of_end, notes_of_start
from hookline._receive import Receiver
from hookline._request import CaptureOptions
from hookline._rows import RowLayout, layouts_of, read_rows
from hookline._session import layout_of
from hookline.errors import CancelledError
from hookline.types import CaptureStarted, CaptureSummary


class Batch(dict[str, Any]):
    """Maps each hook point to its rows: a torch.Tensor or numpy array of shape (rows, width), or with `top_k` a
    `hookline.TopK`. Row i is the same token in each. Rows of float8_e4m3 and int8 come as float32.

    `first_row` is the index of the batch's first row in the capture (with `shuffle_buffer`, in the shuffled order).
    `sequence`, `position` and `token_id` have one entry per row with `provenance`, else they are None. If budgets
    differ, they belong to the longest tensors; shorter tensors hold the first of these rows. `token_text` is how the
    vocabulary spells the tokens.
    """

    first_row: int
    sequence: Any | None = None
    position: Any | None = None
    token_id: Any | None = None
    token_texts: Mapping[int, str] = MappingProxyType({})  # by token id; of this batch's tokens, and others

    @property
    def token_text(self) -> list[str] | None:
        """The token of each row as the vocabulary spells it, cut at 256 bytes; None without provenance, or if the model
        has no tokenizer."""
        if self.token_id is None or not self.token_texts:
            return None
        return [self.token_texts.get(token, "") for token in self.token_id.tolist()]

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state that is pickled beside the rows, with the texts of this batch's tokens only."""
        tokens = self.token_id.tolist() if self.token_id is not None and self.token_texts else []
        return {**self.__dict__, "token_texts": {token: self.token_texts.get(token, "") for token in tokens}}

    @property
    def rows(self) -> int:
        """The number of rows of the longest tensor."""
        return max(map(len, self.values()), default=0)


def finished_batch(
    raw: RawBatch,
    names: Any,
    layouts: Sequence[RowLayout],
    allocator: Allocator,
    start: int,
    token_texts: Mapping[int, str],
) -> Batch:
    """Makes the user's batch from row `start` on. Plain rows are views of the memory that they were received into."""
    batch = Batch()
    batch.first_row = raw.first_row + start
    batch.token_texts = token_texts
    for name, layout, block, rows in zip(names, layouts, raw.blocks, raw.rows):
        if block is not None and rows > start:
            memory = block.first(rows)[start:] if start else block.first(rows)
            if not layout.is_plain:
                is_numpy = isinstance(memory, np.ndarray)
                memory = read_rows(layout, memory, numpy_view(layout.dtype) if is_numpy else None)
            batch[name] = memory
    for (column_name, _), column in zip(COLUMNS, raw.columns):
        setattr(batch, column_name, allocator.column(column[start : max(raw.rows)]))
    return batch


class Finisher:
    """Turns received batches into the user's: mixes rows if asked to, and converts them to the user's types."""

    def __init__(
        self,
        started: CaptureStarted,
        options: CaptureOptions,
        allocator: Allocator,
        token_texts: Mapping[int, str],
    ) -> None:
        layout = layout_of(started, options)
        self._names = layout.names
        self._layouts = layouts_of(started)
        self._allocator = allocator
        self._token_texts = token_texts  # grows while batches come
        self._skip_rows = options.skip_rows
        self._shuffler = (
            Shuffler(layout, allocator, options.shuffle_buffer, options.seed) if options.shuffle_buffer else None
        )

    def push(self, raw: RawBatch) -> Iterator[Batch]:
        start = max(0, self._skip_rows - raw.first_row)
        if start >= max(raw.rows):
            return
        if self._shuffler is None:
            yield self._finished(raw, start)
            return
        for ready in self._shuffler.push(raw, start):
            yield self._finished(ready, 0)

    def finish(self) -> Iterator[Batch]:
        if self._shuffler is not None:
            for ready in self._shuffler.finish():
                yield self._finished(ready, 0)

    def _finished(self, raw: RawBatch, start: int) -> Batch:
        return finished_batch(raw, self._names, self._layouts, self._allocator, start, self._token_texts)


class Capture(_lifetime.Running, Iterator[Batch]):
    """Iterates over a capture's batches, each with exactly `batch_rows` rows, the last one with the rest.

    The server begins when the object is made, and runs at most `prefetch` batches (and its own window) ahead. Leaving
    the loop early is not an error: `close`, the end of a `with` block, or dropping the object cancels the rest.

        with client.capture("blocks.*.hook_resid_post", dataset, max_activations=1_000_000) as capture:
            for batch in capture:
                train(batch["blocks.3.hook_resid_post"])
        print(capture.summary)

    Iterate from one thread at a time.
    """

    def __init__(
        self,
        receiver: Receiver,
        options: CaptureOptions,
        make_allocator: Callable[[CaptureStarted], Allocator],
    ) -> None:
        self._receiver = receiver
        self._options = options
        self._make_allocator = make_allocator
        self._finisher: Finisher | None = None
        self._ready: Iterator[Batch] = iter(())  # batches that the user gets next
        self._ended = False
        self._failure: BaseException | None = None

    @property
    def started(self) -> CaptureStarted:
        """The server's grant. Waits for the server's first answer."""
        return self._receiver.started()

    @property
    def summary(self) -> CaptureSummary | None:
        """Says how the capture ended; None until the last batch has been taken."""
        return self._receiver.summary

    def __next__(self) -> Batch:
        while True:
            for batch in self._ready:
                return batch
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopIteration
            self._receive()

    def _receive(self) -> None:
        """Makes the next batches ready. If Ctrl-C interrupts the wait, the next call waits again."""
        if self._finisher is None:
            started = self._receiver.started()
            _warn(notes_of_start(self._options, started))
            self._finisher = Finisher(started, self._options, self._make_allocator(started), self._receiver.token_texts)
        try:
            raw = self._receiver.next()
        except CancelledError:
            raise
        except Exception as error:  # rows that still wait to be mixed are returned first
            self._failure = error
            self._ready = self._finisher.finish()
            return
        if raw is not None:
            self._ready = self._finisher.push(raw)
        else:
            self._ended = True
            self._ready = self._finisher.finish()
            if self._receiver.summary is not None:
                _warn(notes_of_end(self._options, self._receiver.started(), self._receiver.summary))

    def close(self) -> None:
        """Cancels the rest of the capture. Idempotent."""
        self._receiver.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        receiver = getattr(self, "_receiver", None)
        if receiver is not None and not sys.is_finalizing():
            receiver.close()


def _warn(notes: list[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=4)  # the loop over the capture
