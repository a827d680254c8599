"""A capture over several servers: free servers run its blocks, and the rows are put back into order."""

from __future__ import annotations

import dataclasses
import heapq
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Callable

from hookline import _calls, _lifetime
from hookline._agreement import Agreement
from hookline._arrays import Allocator
from hookline._batches import Assembler, RawBatch
from hookline._block_run import BlockRun, Piece, SharedBlock, row_bytes_of
from hookline._fleet import Fleet, Server, of_server
from hookline._order import SequenceOrder
from hookline._passes import batch_sequences, order_of
from hookline._receive import Pipe
from hookline._request import CaptureOptions
from hookline._session import MAX_TOKEN_TEXTS, check_same_capture, layout_of
from hookline._shared_place import SharedPlace
from hookline._sharing import SERVER_BLOCKS, Cut, Sharing, dataset_cuts, sizes_of, token_cuts, window_blocks
from hookline._summaries import sum_of
from hookline.errors import (
    CancelledError,
    FailedPreconditionError,
    HooklineError,
)
from hookline.types import CaptureStarted, CaptureSummary, Dataset, HookPointGrant, HookPointSummary, Retry

if TYPE_CHECKING:
    from hookline.client import Client

# The most pieces of the due block that wait for the consumer. Later blocks are bounded by their size.
_DUE_PIECES = 8
# The longest wait for the last block's summary after the budgets are full.
_SUMMARY_SECONDS = 2.0


