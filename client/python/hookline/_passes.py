"""One pass over a source, in as many captures as the server's cap on rows requires."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hookline._notes import asked_rows, capped
from hookline._order import PlaceTracker, SequenceOrder
from hookline._request import CaptureOptions, capture_options
from hookline._sources import source_batches
from hookline._summaries import sum_of
from hookline._token_ids import TokenBatch
from hookline.capture import Batch
from hookline.types import CaptureStarted, CaptureSummary, Dataset, DatasetInfo, Feed, Recording, Selection

if TYPE_CHECKING:
    from hookline.client import Client


class Pass(Iterator[Batch]):
    """Iterates over the batches of one pass over a source, whatever the server's `--max-rows` is: when that cap ends a
    capture, another one continues with the next row. A batch is short where a capture ends.

    A deterministic pass over a dataset continues with the whole batch that holds the next row, so that every row is the
    same as without the cap; a pass over token ids continues with the whole sequence.

    `summary` is the sum over the captures that have ended (`_summaries.sum_of`); None until one has. Closing the pass,
    or leaving its `with` block, cancels the rest. A feed cannot be continued: it ends at the cap, with a warning.
    """

    def __init__(self, client: Client, hook_points: str | Sequence[str], source: Any, **options: Any) -> None:
        self._client = client
        self._options = capture_options(hook_points, source, **options)
        self._batches = self._iterate()
        self.summary: CaptureSummary | None = None
        self.started: CaptureStarted | None = None  # of the last capture that has begun
        self.ended_at_cap = False  # True if the cap ended a pass that cannot be continued

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Cancels the rest of the pass. Idempotent."""
        self._batches.close()

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _iterate(self) -> Generator[Batch, None, None]:
        place = _place_of(self._options, self._client)
        options: CaptureOptions | None = place.first(self._options)
        first_row = 0
        while options is not None:
            with self._client.run(options) as capture:
                started = self.started = capture.started
                place.granted(started)
                for batch in capture:
                    place.received(batch)
                    batch.first_row += first_row - options.skip_rows
                    yield self._as_asked(batch)
                self._add_summary(capture.summary, started, options.skip_rows)
            first_row += max(point.max_activations for point in started.hook_points) - options.skip_rows
            options = self._following(place, options, started, capture.summary, first_row)

    def _add_summary(self, summary: CaptureSummary | None, started: CaptureStarted, repeated_rows: int) -> None:
        if self.summary is None or summary is None:
            self.summary = summary or self.summary
            return
        widths = {point.name: started.top_k or point.width for point in started.hook_points}
        self.summary = sum_of(self.summary, summary, widths, repeated_rows)

    def _following(
        self,
        place: _Place,
        options: CaptureOptions,
        started: CaptureStarted,
        summary: CaptureSummary | None,
        rows: int,
    ) -> CaptureOptions | None:
        """Returns the options of the next capture, after `rows` rows of the pass; None if the cap did not end
        this one."""
        names = capped(options, started)
        if not names or summary is None or summary.stop_reason != "budget":
            return None
        if not options.goes_on:
            self.ended_at_cap = True
            return None
        granted = max(point.max_activations for point in started.hook_points)
        source, skip_rows = place.rest(granted)
        if source is None:
            return None
        if skip_rows >= granted:
            raise ValueError(
                f"source: a sequence, or a deterministic batch, has more rows than the {granted} that the server "
                "grants in a capture (--max-rows), so that no capture can get past it; raise --max-rows, or select "
                "fewer rows of a sequence"
            )
        left = {name: asked_rows(self._options, name) for name in names}
        return dataclasses.replace(
            options,
            hook_points=names,
            source=source,
            skip_rows=skip_rows,
            max_activations=None,
            max_activations_by_hook_point={
                name: asked - rows + skip_rows for name, asked in left.items() if asked is not None
            },
        )

    def _as_asked(self, batch: Batch) -> Batch:
        if not self._options.provenance:
            batch.sequence = batch.position = batch.token_id = None
        return batch


