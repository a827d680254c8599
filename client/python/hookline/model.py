"""A model on a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hookline._local_model import LocalModelMethods, NoOutput
from hookline._text import escaped
from hookline._token_ids import TokenBatch, batch_sequences
from hookline.types import HookPoint, ModelInfo

if TYPE_CHECKING:
    from hookline.capture import Capture
    from hookline.client import Client
    from hookline.collector import ActivationCollector


def _called_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turns a call's arguments into a batch; keyword arguments become entries of a dict."""
    if not args:
        return kwargs
    batch = args[0] if len(args) == 1 else args
    if not kwargs:
        return batch
    if hasattr(batch, "keys"):
        return {**batch, **kwargs}
    return {"input_ids": args[0], **{f"argument {index}": arg for index, arg in enumerate(args[1:], 1)}, **kwargs}


class RemoteModel(LocalModelMethods):
    """A model of the server, described by `info`. `Client.model()` returns it.

    Inside an `ActivationCollector` block it is called with batches of token ids like a local model. It also has the
    attributes that code for local models uses.
    """

    def __init__(self, client: Client, info: ModelInfo) -> None:
        self.client = client
        self.info = info
        self._collectors: list[ActivationCollector] = []
        self._calls = 0

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """Every tensor that can be captured, in the order in which a forward pass computes them."""
        return self.info.hook_points

    def capture(self, hook_points: Any, source: Any = None, **options: Any) -> Capture:
        """Does what `Client.capture` does, with this model."""
        return self.client.capture(hook_points, source, model=self.name, **options)

    def expand(self, hook_points: Sequence[str]) -> list[str]:
        """Returns the names of the hook points; the server says what wildcards match."""
        if not any(set("*{") & set(hook_point) for hook_point in hook_points):
            return list(hook_points)
        return list(self.client.estimate(list(hook_points), [0], model=self.name).hook_points)

    def __call__(self, *args: Any, **kwargs: Any) -> NoOutput:
        """Runs a batch of token ids for the active collectors. Logits stay on the server: code that reads them from the
        result gets an error that says so.

        The ids are a tensor, array or list; or the first member of a tuple or list, whose other members (targets) are
        left out; or the `input_ids`, `idx` or `tokens` of a dict or of the keyword arguments, where an `attention_mask`
        marks padding, which is not run. Ambiguous batches are refused (`hookline._token_ids.batch_sequences`)."""
        if not self._collectors:
            raise RuntimeError(
                "a model on a server is called inside a `with hookline.ActivationCollector(...)` block; use capture() "
                "elsewhere"
            )
        self._calls += 1
        sequences = batch_sequences(_called_with(args, kwargs))
        number = self._calls
        batch = TokenBatch(sequences, lambda index: f"call {number} of the model, row {sequences.row(index)}")
        for collector in self._collectors:
            collector.take(batch)
        return NoOutput()

    def check(self, hook_points: Sequence[str]) -> None:
        """Raises the server's error if these hook points cannot be captured."""
        self.client.estimate(list(hook_points), [0], model=self.name)

    def attach(self, collector: ActivationCollector) -> None:
        """Lets a collector take part in calls. A collector calls it on entering its block."""
        self._collectors.append(collector)

    def detach(self, collector: ActivationCollector) -> None:
        """Ends a collector's part in calls."""
        self._collectors.remove(collector)

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickling, without collectors. The copy reaches the same server through a client of its own."""
        return {**self.__dict__, "_collectors": []}

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<hookline model {info.name!r} at {self.client.address}: "
            f"{escaped(info.architecture)} {escaped(info.variant)}, "
            f"{info.layers} layers, width {info.width}, {escaped(info.dtype)} on {escaped(info.device)}>"
        )
