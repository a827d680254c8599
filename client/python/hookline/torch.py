"""Captures as a dataset for torch's DataLoader.

For example:

    source = hookline.Dataset("pile", 256)
    dataset = hookline.torch.ActivationDataset("localhost:7471", ["blocks.3.hook_resid_post"], source)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=None):
        ...  # {"blocks.3.hook_resid_post": (4096, width)}
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch.utils.data

from hookline._arguments import CaptureArguments
from hookline._connect import connect
from hookline._counts import count
from hookline._groups import GroupReader, can_be_continued
from hookline._mixing import MixingBuffer
from hookline._passes import Pass
from hookline._rows import TopK
from hookline._sources import source_batches
from hookline._token_ids import Ids
from hookline.capture import Batch
from hookline.client import Client
from hookline.errors import CancelledError
from hookline.types import CaptureSummary, Dataset, Feed, Recording

if TYPE_CHECKING:
    from typing_extensions import Unpack


# `Client.capture` takes these by itself.
_BATCH_ROWS = 4096
# The sequences that are taken at once. A loaded state continues with the first group of which it holds no rows.
_GROUP_SEQUENCES = 32
# Options with which iterators have no state.
_WITHOUT_STATE = ("pin_memory", "record_as")


class ActivationDataset(torch.utils.data.IterableDataset):  # type: ignore[type-arg, misc, unused-ignore]
    """An IterableDataset of batches `{hook point: (rows, width) tensor}`. Each pass is a capture of its own, or several
    in a row if the server's cap on rows (`--max-rows`) ends a capture before the source.

    address: of the server, or a list of several. The connection is made in the process that iterates, so that the
        dataset can be pickled.
    hook_points, source, options: as for `Client.capture`. An iterator as source lasts for one pass.

    Give it to a DataLoader with `batch_size=None`, since its items are batches already. With `num_workers`, each worker
    captures its own part of the source (a `hookline.Dataset`, or token ids in a list, tensor or array), and budgets
    apply to each worker. With such a source, and without `pin_memory` and `record_as`, its iterators have `state_dict`
    and `load_state_dict`, as torchdata's `StatefulDataLoader` expects: a pass continues in another process with exactly
    the batches that would have come, the shuffle buffer included (`ResumableBatches`).

    Workers can be forked or spawned. gRPC does not survive a fork while a capture is open; forked workers then raise an
    error that says so. `multiprocessing_context="spawn"` always works.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        hook_points: str | Sequence[str],
        source: Any,
        **options: Unpack[CaptureArguments],
    ) -> None:
        super().__init__()
        self.address = address
        self.hook_points = hook_points
        self.source = source
        self.options: CaptureArguments = {**options, "output": "torch"}
        self.summary: CaptureSummary | None = None  # of the last pass that ended in this process

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        client = connect(self.address)
        source = self.source if worker is None else shard(client, self.source, worker.id, worker.num_workers)
        if source is None:
            return iter(())
        if can_be_continued(source) and not any(self.options.get(name) for name in _WITHOUT_STATE):
            return ResumableBatches(client, self, source)
        return self._pass(client, source)

    def _pass(self, client: Client, source: Any) -> Iterator[dict[str, Any]]:
        with client, Pass(client, self.hook_points, source, **self.options) as batches:
            yield from batches
            self.summary = batches.summary


# Describes a hook point's rows: the width with `top_k`, else 0; and tensors with no rows.
_Form = tuple[int, tuple[Any, ...]]


def _tensors_of(rows: Any) -> tuple[Any, ...]:
    return (rows.indices, rows.values) if isinstance(rows, TopK) else (rows,)


def _form_of(rows: Any) -> _Form:
    empty = tuple(part.new_empty(0, part.shape[1]) for part in _tensors_of(rows))
    return (rows.width if isinstance(rows, TopK) else 0), empty


