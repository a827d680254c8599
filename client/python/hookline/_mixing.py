"""SAELens's mixing buffer, with a state that can be saved."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch

Parts = tuple[Any, ...]


class MixingBuffer:
    """Mixes rows as `sae_lens.training.mixing_buffer` of SAELens 6.54 does: when at least `buffer_rows` rows are there,
    they are shuffled, `mix_fraction` x `buffer_rows` of them stay, and the others leave in batches. `torch.randperm`
    uses a generator of the buffer's own, so that the batches are those of SAELens after `torch.manual_seed` with the
    same seed.

    Rows come as parts: tensors with the same number of entries, which are mixed alike and kept on `devices` (at least
    one for each part). Before `serve` is called again, take all batches.
    """

    def __init__(
        self, buffer_rows: int, batch_rows: int, mix_fraction: float, seed: int, devices: Iterable[Any]
    ) -> None:
        self._buffer_rows = buffer_rows
        self._batch_rows = batch_rows
        self._mix_fraction = mix_fraction
        self._devices = devices
        self._generator = torch.Generator().manual_seed(seed)
        self._pieces: list[Parts] = []  # the rows that wait
        self._count = 0  # the number of rows that wait
        self._serving: deque[Parts] = deque()  # whole batches that leave
        self._served = 0  # rows that have left, of the first entry of `_serving`

    def push(self, parts: Sequence[Any]) -> None:
        placed = (part.to(device, non_blocking=True) for part, device in zip(parts, self._devices))
        self._pieces.append(tuple(placed))
        self._count += len(parts[0])

    def serve(self) -> None:
        """Lets some rows leave if the buffer is full. Call it after every group of rows, even an empty one."""
        if self._count < self._buffer_rows:
            return
        self._merge()
        if self._mix_fraction > 0:
            self._shuffle()
        keep = int(self._buffer_rows * self._mix_fraction)
        batches = max(1, (self._count - keep) // self._batch_rows)
        self._leave(batches * self._batch_rows)

    def flush(self, shuffled: bool) -> None:
        """Lets all whole batches leave, at the end of the source or of a pass."""
        self._merge()
        if shuffled and self._mix_fraction > 0 and self._count:
            self._shuffle()
        self._leave(self._count // self._batch_rows * self._batch_rows)

    def take(self) -> Parts | None:
        """Returns the next batch; None if there is none."""
        if self._serving and self._served == len(self._serving[0][0]):
            self._serving.popleft()
            self._served = 0
        if not self._serving:
            return None
        first = self._served
        self._served += self._batch_rows
        return tuple(part[first : self._served] for part in self._serving[0])

    def rest(self) -> Parts | None:
        """Removes and returns the rows that do not fill a batch; None if there are none."""
        self._merge()
        rest = self._pieces[0] if self._count else None
        self._pieces, self._count = [], 0
        return rest

    def state_dict(self) -> dict[str, Any]:
        self._merge()
        state: dict[str, Any] = {"generator": self._generator.get_state()}
        if self._count:
            state["waiting"] = [part.cpu().clone() for part in self._pieces[0]]
        if self._serving:
            state["serving"] = [torch.cat(parts)[self._served :].cpu() for parts in zip(*self._serving)]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def parts(name: str) -> list[Parts]:
            if name not in state:
                return []
            return [tuple(part.to(device) for part, device in zip(state[name], self._devices))]

        self._generator.set_state(state["generator"])
        self._pieces, self._serving, self._served = parts("waiting"), deque(parts("serving")), 0
        self._count = sum(len(piece[0]) for piece in self._pieces)

    def _merge(self) -> None:
        if len(self._pieces) > 1:
            self._pieces = [tuple(map(torch.cat, zip(*self._pieces)))]

    def _shuffle(self) -> None:
        order = torch.randperm(self._count, generator=self._generator)
        self._pieces = [tuple(part[order.to(part.device)] for part in self._pieces[0])]

    def _leave(self, count: int) -> None:
        if count == 0:
            return
        parts = self._pieces[0]
        self._serving.append(tuple(part[:count] for part in parts))
        self._pieces = [tuple(part[count:] for part in parts)]
        self._count -= count
