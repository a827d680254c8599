"""Hookline on a Ray cluster: servers as actors, and activations as a Ray Data source. Needs `ray[data]`.

servers = hookline.ray.serve("/models/pythia-1b", replicas=8)       # one GPU each
dataset = hookline.ray.read_activations(servers, "blocks.3.hook_resid_post", hookline.Dataset("pile", 256))
for batch in dataset.iter_batches(batch_size=4096):  # iter_torch_batches would also need Ray Train's packages
    ...  # {"blocks.3.hook_resid_post": (4096, width), "sequence": ..., "position": ..., "token_id": ...}
servers.drain()
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import pyarrow
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.extensions import ArrowTensorArray

from hookline._block_run import row_bytes_of
from hookline._connect import connect
from hookline._counts import count
from hookline._endpoints import read as _read_endpoints
from hookline._passes import order_of
from hookline._ray_servers import Servers, serve
from hookline._request import CaptureOptions, capture_options
from hookline._sharing import Cut, Sizes, dataset_cuts, token_cuts
from hookline._token_ids import TokenBatch
from hookline.client import Client
from hookline.errors import UnavailableError
from hookline.types import CaptureStarted, Dataset, Feed, Recording, RecordingInfo, Retry, Selection, Text

__all__ = ["Servers", "read_activations", "serve", "write_recordings"]

# The types of `endpoints`: what `serve` returned, the path of an endpoints file, an address or several.
Endpoints = Union[Servers, str, "os.PathLike[str]", Sequence[str]]

_BLOCK_ROWS = 4096
# The number of tasks that a source is cut into if the caller does not give one.
_TASKS = 64
# The options of a capture that a Ray Dataset cannot have.
_REFUSED = ("max_activations_by_hook_point", "top_k", "record_as", "shuffle_buffer")
_MOST = 1 << 62


def addresses_of(endpoints: Endpoints) -> list[str]:
    """Returns the servers' current addresses. A file is read again each time, so that servers can move."""
    if isinstance(endpoints, Servers):
        return endpoints.endpoints
    if isinstance(endpoints, os.PathLike):
        return _read_endpoints(endpoints)
    if isinstance(endpoints, str):
        return [endpoints] if ":" in endpoints and os.sep not in endpoints else _read_endpoints(endpoints)
    return list(endpoints)


