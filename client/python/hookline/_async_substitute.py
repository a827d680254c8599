"""Substitutions for asyncio, on grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import Any

import grpc

from hookline import _protocol
from hookline._async_streams import AsyncScores
from hookline.scores import SequenceScore
from hookline.substitute import Replacer, Substitution, run


class AsyncSubstituted(AsyncScores):
    """Yields scores as they come, as `hookline.Substituted` does. Coroutine functions are awaited, others run on
    another thread."""

    def __init__(self, call: Any, settled: Substitution, address: str) -> None:
        super().__init__(call, settled.options, address)
        self._unsent: list[bytes] = [settled.request]
        self._replacer = Replacer(settled)

    async def _next_message(self) -> Any:
        unsent, self._unsent = self._unsent, []
        # If the call has ended, reading the next answer raises the reason.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            for message in unsent:
                await self._call.write(message)
        return await self._call.read()

    async def _read(self, data: bytes) -> SequenceScore | None:
        message = _protocol.ScoreResponse.FromString(data)
        if message.WhichOneof("kind") != "asked":
            return self._reader.take(message)
        if self._replacer.add(message.asked):
            try:
                results = [await self._result(function, given) for function, given in self._replacer.calls()]
                self._unsent = self._replacer.answers(results)
            except BaseException:
                await self.aclose()
                raise
        return None

    async def _result(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(None, run, function, arguments)
