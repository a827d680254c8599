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

# The blocks that a server runs at a time: the device computes one while the rows of the other are sent.
SERVER_BLOCKS = 2
# The open blocks for each block that runs: with 2, a server that is half as fast as the others does not delay them.
WINDOW_FACTOR = 2
# The bytes of rows that can wait in this process for rows of an earlier block. A block of one sequence can exceed it.
REORDER_BYTES = 256 << 20
_LEAST_BLOCK_BYTES = 1 << 20
# A block of fewer tokens costs more for its call than running blocks in parallel gains.
_LEAST_BLOCK_TOKENS = 1 << 11


@dataclass(frozen=True)
class Sharing:
    """Settings for sharing a capture among several servers.

    block_tokens: the tokens of a block, which is what one server takes at a time; it should be at least about two of
        the server's batches. Blocks of wide rows, of short sources and of deterministic captures have other sizes.
    silence_seconds: how long a server that runs a block can send nothing before it is asked whether it is still there.
    answer_seconds: how long a server can take to answer that question, or any other that is asked before a capture.
        After that time its blocks run elsewhere.
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

    `place` is the index of its first sequence in the order in which the source is taken, and `sequences` how many it
    has. `rows` is how many rows the selection keeps, None if only the server knows. `first_sequence` is added to the
    sequence numbers in the server's provenance. `mask` says which of the server's rows are kept, None: all.
    `limit_rows` is the budget with which the server must end, since its source continues; 0: the source ends with
    the block.
    """

    place: int
    sequences: int
    source: Any
    rows: int | None
    first_sequence: int = 0
    mask: np.ndarray[Any, Any] | None = field(default=None, compare=False)
    limit_rows: int = 0
    order: SequenceOrder | None = None  # set if it is needed to find the row at which the source leaves the block


@dataclass(frozen=True)
class Sizes:
    """The bounds of a block. `batch_sequences`: the sequences of a batch if blocks must hold whole batches, else 1; 0
    if they must but the server does not say how many sequences a batch has."""

    tokens: int
    bytes: int
    row_bytes: int  # of all hook points
    blocks: int  # the least number of blocks to cut a short source into
    batch_sequences: int = 1
    most_sequences: int = 1 << 62

    def sequences(self, length: int, rows: int, left: int) -> int:
        """The number of sequences, of `length` tokens and `rows` rows each, to take for a block when `left` remain."""
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
    """The number of blocks that can be open at a time: running, or waiting with their rows for an earlier block."""
    return servers * SERVER_BLOCKS * WINDOW_FACTOR


def dataset_cuts(
    dataset: Dataset, order: SequenceOrder, row_length: int, selection: Selection | None, sizes: Sizes, place: int
) -> Iterator[Cut]:
    """Cuts a dataset into blocks, from a place in its order on.

    row_length: the tokens of a sequence, without the prepended one.
    """
    length = row_length + (dataset.prepend_token_id is not None)
    is_counted = selection is None or not selection.exclude_token_ids
    rows = length  # of a sequence, at most
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
    """Cuts the client's own sequences into blocks, from the sequence at this place on. Raises what the source raises.

    If blocks must hold whole batches, each block is a whole message, as a client of one server sends it: a batch never
    spans two messages, and its shape is that of the longest sequence in its message."""
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
    """The number of sequences of a block that begins with this one."""
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
        # Sampling depends on a sequence's index in the whole source, which a server that is sent a part does not know.
        mask = np.concatenate([kept_rows(selection, place + i, ids) for i, ids in enumerate(sequences)])
    return Cut(place, len(sequences), part, rows, first_sequence=place, mask=mask)
