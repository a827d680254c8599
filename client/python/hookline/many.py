"""One client over several servers that hold the same model."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar

from hookline import _calls, _lifetime
from hookline._agreement import Agreement, is_gone
from hookline._arguments import CaptureArguments, PersistArguments, ScoreArguments, SubstituteArguments
from hookline._calls import Answer, UnaryCall
from hookline._joined import JoinedReceiver
from hookline._receive import Receiver
from hookline._request import CaptureOptions, capture_options
from hookline._shared_capture import SharedReceiver
from hookline._sharing import Sharing
from hookline.capture import Capture
from hookline.client import AllocatorFactory, Client
from hookline.errors import FailedPreconditionError, HooklineError, NotFoundError
from hookline.model import RemoteModel
from hookline.persist import PersistRun
from hookline.scores import Intervention, Scores
from hookline.substitute import Substituted
from hookline.types import DatasetInfo, Feed, Recording, RecordingInfo, Text

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("hookline")

Asked = TypeVar("Asked")


class SharedCapture(Capture):
    """A capture over several servers."""

    def __init__(self, receiver: SharedReceiver, options: CaptureOptions, allocators: AllocatorFactory) -> None:
        super().__init__(receiver, options, allocators)
        self._shared = receiver
        self._is_mixed = options.shuffle_buffer > 0
        self._row: int | None = None  # after the last batch; None before the first

    def __next__(self) -> Any:
        batch = super().__next__()
        self._row = batch.first_row + batch.rows
        return batch

    @property
    def resume_token(self) -> bytes:
        """The token that continues this capture after the last batch that the loop has received: pass it to `capture`
        as `resume_token`, with the same other arguments and the source from its beginning. The servers can be others
        that hold the same model and dataset. ValueError with `shuffle_buffer`, since the token does not hold the rows
        in that buffer."""
        if self._is_mixed:
            raise ValueError("resume_token: not available with shuffle_buffer, whose rows are not part of the token")
        return self._shared.token_at(self._shared.first_row if self._row is None else self._row)


class ManyClient(Client):
    """A client of several servers that hold the same model. `hookline.connect` makes it from several addresses.

    Captures of datasets and of the client's own tokens are cut into blocks of sequences, and a server that is free runs
    the next block. Rows, their order, budgets and provenance are those of one server. If a server dies, hangs or
    drains, its blocks run elsewhere, and it is used again when it is back. All other calls go to one of the servers.
    Calls about a single server's recordings or feeds are refused: `clients` has a client of each server.
    """

    def __init__(self, clients: Sequence[Client], sharing: Sharing) -> None:
        self.clients = tuple(clients)
        self._sharing = sharing
        self._turn = 0
        self._shared: weakref.WeakSet[Receiver] = weakref.WeakSet()
        self.address = ",".join(client.address for client in clients)

    def close(self) -> None:
        for receiver in list(self._shared):
            receiver.close()
        for client in self.clients:
            client.close()

    def __reduce__(self) -> Any:
        return ManyClient, (self.clients, self._sharing)

    @property
    def receiver(self) -> str:
        return self.clients[0].receiver

    def __repr__(self) -> str:
        return f"<hookline.ManyClient of {self.address}>"

    def model(self, name: str = "", *, timeout: float | None = None) -> RemoteModel:
        """The model that the servers hold. FailedPreconditionError if they do not hold the same model; servers that do
        not answer are left out, with a line in the log."""
        model = self._agreed(name, None, timeout).model
        assert model is not None
        return RemoteModel(self, model)

    def dataset(self, name: str, *, timeout: float | None = None) -> DatasetInfo:
        """A dataset that all servers hold. FailedPreconditionError if it is not the same on all of them."""
        dataset = self._agreed("", name, timeout).dataset
        assert dataset is not None
        return dataset

    def _agreed(self, model: str, dataset: str | None, timeout: float | None) -> Agreement:
        agreement = Agreement(model, dataset)
        errors: dict[int, Exception] = {}

        def ask(index: int) -> None:
            try:
                agreement.ask(self.clients[index], self._timeout(timeout))
            except Exception as error:
                errors[index] = error

        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(self.clients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        away = {index: error for index, error in errors.items() if is_gone(error)}
        for index in sorted(errors.keys() - away.keys()) or (sorted(away) if len(away) == len(threads) else ()):
            raise errors[index]
        for index, error in away.items():
            _log.warning("%s does not answer: %s", self.clients[index].address, error)
        return agreement

    def _timeout(self, timeout: float | None) -> float:
        return self._sharing.answer_seconds if timeout is None else timeout

    def call(self, unary: UnaryCall[Answer], timeout: float | None) -> Answer:
        """Asks the servers one after another until one answers."""
        return self._of_one(lambda client: client.call(unary, self._timeout(timeout)))

    def _in_turn(self) -> list[Client]:
        first, self._turn = self._turn, (self._turn + 1) % len(self.clients)
        return [*self.clients[first:], *self.clients[:first]]

    def _one(self) -> Client:
        """The next server in turn that answers."""

        def asked(client: Client) -> Client:
            client.call(_calls.list_models(), self._sharing.answer_seconds)
            return client

        return self._of_one(asked)

    def _of_one(self, ask: Callable[[Client], Asked]) -> Asked:
        """Asks the servers in turn, and returns the answer of the first that is not gone. Raises the first server's
        error if all are gone."""
        first: HooklineError | None = None
        for client in self._in_turn():
            try:
                return ask(client)
            except HooklineError as error:
                if not is_gone(error):
                    raise
                first = first or error
        assert first is not None
        raise first

    def score(
        self,
        source: Any,
        variants: Mapping[str, Sequence[Intervention]] | None = None,
        **outputs: Unpack[ScoreArguments],
    ) -> Scores:
        """Does what `Client.score` does, on one of the servers in turn."""
        return self._one().score(source, variants, **outputs)

    def substitute(
        self,
        source: Any,
        hook_point: str | Sequence[str],
        replace: Any,
        variants: Mapping[str, Sequence[Intervention]] | None = None,
        **options: Unpack[SubstituteArguments],
    ) -> Substituted:
        """Does what `Client.substitute` does, on one of the servers in turn."""
        return self._one().substitute(source, hook_point, replace, variants, **options)

    def capture(
        self,
        hook_points: str | Sequence[str],
        source: Any = None,
        *,
        text: str | Sequence[str] | Text | None = None,
        resume_token: bytes = b"",
        **options: Unpack[CaptureArguments],
    ) -> Capture:
        """Does what `Client.capture` does, on all servers. Texts run on one of them. Feeds and `record_as` need a
        client of a single server, and are a ValueError here. `hookline.Recording` reads recordings of any of the
        servers, several as one.

        resume_token: continues the earlier capture with the same arguments whose `SharedCapture.resume_token` this was.
            An iterator as source must start from its beginning.
        """
        return self._run(capture_options(hook_points, source, text=text, **options), resume_token)

    def run(self, options: CaptureOptions) -> Capture:
        return self._run(options, b"")

    def _run(self, options: CaptureOptions, resume_token: bytes) -> Capture:
        allocators = options.allocators()
        if resume_token and options.shuffle_buffer:
            raise ValueError("resume_token: not available with shuffle_buffer, whose rows are not part of the token")
        receiver = self._receive(options, allocators, resume_token)
        if isinstance(receiver, SharedReceiver):
            return SharedCapture(receiver, options, allocators)
        return Capture(receiver, options, allocators)

    def receive(self, options: CaptureOptions, allocators: AllocatorFactory) -> Receiver:
        return self._receive(options, allocators, b"")

    def _receive(self, options: CaptureOptions, allocators: AllocatorFactory, resume_token: bytes) -> Receiver:
        if isinstance(options.source, Feed):
            self._refuse("source: a feed is shared by captures on one server")
        if isinstance(options.source, Recording):
            if resume_token:
                raise ValueError("resume_token: recordings are read with first_row, and cannot be continued by a token")
            _lifetime.check_process()
            joined = JoinedReceiver(self._find_recording, options, allocators, self._sharing.answer_seconds)
            self._shared.add(joined)
            return joined
        if options.record_as:
            self._refuse("record_as: a recording is on one server's disk")
        if options.statistics_only or isinstance(options.source, Text):
            if resume_token:
                raise ValueError("resume_token: texts run on one server, and cannot be continued")
            return self._one().receive(options, allocators)
        _lifetime.check_process()
        receiver = SharedReceiver(self.clients, options, allocators, self._sharing, resume_token)
        self._shared.add(receiver)
        return receiver

    def _find_recording(self, name: str) -> tuple[Client, str]:
        """Returns the client of the server that has a recording, and the recording's name there. NotFoundError if no
        server has it, FailedPreconditionError if several have."""
        address, slash, own = name.rpartition("/")
        if slash:
            found = [client for client in self.clients if client.address == address]
            if not found:
                addresses = ", ".join(client.address for client in self.clients[:8])
                raise ValueError(
                    f"source: recording {name!r} is on server {address!r}, which is not one of {addresses}"
                )
            return found[0], own
        gone: HooklineError | None = None
        having: list[Client] = []
        for client in self.clients:
            try:
                client.call(_calls.get_recording(name), self._sharing.answer_seconds)
                having.append(client)
            except HooklineError as error:
                if is_gone(error):
                    gone = gone or error
                elif error.code not in ("NOT_FOUND", "UNIMPLEMENTED"):
                    raise
        if len(having) > 1:
            choices = " or ".join(repr(f"{client.address}/{name}") for client in having[:2])
            raise FailedPreconditionError(f"source: {len(having)} servers have a recording {name!r}; give {choices}")
        if not having:
            raise gone or NotFoundError(f"no recording is called {name} on any of the servers {self.address}")
        return having[0], name

    def _refuse(self, why: str) -> NoReturn:
        addresses = ", ".join(client.address for client in self.clients[:8])
        raise ValueError(
            f"{why}; use a client of one server: one of `clients` ({addresses}), or hookline.connect(address)"
        )

    def recordings(self, *, timeout: float | None = None) -> tuple[RecordingInfo, ...]:
        self._refuse("recordings: each server has its own")

    def recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        self._refuse(f"recording {name!r}: it is on one server's disk")

    def persist(
        self, name: str, hook_points: str | Sequence[str], source: Any, **options: Unpack[PersistArguments]
    ) -> PersistRun:
        self._refuse(f"recording {name!r}: it is written to one server's disk")

    def merge_recordings(self, name: str, parts: str | Sequence[str]) -> RecordingInfo:
        self._refuse(f"recording {name!r}: it is written to one server's disk")

    def stop_recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        self._refuse(f"recording {name!r}: it is on one server's disk")

    def delete_recording(self, name: str, *, timeout: float | None = None) -> int:
        self._refuse(f"recording {name!r}: it is on one server's disk")