class _Place:
    """Keeps track of how far a pass is. This base class is for sources that cannot be continued."""

    def first(self, options: CaptureOptions) -> CaptureOptions:
        """Returns the options of the first capture."""
        return options

    def granted(self, started: CaptureStarted) -> None:
        """Takes note of a capture's grant."""

    def received(self, batch: Batch) -> None:
        """Takes note of a batch."""

    def rest(self, rows: int) -> tuple[Any, int]:
        """Returns the rest of the source after this many rows of a capture, and how many of its first rows have already
        come. It begins with the sequence in which the capture ended, or with an earlier one that must run again with
        it. None if nothing is left."""
        return None, 0


class _DatasetPlace(_Place):
    """Follows the provenance, since only the server knows which rows the exclusion of token ids drops."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._sequence = dataset.first_sequence  # the latest row's sequence
        self._rows = 0  # the number of rows that have come of that sequence

    def first(self, options: CaptureOptions) -> CaptureOptions:
        return dataclasses.replace(options, goes_on=True, provenance=True)

    def received(self, batch: Batch) -> None:
        sequences = np.asarray(batch.sequence)
        last = int(sequences.max())
        if last > self._sequence:
            self._sequence, self._rows = last, 0
        self._rows += int((sequences == self._sequence).sum())

    def rest(self, rows: int) -> tuple[Any, int]:
        first, count = self._dataset.first_sequence, self._dataset.sequence_count
        self._dataset = dataclasses.replace(
            self._dataset,
            first_sequence=self._sequence,
            sequence_count=count - (self._sequence - first) if count else 0,
        )
        return self._dataset, self._rows


class _OrderedPlace(_Place):
    """Follows a dataset that is shuffled, taken several times, or run in deterministic batches, by provenance and the
    server's order."""

    def __init__(self, dataset: Dataset, order: SequenceOrder, length: int, deterministic: bool) -> None:
        self._dataset = dataset
        self._order = order
        self._length = length
        self._deterministic = deterministic

    def first(self, options: CaptureOptions) -> CaptureOptions:
        return dataclasses.replace(options, goes_on=True, provenance=True)

    def granted(self, started: CaptureStarted) -> None:
        step = batch_sequences(self._dataset, self._length, started) if self._deterministic else 1
        self._tracker = PlaceTracker(self._order, self._dataset.skip_sequences, step)

    def received(self, batch: Batch) -> None:
        self._tracker.places(batch.sequence, batch.position)

    def rest(self, rows: int) -> tuple[Any, int]:
        self._dataset = dataclasses.replace(self._dataset, skip_sequences=self._tracker.step_begin)
        return self._dataset, self._tracker.rows


class _Logged(NamedTuple):
    batch: TokenBatch
    first_sequence: int
    first_row: int  # of the pass
    end_row: int


