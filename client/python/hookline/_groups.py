"""Reads the rows of a source in groups of whole sequences, starting with any group, pass after pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookline._order import PlaceTracker, SequenceOrder
from hookline._passes import Pass, batch_sequences, order_of
from hookline._sources import source_batches
from hookline._token_ids import is_table
from hookline.types import CaptureStarted, CaptureSummary, Dataset, Feed, Recording

if TYPE_CHECKING:
    from hookline.client import Client


def can_be_continued(source: Any) -> bool:
    """True if a source can be counted and started in the middle: a dataset, or token ids in a list, array or tensor."""
    if isinstance(source, (Feed, Recording)):
        return False
    return isinstance(source, Dataset) or hasattr(source, "__len__")


class _Begin(NamedTuple):
    """Says how to capture a pass from one of its places on."""

    source: Any
    order: SequenceOrder  # of the source
    place: int  # where in that order the capture begins
    shift: int  # is added to a place in the order to get the place in the pass
    first_id: int  # is added to a sequence number in provenance to get the number in the whole source


class _DatasetPart:
    """Sequences of a dataset. A pass over a shuffled dataset takes the epochs after those of the previous pass."""

    def __init__(self, dataset: Dataset, client: Client) -> None:
        order, self._length = order_of(dataset, client.dataset(dataset.name))
        self._dataset = dataclasses.replace(dataset, sequence_count=order.count, skip_sequences=0)
        self._skipped = dataset.skip_sequences
        self.sequences = len(order) - self._skipped  # of a pass

    def limit(self, sequences: int) -> None:
        """Leaves out the last sequences of a pass. Only for a dataset that is taken once and in order."""
        self._dataset = dataclasses.replace(self._dataset, sequence_count=sequences + self._skipped)
        self.sequences = sequences

    def step(self, options: dict[str, Any], started: CaptureStarted) -> int:
        """Returns n if captures that begin at every n-th sequence of a pass have the same rows as one from the
        beginning; 0 if only a capture from the beginning has them."""
        return batch_sequences(self._dataset, self._length, started) if options.get("deterministic") else 1

    @property
    def is_plain(self) -> bool:
        """True if the dataset is taken once and in order."""
        return self._dataset.shuffle_seed is None and self._dataset.epochs == 1

    def begin(self, number: int, place: int) -> _Begin:
        dataset, count = self._dataset, self._dataset.sequence_count
        place += self._skipped
        if self.is_plain:
            first = dataset.first_sequence + place
            source = dataclasses.replace(dataset, first_sequence=first, sequence_count=count - place)
            return _Begin(source, SequenceOrder(first, count - place), 0, place - self._skipped, 0)
        before = 0 if dataset.shuffle_seed is None else number * dataset.epochs  # epochs of earlier passes
        place += before * count
        source = dataclasses.replace(dataset, epochs=before + dataset.epochs, skip_sequences=place)
        order = SequenceOrder(dataset.first_sequence, count, source.epochs, dataset.shuffle_seed)
        return _Begin(source, order, place, -before * count - self._skipped, 0)


class _TokensPart:
    """Sequences of token ids that the client holds."""

    is_plain = True

    def __init__(self, source: Any) -> None:
        self._ids: Any = source
        if not is_table(source):
            self._ids = [ids for batch in source_batches(source) for ids in batch.sequences]
        self.sequences = len(self._ids)

    def limit(self, sequences: int) -> None:
        self.sequences = sequences

    def step(self, options: dict[str, Any], started: CaptureStarted) -> int:
        """Does what a dataset's `step` does. Sampling and batches of token ids depend on where the capture began."""
        selection = options.get("selection")
        samples = selection is not None and selection.sample_rows > 0
        return 0 if samples or options.get("deterministic") else 1

    def begin(self, number: int, place: int) -> _Begin:
        ids = self._ids[place : self.sequences]
        return _Begin(ids, SequenceOrder(0, len(ids)), 0, place, place)


class Group(NamedTuple):
    """The rows of a group of sequences. There are none if the selection keeps none."""

    names: tuple[str, ...]  # of the hook points; empty if there are no rows
    pieces: list[tuple[Any, ...]]  # in order; each has the rows of all hook points, sequence, position, token_id
    ends_pass: bool


