"""Captures as a dataset for torch's DataLoader.

For example:

    source = hookline.Dataset("pile", 256)
    dataset = hookline.torch.ActivationDataset("localhost:7471", ["blocks.3.hook_resid_post"], source)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=None):
        ...  # {"blocks.3.hook_resid_post": (4096, width)}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch.utils.data

from hookline import client as _client
from hookline._arguments import CaptureArguments
from hookline._passes import Pass
from hookline._sources import source_batches
from hookline._token_ids import Ids
from hookline.types import CaptureSummary, Dataset, Feed, Recording

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ActivationDataset(torch.utils.data.IterableDataset):  # type: ignore[type-arg, misc, unused-ignore]
    """An IterableDataset of batches `{hook point: (rows, width) tensor}`; each pass is a capture of its own,
    or several one after another where the server's cap on rows (`--max-rows`) ends one before the source.

    address: of the server. The connection is made in the process that iterates, so that the dataset can be pickled.
    hook_points, source, options: as for `Client.capture`. An iterator as source lasts for one pass.

    Give it to a DataLoader with `batch_size=None`: its items are batches already. With `num_workers`, each worker
    captures its own part of the source (a `hookline.Dataset`, or token ids in a list, tensor or array), and budgets
    hold in each worker. Workers may be forked or spawned; forked ones must be so while no capture is open, since gRPC
    does not survive a fork, and say so otherwise: `multiprocessing_context="spawn"` always works.
    """

    def __init__(
        self, address: str, hook_points: str | Sequence[str], source: Any, **options: Unpack[CaptureArguments]
    ) -> None:
        super().__init__()
        self.address = address
        self.hook_points = hook_points
        self.source = source
        self.options: CaptureArguments = {**options, "output": "torch"}
        self.summary: CaptureSummary | None = None  # of the last pass that ended in this process

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with _client.connect(self.address) as client:
            worker = torch.utils.data.get_worker_info()
            source = self.source if worker is None else shard(client, self.source, worker.id, worker.num_workers)
            if source is None:
                return
            with Pass(client, self.hook_points, source, **self.options) as batches:
                yield from batches
                self.summary = batches.summary


def shard(client: _client.Client, source: Any, index: int, count: int) -> Any:
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


def _sequences_after(client: _client.Client, source: Dataset) -> int:
    info = client.dataset(source.name)
    length = info.row_length or source.sequence_length
    if length < 1:
        raise ValueError(
            f"sequence_length: dataset {source.name!r} is a stream of tokens; say at what length to cut it"
        )
    return max(0, info.tokens // length - source.first_sequence)
