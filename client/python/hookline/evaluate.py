"""Measures a sparse autoencoder that runs here, in a model that runs on the server (`Client.loss_recovered`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hookline._sources import is_server_source, messages, source_batches
from hookline.scores import Intervention, SequenceScore
from hookline.substitute import RowsPlace
from hookline.types import ModelInfo

if TYPE_CHECKING:
    from hookline._arguments import SubstituteArguments
    from hookline.client import Client

# Variances and errors below this count as 0.
_SMALL = 1e-10


@dataclass(frozen=True)
class LossRecovered:
    """The measures of SAELens's `run_evals`, under its names. Means are over tokens, without those with ignored ids."""

    ce_loss_with_sae: float
    ce_loss_without_sae: float
    ce_loss_with_ablation: float  # the hook point's rows are zero
    ce_loss_score: float  # (ablation - sae) / (ablation - without)
    kl_div_with_sae: float
    kl_div_with_ablation: float
    kl_div_score: float  # (ablation - sae) / ablation
    l0: float | None  # active latents of a token; None if the autoencoder does not show its latents
    l1: float | None
    explained_variance: float
    mse: float  # of a row: summed over its values
    cossim: float
    tokens: int


@dataclass(frozen=True)
class _Reconstruction:
    rows: np.ndarray[Any, Any]
    active: np.ndarray[Any, Any] | None  # the number of nonzero latents of each row
    magnitude: np.ndarray[Any, Any] | None  # the sum of the latents' absolute values of each row


Reconstruct = Callable[["np.ndarray[Any, Any]"], _Reconstruction]


def reconstruct_with(sae: Any, heads: int) -> Reconstruct:
    """Returns a function that reconstructs rows with a SAELens, sparsify or dictionary_learning object, or with a torch
    module or function from rows to rows. TypeError for anything else. `heads`: how many the rows have, 0 for none."""
    import torch

    if getattr(getattr(sae, "cfg", None), "d_out", None) is not None or hasattr(sae, "W_skip"):
        if getattr(sae, "W_skip", None) is not None or hasattr(sae.cfg, "hook_name_out"):
            raise TypeError("sae: a transcoder does not reconstruct its input; loss_recovered takes autoencoders")
    by_head = getattr(sae, "hook_z_reshaping_mode", False)
    parameter = next(iter(sae.parameters()), None) if hasattr(sae, "parameters") else None

    def to_torch(rows: np.ndarray[Any, Any]) -> Any:
        x = torch.from_numpy(np.ascontiguousarray(rows))
        if parameter is not None:
            x = x.to(parameter.device, parameter.dtype)
        return x.reshape(len(rows), heads, -1) if by_head and heads else x

    def latents(values: Any) -> tuple[Any, Any]:
        values = values.to_dense() if values.is_sparse else values
        return (values != 0).sum(-1).float(), values.abs().sum(-1).float()

    def run(rows: np.ndarray[Any, Any]) -> _Reconstruction:
        active = magnitude = None
        with torch.no_grad():
            x = to_torch(rows)
            if hasattr(sae, "encode") and hasattr(sae, "decode"):
                encoded = sae.encode(x)
                if hasattr(encoded, "top_acts"):  # sparsify
                    out = sae.decode(encoded.top_acts, encoded.top_indices)
                    active, magnitude = latents(encoded.top_acts)
                else:
                    active, magnitude = latents(encoded)
                    out = sae.decode(encoded)
            else:
                out = sae(x)
            host = out.reshape(len(rows), -1).float().cpu().numpy()
        return _Reconstruction(host, *(None if v is None else v.cpu().numpy() for v in (active, magnitude)))

    if not callable(sae) and not hasattr(sae, "encode"):
        raise TypeError(f"sae: {type(sae).__name__} is neither an autoencoder nor a function from rows to rows")
    return run


def head_of(sae: Any, hook_point: str, heads: int) -> int | None:
    """The head whose rows the autoencoder encodes, by SAELens's configuration; None if it encodes whole rows."""
    metadata = getattr(getattr(sae, "cfg", None), "metadata", None)
    head = getattr(metadata, "hook_head_index", None)
    if head is None:
        return None
    if not 0 <= head < heads:
        told = f"which has {heads} heads" if heads else "which has no heads"
        raise ValueError(f"sae: it encodes head {head} (hook_head_index) of {hook_point}, {told}")
    return int(head)