class SharedReceiver:
    """A `Receiver` over several servers."""

    def __init__(
        self,
        clients: Sequence[Client],
        options: CaptureOptions,
        make_allocator: Callable[[CaptureStarted], Allocator],
        sharing: Sharing,
        resume_token: bytes,
    ) -> None:
        self._options = options
        self._make_allocator = make_allocator
        self._sharing = sharing
        source = options.source
        self._agreement = Agreement(options.model, source.name if isinstance(source, Dataset) else None)
        self._fleet = Fleet(clients, self._agreement, sharing, options.retry or Retry(attempts=0))
        self._place = SharedPlace(options, resume_token)
        self._pipe = Pipe(options.prefetch)
        self._changed = self._fleet.changed  # its lock guards the fields below, except those that only `_run` uses
        self._blocks: dict[int, SharedBlock] = {}  # the open blocks, by number
        self._pending: list[int] = []  # a heap of the open blocks that no server runs
        self._due = 0  # the block whose rows are next
        self._has_all_blocks = False
        self._reruns = 0
        self._delivered = 0  # rows of the hook point that has most, from the start of the capture
        self._started: CaptureStarted | None = None
        self._granted_by = ""
        self._is_started = threading.Event()
        self._closed = threading.Event()
        self._forked = False
        self.summary: CaptureSummary | None = None
        self.token_texts: dict[int, str] = {}
        self._sum: CaptureSummary | None = None
        self._assembler: Assembler | None = None
        _lifetime.opened(self)
        self._fleet.start(self._run, "shared")

    # The methods for the consumer.

    def started(self) -> CaptureStarted:
        self._check_process()
        self._is_started.wait()
        if self._started is None:
            raise self._fleet.failure or CancelledError("the capture was closed before it started")
        return self._started

    def next(self) -> RawBatch | None:
        self._check_process()
        return self._pipe.get()

    @property
    def first_row(self) -> int:
        """The first row of the capture that this receiver returns; above 0 after a resume."""
        return self._place.row

    def token_at(self, row: int) -> bytes:
        """Returns the token that resumes the capture after its first `row` rows, which the consumer has."""
        return self._place.token(self.started(), self._agreement, row)

    def cancel(self) -> None:
        self._closed.set()
        self._fleet.end()

    def close(self) -> None:
        if self._forked:
            return
        self._pipe.abort(CancelledError("the capture was closed"))
        self.cancel()
        self._fleet.join(None)

    def join(self, timeout: float) -> bool:
        self._pipe.abort(CancelledError("the capture was closed"))
        return self._fleet.join(timeout)

    def abandon(self) -> None:
        self._forked = True

    def _check_process(self) -> None:
        if self._forked:
            raise _lifetime.of_the_parent()

    # The thread that delivers.

    def _run(self) -> None:
        try:
            self._fleet.start(self._fleet.watch, "watch")
            for server in self._fleet.servers:
                for _ in range(SERVER_BLOCKS):
                    self._fleet.start(lambda server=server: self._serve(server), "block")  # type: ignore[misc]
            self._fleet.wait()
            granted = self._grant()
            cuts = self._cuts(granted)
            remaining = layout_of(granted, self._options)
            budgets = tuple(max(0, rows - self._place.row) for rows in remaining.budgets)
            self._assembler = Assembler(dataclasses.replace(remaining, budgets=budgets), self._make_allocator(granted))
            with self._changed:
                self._delivered = self._place.row
                self._started = granted
            self._is_started.set()
            # This thread is never joined, because the user's source may block forever.
            threading.Thread(target=self._plan, args=(cuts,), name="hookline-source", daemon=True).start()
            reason = self._deliver(self._assembler)
            self._put(self._assembler.finish())
            self.summary = self._summary_of(reason)
            self._pipe.end()
        except BaseException as error:
            if self._assembler is not None:
                self._put(self._assembler.finish())
            with self._changed:
                self._fleet.failure = error if isinstance(error, Exception) else None
            self._pipe.end(CancelledError("the capture was closed") if self._closed.is_set() else error)
        finally:
            self._fleet.end()
            self._is_started.set()
            _lifetime.ended(self)

    def _grant(self) -> CaptureStarted:
        """Gets one server's grant for the whole capture, by a request without tokens."""
        options = dataclasses.replace(self._options, source=[], retry=None, shuffle_buffer=0)
        while True:
            with self._changed:
                server = self._fleet.usable()
                run = BlockRun(server.client)
                self._fleet.runs.add((server, run))
            try:
                granted = run.started(options)
                if isinstance(self._options.source, Dataset):  # checks the whole source, which no block's request does
                    server.client.call(_calls.estimate_capture(self._options), self._sharing.answer_seconds)
                break
            except HooklineError as error:
                if not self._fleet.may_go_on(server, run, error):
                    raise of_server(error, server.client) from None
            finally:
                with self._changed:
                    self._fleet.runs.discard((server, run))
        self._granted_by = server.client.address
        dataset = self._agreement.dataset
        warning = dataset.packing.warning if dataset is not None and dataset.packing is not None else ""
        return dataclasses.replace(granted, next_sequence=self._place.begin, tokenizer_warning=warning)

    def _cuts(self, granted: CaptureStarted) -> Iterator[Cut]:
        options = self._options
        row_bytes = row_bytes_of(granted)
        order: SequenceOrder | None = None
        if isinstance(options.source, Dataset):
            assert self._agreement.dataset is not None
            order, row_length = order_of(options.source, self._agreement.dataset)
        together = 1
        if options.deterministic:
            together = 0
            if order is not None and granted.batch_tokens:
                together = batch_sequences(options.source, row_length, granted)
        sizes = sizes_of(self._sharing, len(self._fleet.servers), row_bytes, together)
        self._place.resume(granted, self._agreement)
        if order is None:
            return token_cuts(options.source, options.selection, sizes, self._place.begin)
        return dataset_cuts(options.source, order, row_length, options.selection, sizes, self._place.begin)

    def _deliver(self, assembler: Assembler) -> str:
        """Puts the rows of all blocks together. Returns why the capture ended."""
        while any(rows < budget for rows, budget in zip(assembler.received, assembler.layout.budgets)):
            with self._changed:
                self._changed.wait_for(self._can_deliver)
                block = self._blocks.get(self._due)
                piece = block.pieces.popleft() if block is not None and block.pieces and not self._fleet.over else None
                if piece is None:
                    self._fleet.check()
                if block is None:
                    return "source_ended"
                self._changed.notify_all()
            if piece is not None:
                self._write(assembler, piece)
                if not self._put(assembler.complete()):
                    raise CancelledError("the capture was closed")
            else:
                self._finish_block(block)
                if block.error is not None:
                    raise block.error
        with self._changed:
            block = self._blocks.get(self._due)
            self._changed.wait_for(lambda: block is None or block.is_complete or self._fleet.over, _SUMMARY_SECONDS)
        if block is not None:
            self._finish_block(block)
        return "budget"

    def _can_deliver(self) -> bool:
        block = self._blocks.get(self._due)
        if self._fleet.over or self._fleet.failure is not None:
            return True
        if block is None:
            return self._has_all_blocks
        return bool(block.pieces) or block.is_complete or block.error is not None

    def _write(self, assembler: Assembler, piece: Piece) -> None:
        most = 0
        for hook_point, array in enumerate(piece.arrays):
            room = assembler.layout.budgets[hook_point] - assembler.received[hook_point]
            if array is not None and min(len(array), room) > 0:
                rows = min(len(array), room)
                most = max(most, rows)
                values = array[:rows].reshape(-1).view("u1")
                assembler.write(hook_point, rows, values, [column[:rows] for column in piece.columns])
        with self._changed:
            self._delivered += most

    def _put(self, batches: Iterator[RawBatch]) -> bool:
        """Hands batches over. Returns whether the consumer still wants them."""
        for batch in batches:
            batch.first_row += self._place.row
            if not self._pipe.put(batch):
                return False
        return True

    def _finish_block(self, block: SharedBlock) -> None:
        with self._changed:
            self._blocks.pop(block.number, None)
            self._due = block.number + 1
            self._place.passed(block.cut.place + block.cut.sequences, self._delivered)
            self._changed.notify_all()
        if block.summary is not None:
            assert self._started is not None
            widths = {point.name: self._started.top_k or point.width for point in self._started.hook_points}
            self._sum = block.summary if self._sum is None else sum_of(self._sum, block.summary, widths, 0)

    def _summary_of(self, reason: str) -> CaptureSummary:
        assert self._started is not None and self._assembler is not None
        nothing = HookPointSummary(0, 0, 0.0, 0.0, 0.0, 0, 0)
        points = {} if self._sum is None else self._sum.hook_points
        rows = {
            point.name: min(point.max_activations, self._place.row) + received
            for point, received in zip(self._started.hook_points, self._assembler.received)
        }
        told = {name: dataclasses.replace(points.get(name, nothing), rows=count) for name, count in rows.items()}
        sum_ = self._sum or CaptureSummary(reason, told, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        return dataclasses.replace(sum_, stop_reason=reason, hook_points=told, reconnects=self._reruns)

    # The thread that reads the source.

    def _plan(self, cuts: Iterator[Cut]) -> None:
        """Makes blocks while there is room in the window."""
        number = 0
        rows: int | None = self._place.block_row  # rows before the next block; None: known only after delivery
        error: Exception | None = None
        while True:
            cut = None
            try:
                cut = next(cuts, None)
            except Exception as problem:  # the user's source failed, which ends the capture after the rows before
                error = problem
            with self._changed:
                self._changed.wait_for(
                    lambda: self._fleet.over or len(self._blocks) < window_blocks(len(self._fleet.servers))
                )
                if self._fleet.over:
                    return
                budgets = self._budgets(self._delivered if rows is None else rows)
                if budgets and cut is not None:
                    block = SharedBlock(number, cut, budgets)
                    if number == 0:
                        block.received = self._place.row - self._place.block_row
                    self._blocks[number] = block
                    heapq.heappush(self._pending, number)
                elif budgets and error is not None:
                    last = SharedBlock(number, Cut(0, 0, None, 0), budgets)
                    last.error = error
                    self._blocks[number] = last
                if cut is None or not budgets:
                    self._has_all_blocks = True
                self._changed.notify_all()
                if self._has_all_blocks:
                    return
            number += 1
            rows = None if rows is None or cut is None or cut.rows is None else rows + cut.rows

    def _budgets(self, row: int) -> dict[str, int]:
        assert self._started is not None
        left = {point.name: point.max_activations - row for point in self._started.hook_points}
        return {name: rows for name, rows in left.items() if rows > 0}

    # The threads that run blocks.

    def _serve(self, server: Server) -> None:
        while True:
            with self._changed:
                block = self._take(server)
            if block is not None:
                self._run_block(server, block)
            elif self._fleet.over:
                return
            else:
                self._fleet.admit(server)

    def _take(self, server: Server) -> SharedBlock | None:
        """Under the lock: waits for a block that no server runs, and takes the first. None if the capture is over, or
        if the caller must first ask the server whether it is there."""
        while not self._fleet.over:
            now = time.monotonic()
            if server.is_asked or now < server.retry_at:
                self._changed.wait(None if server.is_asked else server.retry_at - now)
            elif not server.is_admitted:
                server.is_asked = True
                return None
            elif self._pending:
                return self._blocks[heapq.heappop(self._pending)]
            else:
                self._changed.wait()
        return None

    def _run_block(self, server: Server, block: SharedBlock) -> None:
        assert self._started is not None
        run = BlockRun(server.client)
        with self._changed:
            self._fleet.runs.add((server, run))
        options = block.options(self._options, row_bytes_of(self._started))
        names = [point.name for point in self._started.hook_points]
        begin = 0
        try:
            for piece in run.pieces(block, options, names, lambda now: self._check_grant(server, now)):
                self._add(server, block, run, piece, begin)
                begin += piece.rows
            with self._changed:
                block.summary, block.is_complete = run.summary, True
        except Exception as error:
            if isinstance(error, HooklineError) and self._fleet.may_go_on(server, run, error):
                self._put_back(block)
            else:
                with self._changed:
                    block.error = of_server(error, server.client)
        finally:
            with self._changed:
                self._fleet.runs.discard((server, run))
                self._changed.notify_all()

    def _check_grant(self, server: Server, now: CaptureStarted) -> None:
        assert self._started is not None
        if now.fingerprint != self._started.fingerprint:
            self._agreement.check("model", self._granted_by, self._started.fingerprint)
            self._agreement.check("model", server.client.address, now.fingerprint)
        members = {point.name for point in now.hook_points}
        expected = tuple(point for point in self._started.hook_points if point.name in members)
        check_same_capture(_without_budgets(self._started, expected), _without_budgets(now, now.hook_points))
        if self._options.deterministic and now.batch_tokens != self._started.batch_tokens:
            raise FailedPreconditionError(
                f"deterministic: {self._granted_by} runs batches of {self._started.batch_tokens} tokens "
                f"(--max-batch-tokens) and {server.client.address} of {now.batch_tokens}; their rows may differ"
            )

    def _add(self, server: Server, block: SharedBlock, run: BlockRun, piece: Piece, begin: int) -> None:
        """Takes rows of a run, from row `begin` of its block on. Rows that an earlier run of the block received are
        left out."""
        with self._changed:
            if self._fleet.over:
                raise CancelledError("the capture is over")
            self._learn_texts(run, piece)
            skip = block.received - begin
            server.failures = 0
            if skip < piece.rows:
                block.pieces.append(piece.part(slice(max(0, skip), None)))
                block.received = begin + piece.rows
                self._changed.notify_all()
            run.rest(True)
            self._changed.wait_for(
                lambda: self._fleet.over or self._due != block.number or len(block.pieces) < _DUE_PIECES
            )
            run.rest(False)

    def _learn_texts(self, run: BlockRun, piece: Piece) -> None:
        """Under the lock: keeps the texts of tokens that no earlier piece had."""
        if not piece.columns or len(self.token_texts) >= MAX_TOKEN_TEXTS:
            return
        texts = run.token_texts
        for token in set(piece.columns[2].tolist()).difference(self.token_texts):
            if token not in texts:
                return  # either all tokens have texts or none
            self.token_texts[token] = texts[token]

    def _put_back(self, block: SharedBlock) -> None:
        """Lets another server run the rest of a block."""
        with self._changed:
            if self._fleet.over:
                return
            self._reruns += 1
            heapq.heappush(self._pending, block.number)
            self._changed.notify_all()


def _without_budgets(started: CaptureStarted, points: Sequence[HookPointGrant]) -> CaptureStarted:
    """Returns the part of a grant that must be the same in all blocks."""
    alike = tuple(dataclasses.replace(point, max_activations=0, clipped=False) for point in points)
    return dataclasses.replace(started, hook_points=alike)