class _TokensPlace(_Place):
    """Keeps the batches whose rows have not all come. One capture at a time reads, on a thread of its own; one that is
    over may still be waiting for the source."""

    def __init__(self, source: Any, selection: Selection | None) -> None:
        self._selection = selection
        self._lock = threading.Lock()  # held while the user's code runs
        self._batches = source_batches(source)
        self._log: deque[_Logged] = deque()
        self._forgotten = 0  # the number of batches that were dropped from the log
        self._end_sequence = self._end_row = 0  # of the log
        self._done_rows = 0  # the rows of the pass that have come
        self._capture_row = self._capture_sequence = 0  # where the capture began

    def first(self, options: CaptureOptions) -> CaptureOptions:
        return dataclasses.replace(options, goes_on=True, source=self._read(0, 0))

    def received(self, batch: Batch) -> None:
        self._done_rows += batch.rows
        if batch.sequence is not None and self._capture_sequence:
            batch.sequence = batch.sequence + self._capture_sequence

    def rest(self, rows: int) -> tuple[Any, int]:
        row = self._capture_row + rows
        with self._lock:
            while row >= self._end_row:
                if not self._pull():
                    return None, 0
            index, part, skip_rows = self._find(row)
            entry, number = self._log[index], self._forgotten + index
        if skip_rows and self._selection is not None and self._selection.sample_rows:
            # Sampling depends on a sequence's index in the capture, so the rest of this sequence cannot be asked for.
            row += self._rows_of(entry.batch.sequences[part]) - skip_rows
            part, skip_rows = part + 1, 0
        self._capture_sequence = entry.first_sequence + part
        self._capture_row = row - skip_rows
        return self._read(number, part), skip_rows

    def _find(self, row: int) -> tuple[int, int, int]:
        """Finds a row of the pass: the batch in the log, the sequence in the batch, and the row in the sequence."""
        for index, entry in enumerate(self._log):
            first = entry.first_row
            for part, ids in enumerate(entry.batch.sequences if row < entry.end_row else ()):
                end = first + self._rows_of(ids)
                if row < end:
                    return index, part, row - first
                first = end
        raise AssertionError(f"row {row} is not in the log")

    def _rows_of(self, ids: Any) -> int:
        return len(ids) if self._selection is None else self._selection.rows_of(ids)

    def _read(self, number: int, part: int) -> Iterator[TokenBatch]:
        """Yields the source from sequence `part` of batch `number` on."""
        while True:
            with self._lock:
                number = max(number, self._forgotten)  # batches without rows can be dropped before they are read
                if number - self._forgotten == len(self._log) and not self._pull():
                    return
                batch = self._log[number - self._forgotten].batch
            yield _from(batch, part)
            number, part = number + 1, 0

    def _pull(self) -> bool:
        """Under the lock: reads one more batch. False at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        while self._log and self._log[0].end_row <= self._done_rows:
            self._log.popleft()
            self._forgotten += 1
        end_row = self._end_row + sum(map(self._rows_of, batch.sequences))
        self._log.append(_Logged(batch, self._end_sequence, self._end_row, end_row))
        self._end_sequence += len(batch.sequences)
        self._end_row = end_row
        return True


def _from(batch: TokenBatch, part: int) -> TokenBatch:
    """Returns a batch from the sequence with this index on."""
    return TokenBatch(batch.sequences[part:], lambda index: batch.place(part + index))


def order_of(dataset: Dataset, info: DatasetInfo) -> tuple[SequenceOrder, int]:
    """Returns the order in which the server takes a dataset's sequences, and their tokens without the prepended one."""
    length = info.row_length or dataset.sequence_length
    if length < 1:
        raise ValueError(
            f"sequence_length: dataset {dataset.name!r} is a stream of tokens; give the length of its sequences"
        )
    count = max(0, info.tokens // length - dataset.first_sequence)
    if dataset.sequence_count:
        count = min(count, dataset.sequence_count)
    return SequenceOrder(dataset.first_sequence, count, dataset.epochs, dataset.shuffle_seed), length


def batch_sequences(dataset: Dataset, length: int, started: CaptureStarted) -> int:
    """The number of sequences of a dataset that a deterministic capture runs in a batch.

    length: the tokens of each, without the prepended one.
    """
    return max(1, started.batch_tokens // (length + (dataset.prepend_token_id is not None)))


def _place_of(options: CaptureOptions, client: Client) -> _Place:
    if options.record_as or isinstance(options.source, (Feed, Recording)):
        return _Place()
    if isinstance(options.source, Dataset):
        dataset = options.source
        is_plain = dataset.shuffle_seed is None and dataset.epochs == 1 and dataset.skip_sequences == 0
        if is_plain and not options.deterministic:
            return _DatasetPlace(dataset)
        order, length = order_of(dataset, client.dataset(dataset.name))
        return _OrderedPlace(dataset, order, length, options.deterministic)
    return _TokensPlace(options.source, options.selection)
