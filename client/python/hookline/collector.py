"""An activation collector for a model on a server, with the interface of one that hooks a local model."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hookline import _saving
from hookline._arrays import Block, dtype_name
from hookline._counts import count
from hookline._notes import notes_of_end
from hookline._request import CaptureOptions
from hookline._store import RowStore
from hookline._text import escaped
from hookline._token_ids import Ids, TokenBatch
from hookline.errors import InvalidArgumentError
from hookline.model import RemoteModel
from hookline.types import CaptureStarted

# The most batches of tokens that wait to be sent; when there are more, a call of the model waits.
_WAITING_BATCHES = 8
# The rows in one piece that is received into the store: enough that the bookkeeping of a piece does not matter.
_PIECE_ROWS = 1 << 16


class _TokenQueue(Iterator[TokenBatch]):
    """Passes tokens from the model's calls to the capture, which iterates over the queue."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches: deque[TokenBatch] = deque()
        self._closed = False
        self._unread = False

    def put(self, batch: TokenBatch) -> None:
        """Adds a batch, after waiting for room. Once the reader is gone, it does not wait, and the batch is unused."""
        with self._changed:
            self._changed.wait_for(lambda: self._unread or len(self._batches) < _WAITING_BATCHES)
            self._batches.append(batch)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the queue: no more batches will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Says that the reader is gone."""
        with self._changed:
            self._unread = True
            self._changed.notify_all()

    def __next__(self) -> TokenBatch:
        with self._changed:
            self._changed.wait_for(lambda: self._unread or self._closed or bool(self._batches))
            if self._unread or not self._batches:
                raise StopIteration
            batch = self._batches.popleft()
            self._changed.notify_all()
            return batch


class _Stores:
    """An allocator that lets a capture receive into the stores, after the rows that they hold already."""

    def __init__(self, stores: Sequence[RowStore], first_rows: Sequence[int]) -> None:
        self._stores = stores
        self._first_rows = first_rows

    def allocate(self, hook_point: int, first_row: int, rows: int, width: int) -> Block:
        return self._stores[hook_point].block(self._first_rows[hook_point] + first_row, rows)

    def column(self, column: np.ndarray[Any, Any]) -> Any:
        return column


class ActivationCollector:
    """Collects the rows of hook points while `model` is called inside a `with` block.

        model = hookline.connect("localhost:7471").model()
        with hookline.ActivationCollector(model, ["blocks.3.hook_resid_post"], max_activations=100_000) as collector:
            for batch in dataloader:
                model(batch)
        activations = collector.get_activations()  # {"blocks.3.hook_resid_post": (rows, width)}

    A call of the model returns as soon as its tokens are queued, so that forward passes and rows of several batches
    overlap. `counts` says at once how many rows the calls so far yield; `get_activations` waits for these rows. An
    error of the server is raised by the next call, by `get_activations`, or at the end of the block.

    hook_points: names and wildcards.
    max_activations: the most rows for each hook point. If the server's cap on the rows of a capture (`--max-rows`) is
        smaller, several captures follow each other.
    device: where `get_activations` puts the rows. They are received in host memory, which holds each row once.
    save_path: the folder for `save_activations`.
    dtype: of the rows, "float32", "bfloat16" or "float16".

    Use a collector from one thread at a time.
    """

    def __init__(
        self,
        model: RemoteModel,
        hook_points: Sequence[str],
        max_activations: int = 10_000_000,
        device: Any = "cpu",
        save_path: str | Path | None = None,
        *,
        dtype: Any = "float32",
    ) -> None:
        max_activations = count("max_activations", max_activations, 1)
        if isinstance(hook_points, str):
            raise TypeError(f"hook_points: give a list of names, not {hook_points!r} alone")
        self.model = model
        self.hook_points = model.expand(hook_points)
        self.max_activations = max_activations
        self.device = device
        self.save_path = Path(save_path) if save_path else None
        self.counts: dict[str, int] = {hook_point: 0 for hook_point in self.hook_points}
        self._dtype = dtype_name(dtype)
        self._stores: dict[str, RowStore] = {}
        self._running: _Run | None = None

    @property
    def is_full(self) -> bool:
        """True if every hook point has `max_activations` rows."""
        return all(rows >= self.max_activations for rows in self.counts.values())

    @property
    def activations(self) -> dict[str, list[Any]]:
        """The rows of each hook point as a list with one tensor, or an empty list before the first row."""
        return {name: [rows] if len(rows) else [] for name, rows in self.get_activations().items()}

    def __enter__(self) -> ActivationCollector:
        self.model.check(self.hook_points)
        self.model.attach(self)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.model.detach(self)
        if exc_type is None:
            self._finish()
        else:  # Ctrl-C or an error: rows that have not come are not waited for
            self._leave()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a collector cannot be pickled; give its rows (get_activations) to the other process, or give it a model "
            "and make a collector there"
        )

    def take(self, batch: TokenBatch) -> None:
        """Sends these token sequences. Calls of the model call it."""
        if self.is_full:
            return
        self._check(batch)
        first = 0
        while first < len(batch.sequences) and not self.is_full:
            if self._running is None:
                self._running = _Run(self)
            try:
                end = self._running.fitting(batch.sequences, first)
            except ValueError:
                self._leave()
                raise
            if end == first:  # the server's cap is reached: continue with another capture
                self._finish()
                continue
            self._send(self._running, batch, first, end)
            first = end
        if self._running is not None and self._running.failed:
            self._finish()

    def _send(self, run: _Run, batch: TokenBatch, first: int, end: int) -> None:
        # The caller can overwrite its tensor as soon as its call returns.
        sequences: list[Ids] = [np.array(ids, np.uint32) for ids in batch.sequences[first:end]]
        run.send(TokenBatch(sequences, lambda index: batch.place(first + index)))
        rows = sum(map(len, sequences))
        for hook_point, before in self.counts.items():
            self.counts[hook_point] = min(self.max_activations, before + rows)

    def get_activations(self, hook_point: str | None = None) -> dict[str, Any]:
        """Returns the rows of one hook point, or of all: hook point -> (rows, width). Waits for rows still to come."""
        if hook_point is not None and hook_point not in self.counts:
            raise ValueError(
                f"Unknown hook point: {escaped(hook_point)}; this collector has {escaped(', '.join(self.counts))}"
            )
        self._finish()
        return {name: self._rows(name) for name in ([hook_point] if hook_point is not None else self.counts)}

    def save_activations(self, save_path: str | Path | None = None) -> None:
        """Writes the rows of each hook point to `<hook point, dots replaced by underscores>.pt` in the folder, readable
        by `load_activations` and by `torch.load`. The file also holds the hook point's exact name."""
        folder = save_path or self.save_path
        if folder is None:
            raise ValueError("No save path specified")
        activations = self.get_activations()
        for name, path in _saving.save(Path(folder), activations).items():
            print(f"Saved {len(activations[name])} activations for {escaped(name)} to {escaped(str(path))}")

    @staticmethod
    def load_activations(load_path: str | Path, hook_points: Sequence[str] | None = None) -> dict[str, Any]:
        """Reads the files that `save_activations` wrote to a folder, of these hook points or of all: hook point ->
        rows. Also reads files of the original collector, which hooked a local model."""
        import torch

        folder = Path(load_path)
        if not folder.exists():
            raise ValueError(f"Load path does not exist: {folder}")
        activations = {}
        for name, path in _saving.find(folder, hook_points).items():
            if path is None:
                print(f"Warning: file not found: {escaped(str(folder / _saving.file_name(name)))}")
                continue
            activations[name] = torch.load(path, map_location="cpu", weights_only=True)
            print(f"Loaded {len(activations[name])} activations for {escaped(name)}")
        return activations

    def clear(self) -> None:
        """Forgets all rows; the next calls start from none."""
        self._leave()
        self._stores = {}
        self.counts = {hook_point: 0 for hook_point in self.hook_points}

    def start_stores(self, started: CaptureStarted) -> _Stores:
        """Makes room for the rows that a capture was granted."""
        names = [point.name for point in started.hook_points]
        for point in started.hook_points:
            if point.name not in self._stores:
                self._stores[point.name] = RowStore(
                    point.name, self.max_activations, point.width, started.dtype, self.device
                )
        return _Stores([self._stores[name] for name in names], [self.counts[name] for name in names])

    def _rows(self, hook_point: str) -> Any:
        import torch

        store = self._stores.get(hook_point)
        return torch.empty(0, device=self.device) if store is None else store.tensor(self.counts[hook_point])

    def _check(self, batch: TokenBatch) -> None:
        """Raises InvalidArgumentError for tokens that the server would refuse, because there they would also end the
        capture of earlier calls."""
        info = self.model.info
        for index, ids in enumerate(batch.sequences):
            where, field = batch.place(index), f"sequences[{index}]"
            if 0 < info.context_length < len(ids):
                raise InvalidArgumentError(
                    f"{where}: {len(ids)} tokens are more than {info.name}'s context length, {info.context_length}",
                    field=field,
                )
            largest = int(np.argmax(ids))
            if 0 < info.vocabulary_size <= ids[largest]:
                raise InvalidArgumentError(
                    f"{where}, position {largest}: token id {ids[largest]} is not below {info.vocabulary_size}, the "
                    f"size of {info.name}'s vocabulary",
                    field=f"{field}.ids[{largest}]",
                )

    def _finish(self) -> None:
        """Waits for the rows of all calls so far. If it is interrupted, it drops the rows that have not come."""
        run, self._running = self._running, None
        if run is not None:
            try:
                run.finish()
            except BaseException:
                run.close()
                raise
            finally:
                self.counts.update(run.counts)

    def _leave(self) -> None:
        """Keeps the rows that have come and cancels the rest."""
        run, self._running = self._running, None
        if run is not None:
            run.close()
            self.counts.update(run.counts)


