"""Finds the tokens of a dataset at which a dictionary's latents are largest.

For example:

    found = client.top_activations("sae", hookline.Dataset("pile", sequence_length=256), range(10, 21), top=20)
    for example in found.latents[10].examples:
        print(example.activation, example.token_ids)
    found.save_delphi("latents")              # for delphi's LatentDataset
    found.save_sae_dashboard("sae.json")      # for SAEDashboard's SaeVisData.load_json
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hookline import _protocol
from hookline._counts import count, counts, string
from hookline._from_messages import dictionary_info
from hookline._request import fill_dataset
from hookline.errors import InternalError
from hookline.types import LARGEST_ID, Dataset, Dictionary

# The protocol stores these numbers in 32 bits.
_LARGEST = (1 << 31) - 1
_BINS = 50  # of SAEDashboard's histograms
# SAEDashboard's ASYMMETRIC_RANGES_AND_PRECISIONS: each range of shares has quantiles that are 10^-digits apart.
_QUANTILE_RANGES = (((0.0, 0.95), 3), ((0.95, 0.99), 4), ((0.99, 1.0), 5))


@dataclass(frozen=True)
class LatentExample:
    """A token at which a latent is large, and the latent's values around it."""

    activation: float
    sequence: int  # its index in the dataset
    position: int  # of the token in the sequence
    first_position: int  # of the context
    token_ids: np.ndarray[Any, np.dtype[np.int64]]  # of the context
    activations: np.ndarray[Any, np.dtype[np.float32]]  # at each of token_ids


@dataclass(frozen=True)
class LatentActivations:
    """The findings about one latent."""

    latent: int
    firings: int  # the number of tokens at which it is above 0
    examples: tuple[LatentExample, ...]  # the strongest first; of equal ones, the earlier in the dataset
    quantiles: Mapping[float, float]  # of its values above 0, by share; empty if there are none
    values: np.ndarray[Any, np.dtype[np.float32]]  # the distinct values above 0, ascending
    counts: np.ndarray[Any, np.dtype[np.int64]]  # how many tokens have each of these values
    # If it is 0, `values` and `quantiles` are exact. Otherwise they are too small by less than this share.
    value_spacing: float


