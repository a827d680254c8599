"""Scorings and recordings for asyncio: streams of answers to one request, on grpc.aio."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from hookline import _network
from hookline._in_loop import InLoop
from hookline._notes import notes_of_recording
from hookline._request import CaptureOptions
from hookline.errors import CancelledError, from_rpc_error
from hookline.persist import PersistProgress, finished_recording, persist_progress
from hookline.scores import ScoreOptions, ScoreReader, ScoreSummary, SequenceScore
from hookline.types import RecordingInfo


class AsyncScores(InLoop, AsyncIterator[SequenceScore]):
    """Yields scores as they come, as `hookline.Scores` does: an async iterator. `wait` reads the rest and returns the
    summary; `aclose`, or the end of `async with`, ends the work on the server."""

    def __init__(self, call: Any, options: ScoreOptions, address: str) -> None:
        super().__init__()
        self._call = call
        self._options = options
        self._address = address
        self._reader = ScoreReader(options)

    async def __anext__(self) -> SequenceScore:
        self._check_loop()
        while self._reader.summary is None:
            try:
                data = await self._next_message()
            except grpc.RpcError as error:
                raise self._options.named(_network.name_proxy(from_rpc_error(error), self._address)) from None
            if data is grpc.aio.EOF:
                self._reader.finished()
            score = await self._read(data)
            if score is not None:
                return score
        raise StopAsyncIteration

    async def _next_message(self) -> Any:
        return await self._call.read()

    async def _read(self, data: bytes) -> SequenceScore | None:
        return self._reader.read(data)

    async def wait(self) -> ScoreSummary:
        """Reads the remaining scores and returns the totals."""
        async for _ in self:
            pass
        return self._reader.finished()

    async def aclose(self) -> None:
        """Ends the call. Idempotent."""
        self._call.cancel()

    async def __aenter__(self) -> AsyncScores:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class AsyncPersistRun(InLoop, AsyncIterator[PersistProgress]):
    """Watches a recording being made, as `hookline.PersistRun` does: an async iterator of its progress, about once a
    second. The last progress holds the recording.

    The recording continues when it is no longer watched; `AsyncClient.stop_recording` ends it. `aclose`, or the end of
    `async with`, stops watching.
    """

    def __init__(self, call: Any, options: CaptureOptions, address: str) -> None:
        super().__init__()
        self._call = call
        self._options = options
        self._address = address
        self._reading: asyncio.Future[PersistProgress | None] | None = None
        self._last: PersistProgress | None = None
        self._closed = False

    async def __anext__(self) -> PersistProgress:
        progress = await self._following()
        if progress is None:
            raise StopAsyncIteration
        self._tell(progress)
        return progress

    async def _following(self) -> PersistProgress | None:
        self._check_loop()
        # The read is a task of its own: grpcio ends a call if the reading task is cancelled, for example by a timeout.
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        await asyncio.wait([self._reading])
        reading, self._reading = self._reading, None
        progress = reading.result()
        self._last = progress or self._last
        return progress

    def _tell(self, progress: PersistProgress) -> None:
        for note in notes_of_recording(self._options, progress.recording):
            warnings.warn(note, stacklevel=3)

    async def _read(self) -> PersistProgress | None:
        """The next progress; None at the end of a complete recording."""
        try:
            message = await self._call.read()
        except asyncio.CancelledError:
            if self._closed:
                raise CancelledError("the recording is not watched any more") from None
            raise
        except grpc.RpcError as error:
            raise self._options.named(_network.name_proxy(from_rpc_error(error), self._address)) from None
        return None if message is grpc.aio.EOF else persist_progress(message)

    async def wait(self) -> RecordingInfo:
        """Waits for the end, and returns the complete recording. Raises CancelledError if the recording was stopped, or
        UnavailableError if the server went away; the same request then continues the recording."""
        while (progress := await self._following()) is not None:
            self._tell(progress)
        return finished_recording(self._last)

    async def aclose(self) -> None:
        """Stops watching; the recording continues. Idempotent."""
        self._closed = True
        self._call.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def __aenter__(self) -> AsyncPersistRun:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