class _Totals:
    """Sums over the tokens that count."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.sum_of_rows: Any = 0.0
        self.squares = 0.0

    def add(self, name: str, values: Any) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
        self.counts[name] = self.counts.get(name, 0) + len(values)

    def add_rows(self, rows: np.ndarray[Any, Any], made: _Reconstruction, counted: np.ndarray[Any, Any]) -> None:
        x, y = rows[counted].astype(np.float64), made.rows[counted].astype(np.float64)
        self.add("mse", ((x - y) ** 2).sum(1))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        self.add("cossim", (x * y).sum(1) / np.where(norms == 0, 1, norms))
        self.sum_of_rows = self.sum_of_rows + x.sum(0)
        self.squares += float((x**2).sum())
        if made.active is not None and made.magnitude is not None:
            self.add("l0", made.active[counted])
            self.add("l1", made.magnitude[counted])

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name] if self.counts.get(name) else float("nan")

    def explained_variance(self) -> float:
        tokens = self.counts["mse"]
        variance = self.squares / tokens - float(((self.sum_of_rows / tokens) ** 2).sum())
        if variance < _SMALL:
            return 1.0 if self.mean("mse") < _SMALL else 0.0
        return 1 - self.mean("mse") / variance


@dataclass(frozen=True)
class _EncodedRows:
    """The rows that an autoencoder encodes: those of a hook point, or of one of its heads."""

    hook_point: str
    head: int | None


class Measurement:
    """The measuring of `Client.loss_recovered`, without its calls: pass `replace`, `variants` and `arguments` to
    `substitute`, and its scores to `add`."""

    def __init__(self, sae: Any, model: ModelInfo, hook_point: str, ignored: Sequence[int]) -> None:
        points = {point.name: point for point in model.hook_points}
        heads = points[hook_point].heads if hook_point in points else 0
        self._encoded = _EncodedRows(hook_point, head_of(sae, hook_point, heads))
        self._reconstruct = reconstruct_with(sae, heads if self._encoded.head is None else 1)
        self._ignored = np.asarray(ignored, dtype=np.int64)
        self._totals = _Totals()
        # Says which tokens count, for each sequence whose scores are still to come.
        self._counted: dict[int, np.ndarray[Any, Any]] = {}

    @property
    def variants(self) -> dict[str, list[Intervention]]:
        return {"zero": [Intervention.zero(self._encoded.hook_point, head=self._encoded.head)]}

    def arguments(self, model: str) -> SubstituteArguments:
        return {
            "variant": "sae",
            "head": self._encoded.head,
            "places": True,
            "output": "numpy",
            "per_token_loss": True,
            "kl": True,
            "model": model,
        }

    def replace(self, rows: np.ndarray[Any, Any], place: RowsPlace) -> tuple[Any, np.ndarray[Any, Any]]:
        """Returns the reconstruction, and a mask of the rows to replace by it."""
        made = self._reconstruct(rows)
        counted = ~np.isin(place.token_id, self._ignored)
        self._totals.add_rows(rows, made, counted)
        begins = np.flatnonzero(np.diff(place.sequence, prepend=place.sequence[0] - 1))
        for sequence, part in zip(place.sequence[begins], np.split(counted, begins[1:])):
            self._counted[int(sequence)] = part
        return made.rows, counted

    def add(self, score: SequenceScore) -> None:
        counted = self._counted[score.sequence]
        if score.token_loss is not None:
            self._totals.add(f"loss {score.variant}", score.token_loss[counted[:-1]])
        if score.kl is not None:
            self._totals.add(f"kl {score.variant}", score.kl[counted])
        if score.variant == "sae":
            del self._counted[score.sequence]

    def result(self) -> LossRecovered:
        totals = self._totals
        without, ablated, with_sae = (totals.mean(f"loss {name}") for name in ("", "zero", "sae"))
        kl, kl_ablated = totals.mean("kl sae"), totals.mean("kl zero")
        return LossRecovered(
            ce_loss_with_sae=with_sae,
            ce_loss_without_sae=without,
            ce_loss_with_ablation=ablated,
            ce_loss_score=(ablated - with_sae) / (ablated - without),
            kl_div_with_sae=kl,
            kl_div_with_ablation=kl_ablated,
            kl_div_score=(kl_ablated - kl) / kl_ablated,
            l0=totals.mean("l0") if "l0" in totals.sums else None,
            l1=totals.mean("l1") if "l1" in totals.sums else None,
            explained_variance=totals.explained_variance(),
            mse=totals.mean("mse"),
            cossim=totals.mean("cossim"),
            tokens=totals.counts["mse"],
        )


def parts(source: Any) -> Iterator[Any]:
    """Splits a source into the sources of single calls: a source that the server reads itself is one call; token ids
    are cut so that each call's fit into one request."""
    if is_server_source(source):
        yield source
    else:
        for batch in messages(source_batches(source)):
            yield [batch]


def loss_recovered(
    client: Client, sae: Any, hook_point: str, source: Any, *, model: str = "", ignore_token_ids: Sequence[int] = ()
) -> LossRecovered:
    """See `Client.loss_recovered`."""
    measurement = Measurement(sae, client.model(model).info, hook_point, ignore_token_ids)
    for part in parts(source):
        arguments = measurement.arguments(model)
        with client.substitute(part, hook_point, measurement.replace, measurement.variants, **arguments) as scores:
            for score in scores:
                measurement.add(score)
    return measurement.result()
