"""A capture that the server writes to its own disk."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from hookline import _lifetime, _protocol
from hookline._arguments import PersistArguments
from hookline._connection import StreamCall
from hookline._counts import count, counts, string, strings
from hookline._from_messages import recording_info
from hookline._notes import notes_of_recording
from hookline._request import CaptureOptions, options_among
from hookline.errors import InternalError
from hookline.types import RecordingInfo

_LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class PersistProgress:
    """The progress of a recording."""

    disposition: str  # what was found under the name: "started", "joined", "continued" or "already_complete"
    rows: int  # the rows written of the hook point that has most, since the recording's start
    max_rows: int  # the most that `rows` can become
    bytes: int  # the bytes of values written, of all hook points
    seconds: float  # since this server began or continued the recording
    new_rows: int  # the rows written in that time
    recording: RecordingInfo | None  # only in the last progress


def persist_request(
    name: str, hook_points: str | Sequence[str], source: Any, arguments: PersistArguments
) -> tuple[CaptureOptions, bytes]:
    """Makes the options and the request from the arguments of `persist`. TypeError for what no recording accepts."""
    others: dict[str, Any] = {name: value for name, value in arguments.items() if name != "part"}
    options = options_among(PersistArguments.__annotations__, "a recording", hook_points, source, others)
    request = _protocol.PersistRequest(name=string("name", name), capture=options.whole_message())
    part = arguments.get("part")
    if part is not None:
        numbers = counts("part", part)
        if len(numbers) != 2:
            raise ValueError(f"part: {part!r} is not (index, count), such as (0, 4) for the first of four parts")
        request.part.index, request.part.count = (count("part", number, 0, _LARGEST_INT32) for number in numbers)
        options = dataclasses.replace(options, goes_on=True)
    return options, request.SerializeToString()


def finished_recording(last: PersistProgress | None) -> RecordingInfo:
    """Returns the recording in the last progress. InternalError if the server left it out."""
    if last is None or last.recording is None:
        raise InternalError("the server ended the call without the recording")
    return last.recording


def merge_request(name: str, parts: str | Sequence[str]) -> bytes:
    """A serialized MergeRecordingsRequest."""
    request = _protocol.MergeRecordingsRequest(name=string("name", name), parts=strings("parts", parts))
    return bytes(request.SerializeToString())


def merged_recording(last: bytes) -> RecordingInfo:
    """Returns the recording in the last MergeRecordingsResponse. InternalError if the server left it out."""
    progress = _protocol.MergeRecordingsResponse.FromString(last)
    if not progress.HasField("recording"):
        raise InternalError("the server ended the call without the recording")
    return recording_info(progress.recording)


class PersistRun(_lifetime.Running, Iterator[PersistProgress]):
    """Watches a recording being made: an iterator of its progress, about once a second. The last progress holds
    the recording.

    The recording continues when it is no longer watched; `Client.stop_recording` ends it. Iterate from one thread at
    a time.
    """

    def __init__(self, call: StreamCall, options: CaptureOptions) -> None:
        self._call = call
        self._options = options
        self._last: PersistProgress | None = None
        # The server answers at once. Waiting for its answer ensures that the request was sent, and raises its errors.
        self._first = self._receive()

    def __next__(self) -> PersistProgress:
        following = self._following()
        if following is None:
            raise StopIteration
        self._tell(following)
        return following

    def _following(self) -> PersistProgress | None:
        first, self._first = self._first, None
        return self._receive() if first is None else first

    def _tell(self, progress: PersistProgress) -> None:
        for note in notes_of_recording(self._options, progress.recording):
            warnings.warn(note, stacklevel=3)

    def _receive(self) -> PersistProgress | None:
        """The next progress; None at the end of a complete recording."""
        try:
            message = next(self._call, None)
        except grpc.RpcError as error:
            raise self._options.named(self._call.exception(error)) from None
        if message is None:
            return None
        self._last = persist_progress(message)
        return self._last

    def wait(self) -> RecordingInfo:
        """Waits for the end, and returns the complete recording. Raises CancelledError if the recording was stopped, or
        UnavailableError if the server went away; the same request then continues the recording."""
        while (progress := self._following()) is not None:
            self._tell(progress)
        return finished_recording(self._last)

    def close(self) -> None:
        """Stops watching; the recording continues. Idempotent."""
        self._call.cancel()

    def __enter__(self) -> PersistRun:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def persist_progress(data: bytes) -> PersistProgress:
    """Reads a serialized PersistResponse."""
    message = _protocol.PersistResponse.FromString(data)
    return PersistProgress(
        disposition=_protocol.PERSIST_DISPOSITIONS.get(message.disposition, "unspecified"),
        rows=message.rows,
        max_rows=message.max_rows,
        bytes=message.bytes,
        seconds=message.seconds,
        new_rows=message.new_rows,
        recording=recording_info(message.recording) if message.HasField("recording") else None,
    )
