"""The attributes of a local model that code uses beside calling it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from hookline.types import ModelInfo

_NO_OUTPUT = (
    "a call of a model on a server returns nothing: its rows are in the collector, and logits stay on the server; "
    "Client.score computes losses"
)


class LocalModelMethods:
    """The methods and attributes of a torch module that make sense for a server's model, which cannot be changed."""

    info: ModelInfo
    training = False

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Does nothing: the model stays on the server's device, in its dtype."""
        return self

    def cpu(self) -> Any:
        """Does nothing, as `to`."""
        return self

    def cuda(self, device: Any = None) -> Any:
        """Does nothing, as `to`."""
        return self

    def float(self) -> Any:
        """Does nothing, as `to`; the `dtype` of a capture is the type of its rows."""
        return self

    def half(self) -> Any:
        """Does nothing, as `float`."""
        return self

    def bfloat16(self) -> Any:
        """Does nothing, as `float`."""
        return self

    def eval(self) -> Any:
        """Does nothing: a server's model never trains."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Does nothing; with `mode` it warns that a server's model never trains."""
        if mode:
            warnings.warn("a model on a server does not train: dropout stays off, weights stay fixed", stacklevel=2)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Does nothing, but warns if gradients are asked for."""
        if requires_grad:
            warnings.warn("a model on a server has no gradients", stacklevel=2)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing."""

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Returns no parameters, with a warning: the weights are on the server. `device` and `dtype` say what code
        usually asks a parameter for."""
        warnings.warn(
            "the parameters of a model on a server are not here; model.device and model.dtype say where batches should "
            "be, and in which type it computes",
            stacklevel=2,
        )
        return iter(())

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """Returns no parameters, with a warning, as `parameters`."""
        warnings.warn("the parameters of a model on a server are not here", stacklevel=2)
        return iter(())

    @property
    def device(self) -> Any:
        """The device that batches should be on before a call: torch.device("cpu"), since their ids go to a server."""
        import torch

        return torch.device("cpu")

    def get_device(self) -> Any:
        """Returns `device`; nanochat has this name for it."""
        return self.device

    @property
    def dtype(self) -> Any:
        """The torch.dtype in which the model computes; rows have the capture's dtype."""
        import torch

        return getattr(torch, self.info.dtype)

    @property
    def config(self) -> ModelConfig:
        """The model's shape as the server knows it, under the names of transformers, nanochat and TransformerLens."""
        return ModelConfig(self.info)

    cfg = config

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"a model on a server has no {name!r}: it is called with token ids inside a hookline.ActivationCollector, "
            "or capture() streams its activations; its weights and logits stay on the server"
        )


class NoOutput:
    """The empty result of calling a server's model. Reading logits or a loss from it raises an error that says why."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<no output: logits stay on the server>"

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(_NO_OUTPUT)

    def __getitem__(self, key: Any) -> Any:
        raise TypeError(_NO_OUTPUT)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name if name.startswith("__") else f"{name}: {_NO_OUTPUT}")


class ModelConfig(SimpleNamespace):
    """A model's shape, as far as the server describes it."""

    def __init__(self, info: ModelInfo) -> None:
        names: dict[str, tuple[str, ...]] = {
            "layers": ("num_hidden_layers", "n_layer", "n_layers"),
            "width": ("hidden_size", "n_embd", "d_model"),
            "heads": ("num_attention_heads", "n_head", "n_heads"),
            "key_value_heads": ("num_key_value_heads", "n_kv_head", "n_key_value_heads"),
            "context_length": ("max_position_embeddings", "sequence_len", "n_ctx"),
            "vocabulary_size": ("vocab_size", "d_vocab"),
            "architecture": ("model_type",),
            "name": ("name_or_path", "model_name"),
            "dtype": ("torch_dtype",),
        }
        told = {name: getattr(info, field) for field, aliases in names.items() for name in aliases}
        super().__init__(**told, device="cpu")  # where batches should be, as `device` of the model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"a server does not report a model's {name!r}, only {', '.join(sorted(vars(self)))}")
