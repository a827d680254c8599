"""Cuts a capture into blocks of whole sequences, each of which any server that holds the model can run by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hookline._counts import count
from hookline._order import SequenceOrder
from hookline._sampling import kept_rows
from hookline._sources import messages, source_batches
from hookline._token_ids import Ids, TokenBatch
from hookline.types import Dataset, Selection

# Blocks that a server runs at a time: while the rows of one are on their way, the device has the next one.
SERVER_BLOCKS = 2
# Blocks that may wait for an earlier one, for each that runs: a server that is twice as slow holds up nobody.
WINDOW_FACTOR = 2
# Rows that may wait in this process for rows of an earlier block, in bytes; but for a block that is one sequence.
REORDER_BYTES = 256 << 20
_LEAST_BLOCK_BYTES = 1 << 20
# Below that many tokens the call costs more than what running blocks side by side gains.
_LEAST_BLOCK_TOKENS = 1 << 11


@dataclass(frozen=True)
class Sharing:
    """The way in which a client shares a capture among several servers.

    block_tokens: the tokens of a block, which one server takes at a time; about two of its batches or more. Blocks of
        wide rows, of short sources and of deterministic captures differ.
    silence_seconds: how long a server that runs a block may send nothing until it is asked whether it is still there.
    answer_seconds: how long a server may take to answer that, or anything else that is asked before a capture: after
        that its blocks run elsewhere.
    """

    block_tokens: int = 1 << 14
    silence_seconds: float = 5.0
    answer_seconds: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_tokens", count("block_tokens", self.block_tokens, 1))
        for name in ("silence_seconds", "answer_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")


@dataclass(frozen=True)
class Cut:
    """A block's part of the source.

    `place` is its first sequence, counted over the source in the order in which it is taken; `sequences` how many it
    has. `rows` are those that its selection keeps, None where only the server can tell. Provenance names a sequence
    `first_sequence` higher than the server that runs the block does. `mask` says which of the server's rows are kept,
    None: all. `limit_rows`: the server must be told to end after so many rows, since its source goes on; 0: it ends by
    itself.
    """

    place: int
    sequences: int
    source: Any
    rows: int | None
    first_sequence: int = 0
    mask: np.ndarray[Any, Any] | None = field(default=None, compare=False)
    limit_rows: int = 0
    order: SequenceOrder | None = None  # where only it tells at which row such a source passes the block's end


@dataclass(frozen=True)
class Sizes:
    """Bounds of a block. `batch_sequences`: those of a batch where blocks must hold whole batches, else 1; 0: they
    must, and the server does not say how many that are."""

    tokens: int
    bytes: int
    row_bytes: int  # of all hook points
    blocks: int  # of which a short source should have as many
    batch_sequences: int = 1
    most_sequences: int = 1 << 62

    def sequences(self, length: int, rows: int, left: int) -> int:
        """Sequences of `length` tokens and `rows` rows to take for a block where `left` are left."""
        if self.batch_sequences == 0:
            return left
        most = min(self.tokens // max(1, length), self.bytes // max(1, rows * self.row_bytes))
        share = max(-(-left // self.blocks), -(-_LEAST_BLOCK_TOKENS // max(1, length)))
        most = min(most, share, self.most_sequences)
        whole = max(1, most // self.batch_sequences) * self.batch_sequences
        return min(left, whole)


def sizes_of(sharing: Sharing, servers: int, row_bytes: int, batch_sequences: int) -> Sizes:
    window = window_blocks(servers)
    return Sizes(
        tokens=sharing.block_tokens,
        bytes=max(_LEAST_BLOCK_BYTES, REORDER_BYTES // window),
        row_bytes=row_bytes,
        blocks=window,
        batch_sequences=batch_sequences,
    )


def window_blocks(servers: int) -> int:
    """Blocks that may be open at a time: those that run, and those whose rows wait for an earlier one."""
    return servers * SERVER_BLOCKS * WINDOW_FACTOR


def dataset_cuts(
    dataset: Dataset, order: SequenceOrder, row_length: int, selection: Selection | None, sizes: Sizes, place: int
) -> Iterator[Cut]:
    """Blocks of a dataset from a place of its order on. `row_length`: tokens of a sequence before the prepended one."""
    length = row_length + (dataset.prepend_token_id is not None)
    is_counted = selection is None or not selection.exclude_token_ids
    rows = length  # at most
    if selection is not None:
        rows = dataclasses.replace(selection, exclude_token_ids=()).rows_of(range(length))
    while place < len(order):
        epoch, index = divmod(place, order.count)
        is_plain = dataset.shuffle_seed is None
        left = order.count - index if is_plain else len(order) - place
        sequences = sizes.sequences(length, rows, left) if rows else left
        if is_plain:
            source = dataclasses.replace(
                dataset,
                first_sequence=order.first + index,
                sequence_count=sequences,
                epochs=1,
                skip_sequences=0,
            )
        else:
            source = dataclasses.replace(dataset, sequence_count=order.count, skip_sequences=place)
        yield Cut(
            place,
            sequences,
            source,
            sequences * rows if is_counted else None,
            limit_rows=0 if is_plain or place + sequences == len(order) else sequences * rows,
            order=None if is_plain or is_counted else order,
        )
        place += sequences


def token_cuts(source: Any, selection: Selection | None, sizes: Sizes, place: int) -> Iterator[Cut]:
    """Blocks of the client's own sequences from the one at this place on. Raises what the source raises.

    Where blocks must hold whole batches they hold whole messages, as a client of one server sends them: a batch never
    spans two, and its shape is that of the longest sequence of its message."""
    first = 0
    for batch in messages(source_batches(source)):
        end = first + len(batch.sequences)
        index = max(0, place - first)
        while first + index < end:
            whole = sizes.batch_sequences != 1
            taken = len(batch.sequences) - index if whole else _block_of(batch.sequences, index, selection, sizes)
            yield _token_cut(batch, index, index + taken, first + index, selection)
            index += taken
        first = end


def _block_of(sequences: list[Ids], index: int, selection: Selection | None, sizes: Sizes) -> int:
    """The number of sequences from this one on that make a block."""
    tokens = rows = taken = 0
    while index + taken < len(sequences) and taken < sizes.most_sequences:
        ids = sequences[index + taken]
        tokens += len(ids)
        rows += len(ids) if selection is None else selection.rows_of(ids)
        if taken and (tokens > sizes.tokens or rows * sizes.row_bytes > sizes.bytes):
            break
        taken += 1
    return taken


def _token_cut(batch: TokenBatch, first: int, end: int, place: int, selection: Selection | None) -> Cut:
    sequences = batch.sequences[first:end]
    part = [TokenBatch(sequences, lambda index: batch.place(first + index))]
    rows = sum(len(ids) if selection is None else selection.rows_of(ids) for ids in sequences)
    mask = None
    if selection is not None and selection.sample_rows:
        # Sampling depends on a sequence's index in the whole source, which a server of a part does not know.
        mask = np.concatenate([kept_rows(selection, place + i, ids) for i, ids in enumerate(sequences)])
    return Cut(place, len(sequences), part, rows, first_sequence=place, mask=mask)