class GroupReader:
    """Reads the rows of a source in groups of `group_sequences` sequences. The last group of a pass has the remaining
    sequences or, with `whole_groups`, is left out. Passes follow each other without end. `seek` moves to any group.

    options: as for `Client.capture`. Rows are torch tensors. If budgets differ, the pieces of a hook point end with its
        budget: all parts of a piece begin with the same row, and the provenance belongs to the longest part.
    """

    def __init__(
        self,
        client: Client,
        hook_points: str | Sequence[str],
        source: Any,
        group_sequences: int,
        whole_groups: bool,
        **options: Any,
    ) -> None:
        self._client = client
        self._hook_points = hook_points
        self._options = {**options, "provenance": True, "output": "torch"}
        self._group_sequences = group_sequences
        self._part = _DatasetPart(source, client) if isinstance(source, Dataset) else _TokensPart(source)
        if whole_groups:
            if not self._part.is_plain:
                raise ValueError(
                    "source: SAELens reads a dataset in order, once per pass; leave out shuffle_seed and epochs"
                )
            self._part.limit(self._part.sequences // group_sequences * group_sequences)
        self.sequences = self._part.sequences  # of a pass
        self.groups = -(-self.sequences // group_sequences)  # of a pass
        self.pass_number = 0  # of the next group
        self.group = 0  # the next group's index in its pass
        self.pass_rows = 0  # rows of that pass before the next group
        self._step = 1  # captures can begin at multiples of this many sequences; 0: only at the first
        self._repeated_rows = 0  # those of `pass_rows` that a capture which begins now sends again
        self.summary: CaptureSummary | None = None  # of the last pass
        self.names: tuple[str, ...] = ()  # of the hook points; empty before the first row
        self._pass: Pass | None = None
        self._held: list[tuple[tuple[Any, ...], Any]] = []  # pieces, and the place of each row in the pass
        self.token_texts: dict[int, str] = {}  # by token id, of all rows so far
        self._texts: Any = None  # the running capture's token texts
        self._noted_texts = 0  # how many of them are in `token_texts`

    def place(self) -> dict[str, int]:
        """The place of the next group, for `seek`."""
        return {
            "pass": self.pass_number,
            "group": self.group,
            "pass_rows": self.pass_rows,
            "repeated_rows": self._repeated_rows,
            "step": self._step,
        }

    def seek(self, place: dict[str, int], names: Iterable[str]) -> None:
        """Continues at a `place` that a reader of an equal source returned; `names` are its hook points."""
        self.close()
        self.pass_number, self.group, self.pass_rows = place["pass"], place["group"], place["pass_rows"]
        self._repeated_rows, self._step = place["repeated_rows"], place["step"]
        self.names = tuple(names)

    def close(self) -> None:
        """Cancels the running capture. Idempotent."""
        if self._pass is not None:
            self._pass.close()
            self.summary = self._pass.summary
        self._pass = None
        self._held = []

    def next(self) -> Group:
        end = (self.group + 1) * self._group_sequences
        pieces: list[tuple[Any, ...]] = []
        repeated = 0
        while self._held or self._receive():
            piece, places = self._held.pop()
            count = int(np.searchsorted(places, end))
            if count:
                pieces.append(tuple(part[:count] for part in piece))
                self.pass_rows += count
                repeated += count - int(np.searchsorted(places[:count], self._step_begin(end)))
            if count < len(places):
                self._held.append((tuple(part[count:] for part in piece), places[count:]))
                break
        goes_on = self._step_begin(end) <= self.group * self._group_sequences
        self._repeated_rows = repeated + (self._repeated_rows if goes_on else 0)
        return Group(self.names if pieces else (), pieces, self._count_group())

    def _step_begin(self, place: int) -> int:
        """Returns the place where a capture must begin to have the rows from a place of the pass on."""
        return place // self._step * self._step if self._step else 0

    def _receive(self) -> bool:
        """Takes one more batch; False at the end of the pass."""
        if self._pass is None and not self._open():
            return False
        assert self._pass is not None
        for batch in self._pass:
            self.names = self.names or tuple(batch)
            self._check_step()
            texts = batch.token_texts
            if texts is not self._texts or len(texts) != self._noted_texts:
                self.token_texts.update(texts)
                self._texts, self._noted_texts = texts, len(texts)
            places = self._tracker.places(batch.sequence, batch.position) + self._begin.shift
            first = int(np.searchsorted(places, self.group * self._group_sequences))
            if first == len(places):  # all of these rows have come before
                continue
            rows = (batch.get(name, ()) for name in self.names)
            sequence = torch.as_tensor(batch.sequence) + self._begin.first_id
            parts = (*rows, sequence, batch.position, batch.token_id)
            self._held.append((tuple(part[first:] for part in parts), places[first:]))
            return True
        return False

    def _check_step(self) -> None:
        """Notes where captures can begin, which depends on the server's grant."""
        assert self._pass is not None and self._pass.started is not None
        step = self._part.step(self._options, self._pass.started)
        if step != self._step and self._begin_place > 0:
            raise ValueError(
                f"deterministic: the server runs {step} sequences in a batch (--max-batch-tokens), but the state was "
                f"saved with one that runs {self._step}; their rows may differ"
            )
        self._step = step

    def _open(self) -> bool:
        """Begins to capture the rest of the pass; False if its budget is used up."""
        budget, own = self._options.get("max_activations"), self._options.get("max_activations_by_hook_point") or {}
        left = {name: rows - self.pass_rows for name, rows in own.items()}
        others = None if budget is None else budget - self.pass_rows
        again = self._repeated_rows
        hook_points = self._hook_points
        if self.pass_rows and (own or budget is not None):
            # Hook points whose budget is used up are left out, since a request cannot have a budget of no rows.
            rest = {name: left.get(name, others) for name in self.names}
            hook_points = [name for name, rows in rest.items() if rows is None or rows > 0]
            if not hook_points:
                return False
        options = {
            **self._options,
            "max_activations": None if others is None or others < 1 else others + again,
            "max_activations_by_hook_point": {name: rows + again for name, rows in left.items() if rows > 0},
        }
        self._begin_place = self._step_begin(self.group * self._group_sequences)
        self._begin = self._part.begin(self.pass_number, self._begin_place)
        self._tracker = PlaceTracker(self._begin.order, self._begin.place)
        self._pass = Pass(self._client, hook_points, self._begin.source, **options)
        return True

    def _count_group(self) -> bool:
        """Moves on to the next group. Returns whether this one was the last of its pass."""
        self.group += 1
        if self.group < self.groups:
            return False
        self.close()
        self.pass_number, self.group, self.pass_rows, self._repeated_rows = self.pass_number + 1, 0, 0, 0
        return True
