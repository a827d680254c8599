"""The order in which a server takes the sequences of a dataset, as server/capture/dataset_range.h specifies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 6


def mix(x: int) -> int:
    """splitmix64's output function."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def shuffled(size: int, seed: int, index: int) -> int:
    """The number at `index` of a permutation of 0 to size - 1, which is a Feistel network with cycle walking."""
    half = 1
    while 1 << (2 * half) < size:
        half += 1
    half_mask = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & half_mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix(seed ^ mix((right + (number << 56)) & _MASK)) & half_mask)
        value = left << half | right
        if value < size:
            return value


def shuffled_rows(size: int, seed: int, first: int, count: int) -> np.ndarray[Any, Any]:
    """Computes `shuffled` for the indices `first` to `first + count - 1`, all at once."""
    half = 1
    while 1 << (2 * half) < size:
        half += 1
    half_mask = np.uint64((1 << half) - 1)
    values = np.arange(first, first + count, dtype=np.uint64)
    outside = np.arange(count)  # the indices whose value is not below `size` yet
    while len(outside):
        left, right = values[outside] >> np.uint64(half), values[outside] & half_mask
        for number in range(_ROUNDS):
            mixed = _mix_all(np.uint64(seed & _MASK) ^ _mix_all(right + np.uint64((number << 56) & _MASK)))
            left, right = right, left ^ (mixed & half_mask)
        values[outside] = left << np.uint64(half) | right
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)


def _mix_all(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Computes `mix` of each number; uint64 arrays wrap around as `mix` does."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class SequenceOrder:
    """Sequences `first` to `first + count - 1` of a dataset, `epochs` times, shuffled unless the seed is None."""

    first: int
    count: int
    epochs: int = 1
    shuffle_seed: int | None = None

    def __len__(self) -> int:
        return self.count * self.epochs

    def __getitem__(self, place: int) -> int:
        """The sequence of the dataset that comes at this place, from 0."""
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} is not below {len(self)}")
        epoch, index = divmod(place, self.count)
        if self.shuffle_seed is None:
            return self.first + index
        return self.first + shuffled(self.count, mix((mix(self.shuffle_seed) + epoch) & _MASK), index)


class PlaceTracker:
    """Finds the places in an order of the rows of a capture that begins at `place`, from the rows' provenance.
    Rows come in the order, but some sequences may have none. `step` places form a group, like a batch of a
    deterministic capture."""

    def __init__(self, order: SequenceOrder, place: int, step: int = 1) -> None:
        self._order = order
        self._begin = place
        self._step = step
        self.place = place  # of the latest row's sequence
        self._position = -1  # of the latest row; -1 before the first
        self.rows = 0  # the number of rows since `step_begin`

    @property
    def step_begin(self) -> int:
        """The first place in the group of `place`."""
        return self.place - (self.place - self._begin) % self._step

    def places(self, sequences: Any, positions: Any) -> np.ndarray[Any, Any]:
        """Returns the place of each of the next rows, ascending."""
        sequences, positions = np.asarray(sequences), np.asarray(positions)
        # A sequence ends where another begins, or where the same one begins again in the next epoch.
        begins = np.flatnonzero((sequences[1:] != sequences[:-1]) | (positions[1:] <= positions[:-1])) + 1
        places = np.empty(len(sequences), np.int64)
        for first, end in zip([0, *begins], [*begins, len(sequences)]):
            goes_on = sequences[first] == self._order[self.place] and positions[first] > self._position
            if first > 0 or not goes_on:
                self._advance(int(sequences[first]))
            self.rows += int(end - first)
            places[first:end] = self.place
        self._position = int(positions[-1])
        return places

    def _advance(self, sequence: int) -> None:
        before = self.step_begin
        if self._position >= 0 or self.rows:
            self.place += 1
        while self._order[self.place] != sequence:
            self.place += 1
        if self.step_begin != before:
            self.rows = 0