class ResumableBatches(Iterator[Batch]):
    """The batches of one pass over an `ActivationDataset`, each with exactly `batch_rows` rows, the last one with the
    rest. `shuffle_buffer` mixes rows as `hookline.sae_lens` does. If budgets differ, the rows that all hook points have
    come first in a batch.

    `state_dict` holds what later batches depend on: the place in the source, the rows that wait, and the random
    generator. Give it to `load_state_dict` of a new iterator over an equal dataset before its first batch.
    """

    def __init__(self, client: Client, dataset: ActivationDataset, source: Any) -> None:
        options: dict[str, Any] = dict(dataset.options)
        self._client = client
        self._dataset = dataset
        self._provenance = options.get("provenance", False)
        batch_rows = count("batch_rows", options.get("batch_rows", _BATCH_ROWS), 1)
        shuffle_buffer, seed = options.pop("shuffle_buffer", 0), options.pop("seed", 0)
        self._shuffles = shuffle_buffer > 0
        buffer_rows, fraction = (max(shuffle_buffer, batch_rows), 0.5) if self._shuffles else (batch_rows, 0.0)
        self._groups = GroupReader(client, dataset.hook_points, source, _GROUP_SEQUENCES, False, **options)
        # The number of parts is not known yet: `_flat` makes it from the hook points and three columns of provenance.
        self._buffer = MixingBuffer(buffer_rows, batch_rows, fraction, seed, itertools.repeat("cpu"))
        self._identity = {
            "batch_rows": batch_rows,
            "buffer_rows": buffer_rows,
            "sequences": self._groups.sequences,
            "max_activations": options.get("max_activations"),
            "max_activations_by_hook_point": dict(options.get("max_activations_by_hook_point") or {}),
            "top_k": options.get("top_k", 0),
        }
        self._forms: dict[str, _Form] = {}  # of each hook point; none before the first row
        self._rows = 0  # given out
        self._ended = False
        self._failure: Exception | None = None

    def __next__(self) -> Batch:
        while True:
            parts = self._buffer.take()
            if parts is None and self._ended:
                parts = self._buffer.rest()
                if parts is None:
                    self._finish()
            if parts is not None:
                return self._batch(parts)
            self._feed()

    def _finish(self) -> NoReturn:
        self._groups.close()
        self._client.close()
        if self._failure is not None:
            raise self._failure
        self._dataset.summary = self._groups.summary
        raise StopIteration

    def _feed(self) -> None:
        try:
            group = self._groups.next()
        except CancelledError:
            raise
        except Exception as error:  # rows that came before the error are returned first
            self._failure, self._ended = error, True
            self._buffer.flush(shuffled=self._shuffles)
            return
        for piece in group.pieces:
            if not self._forms:  # every hook point has rows in the first piece
                self._forms = {name: _form_of(rows) for name, rows in zip(group.names, piece)}
            self._buffer.push(self._flat(piece))
        self._buffer.serve()
        if group.ends_pass:
            self._ended = True
            self._buffer.flush(shuffled=self._shuffles)

    def _flat(self, piece: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns tensors with one entry per row: for each hook point, whether it has the row, and its values (with
        `top_k`, its indices and values), which are zeros where it has none; then the provenance."""
        flat: list[Any] = []
        count = len(piece[-1])
        for (_, empty), rows in zip(self._forms.values(), piece):
            flat.append(torch.arange(count) < len(rows))
            for part in _tensors_of(rows) if len(rows) else empty:
                missing = count - len(part)
                flat.append(torch.cat([part, part.new_zeros(missing, part.shape[1])]) if missing else part)
        return (*flat, *piece[len(self._forms) :])

    def _batch(self, parts: tuple[Any, ...]) -> Batch:
        left = list(parts)
        batch = Batch()
        batch.first_row = self._rows
        columns, order = left[-3:], None
        held: dict[str, Any] = {}
        for name, (width, _) in self._forms.items():
            has = left.pop(0)
            held[name] = has, TopK(left.pop(0), left.pop(0), width) if width else left.pop(0)
        if not all(bool(has.all()) for has, _ in held.values()):
            hook_points = sum(has.int() for has, _ in held.values())
            order = torch.sort(hook_points, descending=True, stable=True).indices
            columns = [column[order] for column in columns]
        for name, (has, rows) in held.items():
            if bool(has.any()):
                batch[name] = rows if order is None else rows[order][: int(has.sum())]
        if self._provenance:
            batch.sequence, batch.position, batch.token_id = columns
            batch.token_texts = self._groups.token_texts
        self._rows += batch.rows
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "forms": {name: (width, list(empty)) for name, (width, empty) in self._forms.items()},
            "place": self._groups.place(),
            "rows": self._rows,
            "token_texts": dict(self._groups.token_texts) if self._provenance else {},
            "ended": self._ended,
            "buffer": self._buffer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state["identity"].items():
            if self._identity[name] != value:
                raise ValueError(f"state: saved by a pass with {name} {value}, but this one has {self._identity[name]}")
        self._groups.seek(state["place"], state["forms"])
        self._forms = {name: (width, tuple(empty)) for name, (width, empty) in state["forms"].items()}
        self._rows, self._ended = state["rows"], state["ended"]
        self._groups.token_texts.update(state.get("token_texts", {}))
        self._buffer.load_state_dict(state["buffer"])

    def close(self) -> None:
        """Ends the capture. Idempotent."""
        self._groups.close()
        self._client.close()


def shard(client: Client, source: Any, index: int, count: int) -> Any:
    """Part `index` of `count` equal parts of a source; None if it is empty."""
    if count == 1:
        return source
    if isinstance(source, Dataset):
        total = source.sequence_count or _sequences_after(client, source)
        first, end = total * index // count, total * (index + 1) // count
        if first == end:
            return None
        return dataclasses.replace(source, first_sequence=source.first_sequence + first, sequence_count=end - first)
    if isinstance(source, (Feed, Recording)) or hasattr(source, "__next__"):
        raise ValueError(
            f"source: {count} workers cannot share a {type(source).__name__}; use one worker, a hookline.Dataset, or "
            "token ids in a list or tensor"
        )
    sequences: list[Ids] = [ids for batch in source_batches(source) for ids in batch.sequences]
    return sequences[index::count] or None


def _sequences_after(client: Client, source: Dataset) -> int:
    info = client.dataset(source.name)
    length = info.row_length or source.sequence_length
    if length < 1:
        raise ValueError(
            f"sequence_length: dataset {source.name!r} is a stream of tokens; give the length of its sequences"
        )
    return max(0, info.tokens // length - source.first_sequence)
