"""Checks that several servers hold the same: a model and, where a dataset is read, that one, by their fingerprints."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hookline import _calls
from hookline.errors import CancelledError, DeadlineExceededError, FailedPreconditionError, UnavailableError
from hookline.types import DatasetInfo, ModelInfo

if TYPE_CHECKING:
    from hookline.client import Client


def is_gone(error: Exception) -> bool:
    """True where a call failed of a server that is away, or goes away: gRPC cancels what a server that ends still
    runs. A capture that an operator stopped is another matter."""
    if isinstance(error, CancelledError):
        return "StopCapture" not in error.message
    return isinstance(error, (UnavailableError, DeadlineExceededError))


class Agreement:
    """The model and dataset of the first server that answered, which the others must hold, too. Thread-safe."""

    def __init__(self, model: str, dataset: str | None) -> None:
        self._model = model
        self._dataset = dataset
        self._lock = threading.Lock()
        self._first: dict[str, tuple[str, str]] = {}  # of each thing: address and fingerprint; guarded by _lock
        self.model: ModelInfo | None = None
        self.dataset: DatasetInfo | None = None

    def ask(self, client: Client, timeout: float) -> None:
        """Asks a server, and so whether it is there. FailedPreconditionError names two servers that differ."""
        model = client.call(_calls.get_model(self._model), timeout)
        self.check(f"model {model.name!r}", client.address, model.fingerprint)
        self.model = self.model or model
        if self._dataset is not None:
            dataset = client.call(_calls.get_dataset(self._dataset), timeout)
            self.check(f"dataset {dataset.name!r}", client.address, dataset.fingerprint)
            self.dataset = self.dataset or dataset

    def check(self, what: str, address: str, fingerprint: str) -> None:
        kind = what.split(" ")[0]  # a model may have another name on each server
        with self._lock:
            first_address, first = self._first.setdefault(kind, (address, fingerprint))
        if first != fingerprint:
            raise FailedPreconditionError(
                f"{what}: {first_address} holds the fingerprint {first} and {address} holds {fingerprint}; the servers "
                "of one client hold the same"
            )