@dataclass(frozen=True)
class TopActivations:
    """The findings about a dictionary's latents in a dataset."""

    dictionary: Dictionary
    dataset: str  # its name
    latents: Mapping[int, LatentActivations]  # in the order of the request
    sequences: int
    tokens: int
    ignored_tokens: int  # of `tokens`
    seconds: float  # only of the last call, if a checkpoint continued earlier ones
    forward_seconds: float
    queue_seconds: float

    def save_delphi(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the files that delphi's `LatentDataset` reads: `folder/DICTIONARY/FIRST_LAST.safetensors` and
        `config.json`. Returns the folder of the dictionary.

        Each window of tokens is the context of an example. Of examples that overlap, only the strongest is written.
        delphi takes windows of other latents as contexts in which a latent is not active, although it may be weakly
        active there.
        """
        path = Path(folder) / self.dictionary.name
        path.mkdir(parents=True, exist_ok=True)
        first, last = min(self.latents), max(self.latents)
        tokens: list[np.ndarray[Any, Any]] = []
        locations: list[tuple[int, int, int]] = []
        activations: list[float] = []
        for latent in self.latents.values():
            for example in _separate(latent.examples):
                for place in np.nonzero(example.activations > 0)[0]:
                    locations.append((len(tokens), int(place), latent.latent - first))
                    activations.append(float(example.activations[place]))
                tokens.append(example.token_ids)
        context = len(tokens[0]) if tokens else 0
        _save_safetensors(
            path / f"{first}_{last}.safetensors",
            {
                "locations": np.array(locations, dtype=np.int64).reshape(-1, 3),
                "tokens": np.array(tokens, dtype=np.int64).reshape(-1, context),
                "activations": np.array(activations, dtype=np.float32),
            },
        )
        config = {
            "dataset_repo": self.dataset,
            "dataset_split": "",
            "dataset_name": "",
            "dataset_column": "",
            "batch_size": 1,
            "cache_ctx_len": context,
            "n_tokens": len(tokens) * context,
            "n_splits": 1,
            "model_name": self.dictionary.model,
        }
        _replace(path / "config.json", (json.dumps(config, indent=4) + "\n").encode())
        return path

    def save_sae_dashboard(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file that SAEDashboard's `SaeVisData.load_json` reads: examples, histogram and statistics of each
        latent. The tables of logits and of correlated neurons are empty, so the layout must not contain them."""
        tokens = self.tokens - self.ignored_tokens
        shares = _quantile_shares()
        features = {
            str(latent.latent): {
                "feature_tables_data": {},
                "acts_histogram_data": _histogram(latent, tokens),
                "logits_table_data": {},
                "logits_histogram_data": {},
                "sequence_data": {"seq_group_data": [_sequence_group(latent)]},
                "prompt_data": {},
                "dfa_data": {},
                "decoder_weights_data": None,
            }
            for latent in self.latents.values()
        }
        statistics = {
            "max": [float(latent.values[-1]) if latent.firings else 0.0 for latent in self.latents.values()],
            "frac_nonzero": [latent.firings / max(1, tokens) for latent in self.latents.values()],
            "skew": [],
            "kurtosis": [],
            "quantile_data": [_quantile_data(latent, tokens, shares) for latent in self.latents.values()],
            "quantiles": [round(share, 6) for share in [*shares.tolist(), 1.0]],
            "ranges_and_precisions": _QUANTILE_RANGES,
        }
        whole = {"feature_data_dict": features, "feature_stats": statistics}
        _replace(Path(path), (json.dumps(whole) + "\n").encode())
        return Path(path)


def _separate(examples: Sequence[LatentExample]) -> list[LatentExample]:
    """Returns the examples whose token is not in the context of a stronger example."""
    kept: list[LatentExample] = []
    for example in examples:
        if not any(
            other.sequence == example.sequence and 0 <= example.position - other.first_position < len(other.token_ids)
            for other in kept
        ):
            kept.append(example)
    return kept


def _histogram(latent: LatentActivations, tokens: int) -> dict[str, Any]:
    if latent.firings == 0:
        return {}
    least, most = float(latent.values[0]), float(latent.values[-1])
    width = (most - least) / _BINS
    if width > 0:
        places = np.minimum(((latent.values.astype(np.float64) - least) / width).astype(np.int64), _BINS - 1)
    else:
        places = np.full(len(latent.values), _BINS // 2)
    heights = np.zeros(_BINS, dtype=np.int64)
    np.add.at(heights, places, latent.counts)
    tick = 0.1 * math.floor(1e-4 + most / 0.3) + 1e-6
    return {
        "bar_heights": heights.tolist(),
        "bar_values": np.round(least + width * np.arange(_BINS) + width / 2, 5).tolist(),
        "tick_vals": np.round(tick * np.arange(4), 1).tolist(),
        "title": f"ACTIVATIONS<br>DENSITY = {100 * latent.firings / max(1, tokens):.3f}%",
    }


def _sequence_group(latent: LatentActivations) -> dict[str, Any]:
    most = latent.examples[0].activation if latent.examples else 0.0
    return {
        "title": f"TOP ACTIVATIONS<br>MAX = {most:.3f}",
        "seq_data": [
            {
                "original_index": example.sequence,
                "qualifying_token_index": example.position,
                "token_ids": example.token_ids.tolist(),
                "feat_acts": example.activations.tolist(),
                "loss_contribution": [0.0] * len(example.token_ids),
                "token_logits": [0.0] * len(example.token_ids),
                "top_token_ids": [],
                "top_logits": [],
                "bottom_token_ids": [],
                "bottom_logits": [],
            }
            for example in latent.examples
        ],
    }


def _quantile_shares() -> np.ndarray[Any, np.dtype[np.float64]]:
    parts = []
    for (begin, end), digits in _QUANTILE_RANGES:
        step = 10.0**-digits
        parts.append(begin + step * np.arange(round((end - begin) / step)))
    return np.concatenate(parts)


def _quantile_data(latent: LatentActivations, tokens: int, shares: np.ndarray[Any, Any]) -> list[float]:
    """Computes the latent's quantiles over all tokens, interpolated as by torch.quantile, without those that are 0."""
    if tokens == 0:
        return []
    ends = tokens - latent.firings + np.concatenate([[0], np.cumsum(latent.counts)])
    values = np.concatenate([[0.0], latent.values.astype(np.float64)])

    def at(ranks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return values[np.searchsorted(ends, ranks, side="right")]

    ranks = shares * (tokens - 1)
    below = ranks.astype(np.int64)
    low, high = at(below), at(np.minimum(below + 1, tokens - 1))
    quantiles = np.round(low + (high - low) * (ranks - below), 6)
    above = np.nonzero(np.abs(quantiles) > 1e-6)[0]
    return [float(one) for one in quantiles[above[0] :]] if len(above) else []


def _save_safetensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    names = {"int64": "I64", "float32": "F32"}
    header: dict[str, Any] = {}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    _replace(path, b"".join([len(text).to_bytes(8, "little"), text, *(one.tobytes() for one in tensors.values())]))


def _replace(path: Path, contents: bytes) -> None:
    """Writes a file that gets its name when it is complete."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def examples_request(
    dictionary: str | Dictionary,
    dataset: Dataset,
    latents: int | Iterable[int],
    *,
    top: int,
    context: int,
    ignore_token_ids: int | Iterable[int],
    quantiles: Iterable[float],
    checkpoint: str | os.PathLike[str] | None,
    checkpoint_sequences: int,
) -> Any:
    """Makes the request from the arguments of a `top_activations` method, with the contents of the checkpoint.
    TypeError and ValueError for what no server accepts."""
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset: expected a hookline.Dataset, not {type(dataset).__name__}")
    name = dictionary.name if isinstance(dictionary, Dictionary) else string("dictionary", dictionary)
    request = _protocol.TopActivationsRequest(dictionary=name)
    fill_dataset(request.dataset, dataset)
    request.latents.extend(counts("latents", latents, 0, _LARGEST))
    request.top = count("top", top, 1, _LARGEST)
    request.context = count("context", context, 1, _LARGEST)
    request.ignore_token_ids.extend(counts("ignore_token_ids", ignore_token_ids, 0, LARGEST_ID))
    request.quantiles.extend(float(share) for share in quantiles)
    if checkpoint is None:
        return request
    request.checkpoint_sequences = count("checkpoint_sequences", checkpoint_sequences, 1)
    path = Path(checkpoint)
    if path.exists():
        try:
            request.resume.ParseFromString(path.read_bytes())
        except Exception:  # the place of protobuf's DecodeError differs between its versions
            request.resume.Clear()
        if not request.resume.digest:
            raise ValueError(f"checkpoint: {path} was not written by top_activations; give another file")
    return request


class ExamplesReader:
    """Joins the messages of a call into one `TopActivations`, and writes checkpoints."""

    def __init__(self, request: Any, checkpoint: str | os.PathLike[str] | None) -> None:
        self._dataset = request.dataset.name
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._dictionary: Dictionary | None = None
        self._latents: dict[int, LatentActivations] = {}
        self._found: TopActivations | None = None

    def read(self, data: bytes) -> None:
        message = _protocol.TopActivationsResponse.FromString(data)
        kind = message.WhichOneof("kind")
        if kind == "started":
            self._dictionary = dictionary_info(message.started.dictionary)
        elif kind == "checkpoint" and self._checkpoint is not None:
            _replace(self._checkpoint, message.checkpoint.SerializeToString())
        elif kind == "latent":
            self._latents[message.latent.latent] = _latent(message.latent)
        elif kind == "summary" and self._dictionary is not None:
            summary = message.summary
            self._found = TopActivations(
                dictionary=self._dictionary,
                dataset=self._dataset,
                latents=self._latents,
                sequences=summary.sequences,
                tokens=summary.tokens,
                ignored_tokens=summary.ignored_tokens,
                seconds=summary.timing.total_seconds,
                forward_seconds=summary.timing.forward_seconds,
                queue_seconds=summary.timing.queue_seconds,
            )

    def finished(self) -> TopActivations:
        """Returns the result, and removes the checkpoint. InternalError if the server left the summary out."""
        if self._found is None:
            raise InternalError("the server ended the call without the summary")
        if self._checkpoint is not None:
            self._checkpoint.unlink(missing_ok=True)
        return self._found


def _latent(message: Any) -> LatentActivations:
    return LatentActivations(
        latent=message.latent,
        firings=message.firings,
        examples=tuple(
            LatentExample(
                activation=example.activation,
                sequence=example.sequence,
                position=example.position,
                first_position=example.first_position,
                token_ids=np.array(example.token_ids, dtype=np.int64),
                activations=np.array(example.activations, dtype=np.float32),
            )
            for example in message.examples
        ),
        quantiles={quantile.share: quantile.value for quantile in message.quantiles},
        values=np.array(message.values, dtype=np.float32),
        counts=np.array(message.counts, dtype=np.int64),
        value_spacing=message.value_spacing,
    )
