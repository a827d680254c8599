"""A model that stands on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Tuple

from hookline.types import HookPoint, ModelInfo

if TYPE_CHECKING:
    from hookline.capture import Capture
    from hookline.client import Client


class RemoteModel:
    """A model of the server, described by `info`. Comes from `Client.model()`."""

    def __init__(self, client: "Client", info: ModelInfo) -> None:
        self.client = client
        self.info = info

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

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<hookline model {info.name!r} at {self.client.address}: {info.architecture} {info.variant}, "
            f"{info.layers} layers, width {info.width}, {info.dtype} on {info.device}>"
        )