def read_activations(
    endpoints: Endpoints,
    hook_points: str | Sequence[str],
    source: Any,
    *,
    block_rows: int = _BLOCK_ROWS,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    ray_remote_args: dict[str, Any] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """Returns a Ray Dataset of activations. It has a column of tensors of shape (width,) for each hook point, and the
    columns `sequence`, `position` and `token_id`. Nothing is run before the Dataset is read.

    Each task streams its part of the source from the servers. A task that Ray runs again yields the same rows, none of
    them twice. If a server dies, no rows are lost as long as another one is there. Row counts are known beforehand,
    except for datasets whose selection leaves out token ids.

    endpoints: what `serve` returned, the path of an endpoints file that all nodes see, or addresses.
    source: `hookline.Dataset`, or token ids in a list, array or tensor, which are sent with the tasks.
    block_rows: the most rows in an Arrow block.
    override_num_blocks, concurrency, ray_remote_args: as for `ray.data.read_datasource`; the first is the number
        of tasks.
    options: `max_activations`, `dtype` ("float32" or "float16": Arrow has no bfloat16), `model`, `selection` and
        `retry`, as for `Client.capture`.
    """
    datasource = ActivationDatasource(endpoints, hook_points, source, block_rows, options)
    arguments: dict[str, Any] = dict(ray_remote_args or {})
    return ray.data.read_datasource(
        datasource,
        override_num_blocks=override_num_blocks or min(_TASKS, datasource.most_tasks),
        concurrency=concurrency,
        **arguments,
    )


class ActivationDatasource(Datasource):  # type: ignore[misc, unused-ignore]
    """The source behind `read_activations`."""

    def __init__(
        self,
        endpoints: Endpoints,
        hook_points: str | Sequence[str],
        source: Any,
        block_rows: int,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        refused = [name for name in _REFUSED if options.get(name)]
        if refused:
            raise ValueError(f"{refused[0]}: a Ray Dataset has whole rows of all hook points in order; leave it out")
        if options.get("deterministic"):
            raise ValueError("deterministic: tasks begin in the middle of a capture's batches; use Client.capture")
        if isinstance(source, (Feed, Recording, Text)) or hasattr(source, "__next__"):
            raise TypeError(
                f"source: {type(source).__name__} cannot be cut into tasks; give a hookline.Dataset, or token ids in a "
                "list, array or tensor"
            )
        self._endpoints = endpoints
        self._options = capture_options(
            hook_points, source, **{**options, "provenance": True, "output": "numpy", "batch_rows": block_rows}
        )
        if self._options.dtype == "bfloat16":
            raise ValueError("dtype: Arrow has no bfloat16; ask for float32 or float16")
        with _connect(endpoints) as client:
            self._started = _granted(client, self._options)
            self._order, self._row_length = None, 0
            if isinstance(source, Dataset):
                self._order, self._row_length = order_of(source, client.dataset(source.name))
        excludes = self._options.selection is not None and bool(self._options.selection.exclude_token_ids)
        if self._order is not None and excludes:
            if self._options.max_activations is not None:
                raise ValueError("max_activations: not exact where a dataset's selection leaves out token ids")
            if source.shuffle_seed is not None:
                raise ValueError("shuffle_seed: a shuffled dataset cannot be cut where token ids are left out")
        self._sequences: int = (
            sum(cut.sequences for cut in self._token_cuts(_MOST))
            if self._order is None
            else len(self._order) - source.skip_sequences
        )

    @property
    def most_tasks(self) -> int:
        return max(1, self._sequences)

    def get_name(self) -> str:
        return "Activations"

    def estimate_inmemory_data_size(self) -> int | None:
        cuts = self._cuts(1)
        if any(cut.rows is None for cut in cuts):
            return None
        return self._within_budget([cut.rows or 0 for cut in cuts]) * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        tasks = []
        row = 0
        limit = self._budget
        for cut in self._cuts(parallelism):
            rows = None if cut.rows is None else max(0, min(cut.rows, limit - row))
            if rows == 0 and row >= limit:
                break
            metadata = BlockMetadata(
                num_rows=rows,
                size_bytes=None if rows is None else rows * self._row_bytes,
                input_files=None,
                exec_stats=None,
            )
            options = dataclasses.replace(self._options, source=None)  # a task has only its own part
            read = functools.partial(_read, self._endpoints, options, self._started, cut, rows)
            tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
            row += rows or 0
        return tasks

    @property
    def _row_bytes(self) -> int:
        return row_bytes_of(self._started) + 8 + 4 + 4  # the latter are the provenance

    @property
    def _budget(self) -> int:
        asked = self._options.max_activations
        return _MOST if asked is None else int(asked)

    def _within_budget(self, rows: Sequence[int]) -> int:
        return min(self._budget, sum(rows))

    def _cuts(self, parallelism: int) -> list[Cut]:
        """Cuts the source into about as many parts as asked for."""
        each = max(1, -(-self._sequences // max(1, parallelism)))
        if self._order is None:
            return [dataclasses.replace(cut, source=_arrays(cut.source)) for cut in self._token_cuts(each)]
        source = self._options.source
        cuts: list[Cut] = []
        # Each task is one part, whose size is limited only in sequences.
        sizes = Sizes(tokens=_MOST, bytes=_MOST, row_bytes=1, blocks=1)
        place = source.skip_sequences
        while place < len(self._order):
            end = min(len(self._order), place + each)
            cut = next(
                dataset_cuts(
                    source, self._order, self._row_length, self._options.selection, _only(sizes, end - place), place
                )
            )
            cuts.append(cut)
            place += cut.sequences
        return cuts

    def _token_cuts(self, each: int) -> Iterator[Cut]:
        sizes = Sizes(tokens=_MOST, bytes=_MOST, row_bytes=1, blocks=1)
        return token_cuts(self._options.source, self._options.selection, _only(sizes, each), 0)


def _arrays(batches: Sequence[TokenBatch]) -> list[np.ndarray[Any, Any]]:
    """Copies the sequences of a part, so that they do not refer to the rest of the source."""
    return [np.asarray(ids, np.uint32) for batch in batches for ids in batch.sequences]


def _only(sizes: Sizes, sequences: int) -> Sizes:
    return dataclasses.replace(sizes, most_sequences=sequences)


def _connect(endpoints: Endpoints) -> Client:
    return connect(addresses_of(endpoints))


def _granted(client: Client, options: CaptureOptions) -> CaptureStarted:
    """Returns a server's grant for such a capture, without running it."""
    asked = dataclasses.replace(options, source=[], max_activations=None)
    with client.run(asked) as capture:
        return capture.started


def _read(
    endpoints: Endpoints, options: CaptureOptions, started: CaptureStarted, cut: Cut, rows: int | None
) -> Iterator[pyarrow.Table]:
    """Yields the rows of a part as tables. Runs in a task."""
    names = [point.name for point in started.hook_points]
    part = dataclasses.replace(options, hook_points=names, source=cut.source, max_activations=rows)
    if cut.mask is not None:
        selection = dataclasses.replace(options.selection or Selection(), sample_rows=0)
        part = dataclasses.replace(part, selection=selection, max_activations=None)
    taken = sent = 0
    with _connect(endpoints) as client, client.run(part) as capture:
        for batch in capture:
            assert batch.sequence is not None  # the request asks for provenance
            columns = [*(batch[name] for name in names), batch.sequence + cut.first_sequence]
            columns += [batch.position, batch.token_id]
            if cut.mask is not None:
                kept = cut.mask[sent : sent + batch.rows]
                sent += batch.rows
                columns = [column[kept] for column in columns]
            columns = [column[: _MOST if rows is None else rows - taken] for column in columns]
            taken += len(columns[0])
            if len(columns[0]):
                yield _table(names, columns)
    if rows is not None and taken != rows:
        raise UnavailableError(f"only {taken} of the {rows} rows of a part of the source came")


def _table(names: Sequence[str], columns: Sequence[np.ndarray[Any, Any]]) -> pyarrow.Table:
    arrays = [ArrowTensorArray.from_numpy(np.ascontiguousarray(column)) for column in columns[: len(names)]]
    arrays += [pyarrow.array(column) for column in columns[len(names) :]]
    return pyarrow.table(arrays, names=[*names, "sequence", "position", "token_id"])


def write_recordings(
    endpoints: Endpoints,
    name: str,
    hook_points: str | Sequence[str],
    source: Dataset,
    *,
    retry: Retry | None = None,
    **options: Any,
) -> list[tuple[str, RecordingInfo]]:
    """Lets every server write its part of a dataset to a recording `NAME-0000`, `NAME-0001`, ... on its own disk, and
    waits until all have ended. Returns each server's address with its recording; together they hold the rows in order.

    The same call again, with the same servers in the same order, joins running recordings, continues those that ended
    early, and returns complete ones.

    options: as for `Client.persist`; `max_activations` is the budget of all parts together.
    """
    if not isinstance(source, Dataset):
        raise TypeError(f"source: {type(source).__name__} is not a hookline.Dataset, which the servers hold")
    budget = options.pop("max_activations", None)
    budget = None if budget is None else count("max_activations", budget, 1)
    if options.get("max_activations_by_hook_point"):
        raise ValueError("max_activations_by_hook_point: cannot be divided among parts; give max_activations")
    addresses = addresses_of(endpoints)
    with connect(addresses) as client:
        order, row_length = order_of(source, client.dataset(source.name))
    each = max(1, -(-(len(order) - source.skip_sequences) // len(addresses)))
    sizes = _only(Sizes(tokens=_MOST, bytes=_MOST, row_bytes=1, blocks=1), each)
    if source.shuffle_seed is not None or source.epochs != 1:
        raise ValueError("source: a shuffled dataset, or one of several epochs, cannot be recorded in parts")
    row, parts = 0, []
    for cut in dataset_cuts(source, order, row_length, options.get("selection"), sizes, source.skip_sequences):
        if budget is not None and cut.rows is None:
            raise ValueError("max_activations: not exact where a dataset's selection leaves out token ids")
        rows = None if budget is None else max(0, min(cut.rows or 0, budget - row))
        if rows == 0:
            break
        row += cut.rows or 0
        parts.append((cut.source, rows))
    persist = ray.remote(num_cpus=0, max_retries=-1)(_persist)
    settled = retry or Retry()
    running = [
        persist.remote(address, f"{name}-{index:04d}", hook_points, part, rows, settled, options)
        for index, (address, (part, rows)) in enumerate(zip(addresses, parts))
    ]
    return list(zip(addresses, ray.get(running)))


def _persist(
    address: str,
    name: str,
    hook_points: str | Sequence[str],
    source: Dataset,
    rows: int | None,
    retry: Retry,
    options: dict[str, Any],
) -> RecordingInfo:
    """Makes one recording. Runs in a task; a server that restarts continues it."""
    failures = 0
    with connect(address) as client:
        while True:
            try:
                with client.persist(name, hook_points, source, max_activations=rows, **options) as progress:
                    for _ in progress:
                        failures = 0
                    return progress.wait()
            except UnavailableError:
                failures += 1
                delay = retry.delay(failures)
                if delay is None:
                    raise
                time.sleep(delay)
