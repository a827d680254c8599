"""A model that stands on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

from hookline._sources import batch_sequences
from hookline.types import HookPoint, ModelInfo

if TYPE_CHECKING:
    from hookline.capture import Capture
    from hookline.client import Client
    from hookline.collector import ActivationCollector


class RemoteModel:
    """A model of the server, described by `info`. Comes from `Client.model()`.

    Inside an `ActivationCollector` it is called with batches of token ids, as a local model is.
    """

    def __init__(self, client: "Client", info: ModelInfo) -> None:
        self.client = client
        self.info = info
        self._collectors: List["ActivationCollector"] = []

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def hook_points(self) -> Tuple[HookPoint, ...]:
        """Every tensor that can be captured, in the order in which a forward pass computes them."""
        return self.info.hook_points

    def capture(self, hook_points: Any, source: Any, **options: Any) -> "Capture":
        """`Client.capture` with this model."""
        return self.client.capture(hook_points, source, model=self.name, **options)

    def expand(self, hook_points: Sequence[str]) -> List[str]:
        """The hook points' names, wildcards replaced by what the server says they match."""
        if not any(set("*{") & set(hook_point) for hook_point in hook_points):
            return list(hook_points)
        return list(self.client.estimate(list(hook_points), [0], model=self.name).hook_points)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Runs a batch of token ids for the collectors that are active, and returns nothing: logits stay on the server.

        The ids are a tensor, array or list, the first member of a tuple or list whose others (targets) are left out, or
        the `input_ids` or `idx` of a dict or of the keyword arguments."""
        if not self._collectors:
            raise RuntimeError(
                "a model on a server is called inside a `with hookline.ActivationCollector(...)` block; use capture() "
                "elsewhere"
            )
        sequences = batch_sequences(args[0] if args else kwargs)
        for collector in self._collectors:
            collector.take(sequences)

    def check(self, hook_points: Sequence[str]) -> None:
        """Raises what the server objects to in these hook points."""
        self.client.estimate(list(hook_points), [0], model=self.name)

    def eval(self) -> "RemoteModel":
        """Does nothing: a server's model never trains."""
        return self

    def get_device(self) -> Any:
        """Where batches should be before a call: torch.device("cpu"), since their ids go over the wire."""
        import torch

        return torch.device("cpu")

    def attach(self, collector: "ActivationCollector") -> None:
        """Lets a collector take part in calls. Entering its block does it."""
        self._collectors.append(collector)

    def detach(self, collector: "ActivationCollector") -> None:
        """Ends that."""
        self._collectors.remove(collector)

    def __getstate__(self) -> Dict[str, Any]:
        """A pickled model reaches the same server through a client of its own; collectors stay where they are."""
        return {**self.__dict__, "_collectors": []}

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<hookline model {info.name!r} at {self.client.address}: {info.architecture} {info.variant}, "
            f"{info.layers} layers, width {info.width}, {info.dtype} on {info.device}>"
        )
