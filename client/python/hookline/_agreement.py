"""Checks by fingerprints that several servers hold the same model, and the same dataset if one is read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hookline import _calls
from hookline.errors import CancelledError, DeadlineExceededError, FailedPreconditionError, UnavailableError
from hookline.types import DatasetInfo, ModelInfo

if TYPE_CHECKING:
    from hookline.client import Client


def is_gone(error: Exception) -> bool:
    """Returns whether a call failed because the server is gone or is shutting down, when gRPC cancels its running
    calls. False for a capture that an operator stopped."""
    if isinstance(error, CancelledError):
        return "StopCapture" not in error.message
    return isinstance(error, (UnavailableError, DeadlineExceededError))


class Agreement:
    """The model and dataset of the first server that answered, which the others must also hold. Thread-safe."""

    def __init__(self, model: str, dataset: str | None) -> None:
        self._model = model
        self._dataset = dataset
        self._lock = threading.Lock()
        self._first: dict[str, tuple[str, str]] = {}  # the first address and fingerprint by kind; guarded by _lock
        self.model: ModelInfo | None = None
        self.dataset: DatasetInfo | None = None

    def ask(self, client: Client, timeout: float) -> None:
        """Asks a server for its model and dataset. FailedPreconditionError, which names two servers, if they differ."""
        model = client.call(_calls.get_model(self._model), timeout)
        self.check(f"model {model.name!r}", client.address, model.fingerprint)
        self.model = self.model or model
        if self._dataset is not None:
            dataset = client.call(_calls.get_dataset(self._dataset), timeout)
            self.check(f"dataset {dataset.name!r}", client.address, dataset.fingerprint)
            self.dataset = self.dataset or dataset

    def check(self, what: str, address: str, fingerprint: str) -> None:
        kind = what.split(" ")[0]  # a model can have a different name on each server
        with self._lock:
            first_address, first = self._first.setdefault(kind, (address, fingerprint))
        if first != fingerprint:
            raise FailedPreconditionError(
                f"{what}: {first_address} holds the fingerprint {first} and {address} holds {fingerprint}; the servers "
                "of one client must hold the same"
            )