class _Run:
    """One capture of a collector: it begins with a call of the model and ends when the rows are asked for."""

    def __init__(self, collector: ActivationCollector) -> None:
        self.tokens = _TokenQueue()
        self.counts = dict(collector.counts)  # includes the rows that have arrived; final after `finish`
        self._sent_rows = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        left = collector.max_activations - min(self.counts.values())
        self._options = CaptureOptions(
            hook_points=list(collector.hook_points),
            source=self.tokens,
            model=collector.model.name,
            max_activations=left,
            dtype=collector._dtype,
            batch_rows=min(left, _PIECE_ROWS),
        )
        self._receiver = collector.model.client.receive(self._options, collector.start_stores)
        try:
            started = self._receiver.started()
        except BaseException:
            self.close()
            raise
        clipped = any(point.clipped for point in started.hook_points)
        self._granted = min(point.max_activations for point in started.hook_points) if clipped else None
        self._names = [point.name for point in started.hook_points]
        self._thread = threading.Thread(target=self._receive, name="hookline-collect", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def fitting(self, sequences: Sequence[Ids], first: int) -> int:
        """Returns the end of the sequences from `first` on that still fit the server's cap on rows; `first` if none
        fits. ValueError if a single sequence exceeds the cap. Sequences beyond `max_activations` are not held back."""
        if self._granted is None:
            return len(sequences)
        rows, end = self._sent_rows, first
        while end < len(sequences) and rows + len(sequences[end]) <= self._granted:
            rows += len(sequences[end])
            end += 1
        if end == first and self._sent_rows == 0:
            raise ValueError(
                f"a sequence has {len(sequences[first])} rows, more than the {self._granted} that the server grants in "
                "a capture (--max-rows); raise --max-rows, or send shorter sequences"
            )
        return end

    def send(self, batch: TokenBatch) -> None:
        """Queues tokens after those of earlier calls."""
        self.tokens.put(batch)
        self._sent_rows += sum(map(len, batch.sequences))

    def finish(self) -> None:
        """Ends the source and waits for the last row. Raises the error with which the capture failed."""
        self.tokens.close()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        if self._receiver.summary is not None:
            for note in notes_of_end(self._options, self._receiver.started(), self._receiver.summary):
                warnings.warn(note, stacklevel=4)

    def close(self) -> None:
        """Cancels the rest; `counts` then covers the rows that have come."""
        self.tokens.abandon()
        self._receiver.cancel()
        if self._thread is not None:
            self._thread.join()
        self._receiver.close()

    def _receive(self) -> None:
        try:
            while True:
                batch = self._receiver.next()
                if batch is None:
                    return
                for name, rows in zip(self._names, batch.rows):
                    self.counts[name] += rows
        except BaseException as error:
            self._error = error
        finally:
            self.tokens.abandon()


def collect_activations_from_dataloader(
    model: RemoteModel,
    dataloader: Iterable[Any],
    hook_points: Sequence[str],
    max_activations: int = 10_000_000,
    device: Any = "cpu",
    save_path: str | Path | None = None,
    verbose: bool = True,
    *,
    dtype: Any = "float32",
) -> dict[str, Any]:
    """Runs the batches of `dataloader` through the model until every hook point has `max_activations` rows or the
    loader ends, and returns the rows of each hook point. The arguments are those of `ActivationCollector`; `verbose`
    shows a progress bar, and with `save_path` the rows are also saved."""
    collector = ActivationCollector(model, hook_points, max_activations, device, save_path, dtype=dtype)
    batches: Any = dataloader
    if verbose:
        from tqdm import tqdm

        batches = tqdm(dataloader, desc="Collecting activations")
    model.eval()
    with collector:
        for batch in batches:
            model(batch)
            if collector.is_full:
                break
    if save_path is not None:
        collector.save_activations()
    return collector.get_activations()
