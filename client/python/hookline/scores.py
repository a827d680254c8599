"""Losses and logits with and without interventions in the forward pass.

For example:

    from hookline import Intervention

    scores = client.score(token_ids, variants={"ablated": [Intervention.zero("blocks.2.hook_resid_post")]})
    summary = scores.wait()
    print(summary.variants["ablated"].mean_loss - summary.variants[""].mean_loss)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from hookline import _lifetime, _protocol
from hookline._arguments import ScoreArguments
from hookline._connection import StreamCall
from hookline._counts import count, counts, flag, string, strings
from hookline._request import fill_dataset, fill_text, token_batch
from hookline._sources import is_server_source, name_place, place_in, source_batches
from hookline.errors import HooklineError, InternalError
from hookline.types import LARGEST_ID, Dataset, Text

# The protocol stores the number of logits in 32 bits.
_LARGEST_COUNT = (1 << 31) - 1


@dataclass(frozen=True)
class Intervention:
    """A replacement of a hook point's rows. Make one by a class method; all of them take these arguments, too:

    positions: replaces rows only at these positions of each sequence.
    ignore_token_ids: does not replace rows of these tokens.
    head: replaces only this head of a hook point whose width is divided into heads.

    Vectors are lists, arrays or tensors, as wide as the hook point, or with `head` as wide as one head.
    """

    hook_point: str
    operation: str  # the field of the proto message
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positions: Sequence[int] = ()
    ignore_token_ids: Sequence[int] = ()
    head: int | None = None

    @classmethod
    def zero(cls, hook_point: str, **where: Any) -> Intervention:
        """Replaces the rows by zeros."""
        return cls(hook_point, "zero", **where)

    @classmethod
    def mean(cls, hook_point: str, vector: Any = None, **where: Any) -> Intervention:
        """Replaces the rows by their mean: the given vector, or else the mean over all tokens of all sequences, which
        must then fit into one forward pass."""
        return cls(hook_point, "mean", {} if vector is None else {"vector": vector}, **where)

    @classmethod
    def add(cls, hook_point: str, vector: Any, scale: float = 1.0, **where: Any) -> Intervention:
        """Adds `scale * vector` to the rows."""
        return cls(hook_point, "add", {"vector": vector, "scale": scale}, **where)

    @classmethod
    def scale(cls, hook_point: str, factor: float, **where: Any) -> Intervention:
        """Multiplies the rows by `factor`."""
        return cls(hook_point, "scale", {"factor": factor}, **where)

    @classmethod
    def project_out(cls, hook_point: str, direction: Any, **where: Any) -> Intervention:
        """Removes the rows' component along `direction`."""
        return cls(hook_point, "project_out", {"direction": direction}, **where)

    @classmethod
    def set(cls, hook_point: str, rows: Any, **where: Any) -> Intervention:
        """Replaces the rows by given rows: one for all tokens, or one for each of `positions`."""
        return cls(hook_point, "set", {"rows": rows}, **where)

    @classmethod
    def dictionary(cls, hook_point: str, name: str, **where: Any) -> Intervention:
        """Replaces the rows by their reconstruction by a dictionary of the server (`Client.dictionaries`)."""
        return cls(hook_point, "dictionary", {"name": name}, **where)

    @classmethod
    def latents(
        cls,
        hook_point: str,
        dictionary: str,
        *,
        clamp: Mapping[int, float] | None = None,
        scale: Mapping[int, float] | None = None,
        ablate: Sequence[int] = (),
        keep_error: bool = False,
        **where: Any,
    ) -> Intervention:
        """Replaces the rows by their reconstruction by a dictionary of the server, with some latents changed: set to
        values (`clamp`), multiplied by factors (`scale`) or set to zero (`ablate`). `keep_error` adds the error of the
        unchanged reconstruction."""
        edits = {"clamp": clamp or {}, "scale": scale or {}, "ablate": ablate}
        return cls(hook_point, "latents", {"dictionary": dictionary, "edits": edits, "keep_error": keep_error}, **where)

    def fill(self, message: Any) -> None:
        """Fills a proto Intervention."""
        message.hook_point = self.hook_point
        message.positions.extend(counts("positions", self.positions))
        message.ignore_token_ids.extend(counts("ignore_token_ids", self.ignore_token_ids, 0, LARGEST_ID))
        if self.head is not None:
            message.head = count("head", self.head, 0)
        if self.operation == "dictionary":
            message.dictionary = self.arguments["name"]
            return
        if self.operation == "latents":
            _fill_latents(message.latents, self.arguments)
            return
        operation = getattr(message, self.operation)
        operation.SetInParent()
        for name, value in self.arguments.items():
            if name == "rows":
                for row in np.atleast_2d(_floats(value, "rows")):
                    operation.rows.add().values.extend(row.tolist())
            elif name in ("vector", "direction"):
                getattr(operation, name).extend(np.ravel(_floats(value, name)).tolist())
            else:
                setattr(operation, name, value)


def _fill_latents(message: Any, arguments: Mapping[str, Any]) -> None:
    message.dictionary = arguments["dictionary"]
    message.keep_error = arguments["keep_error"]
    edits = arguments["edits"]
    for latent, value in edits["clamp"].items():
        message.edits.add(latent=count("clamp", latent), clamp=value)
    for latent, factor in edits["scale"].items():
        message.edits.add(latent=count("scale", latent), scale=factor)
    for latent in counts("ablate", edits["ablate"]):
        message.edits.add(latent=latent).ablate.SetInParent()


def _floats(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Returns float32 values of a list, an array or a tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected numbers, not {type(value).__name__} ({error})") from None


@dataclass(frozen=True)
class TopLogits:
    """The largest logits of a sequence of T tokens; each field is (T, k), the largest first."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    logits: np.ndarray[Any, np.dtype[np.float32]]
    log_probabilities: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class SequenceScore:
    """One sequence of T tokens under one variant. Fields that were not asked for are None."""

    sequence: int  # its index in the source, or in the dataset
    variant: str  # "": the pass without interventions
    mean_loss: float | None  # natural logarithm; also None if T is 1
    token_loss: np.ndarray[Any, np.dtype[np.float32]] | None  # (T - 1): entry t is the loss of predicting token t + 1
    kl: np.ndarray[Any, np.dtype[np.float32]] | None  # (T), from the clean pass; None for the clean pass
    top_logits: TopLogits | None
    log_probabilities: np.ndarray[Any, np.dtype[np.float32]] | None  # (T, ids)
    rows: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]  # by hook point, (T, width)
    token_ids: np.ndarray[Any, np.dtype[np.int64]] | None = None  # (T), only of the clean pass, with per_token_loss


@dataclass(frozen=True)
class ReplacedRows:
    """Compares one intervention's rows with the rows that they replaced."""

    hook_point: str
    rows: int
    explained_variance: float | None  # None if the rows do not vary
    mean_squared_error: float
    cosine_similarity: float
    l0: float | None  # the mean number of nonzero latents, if a dictionary made the rows


@dataclass(frozen=True)
class VariantSummary:
    """Totals of one variant over all sequences."""

    mean_loss: float | None
    mean_kl: float | None
    tokens: int  # the number of predictions over which mean_loss is the mean
    loss_recovered: float | None
    replaced: tuple[ReplacedRows, ...]  # one for each intervention


@dataclass(frozen=True)
class ScoreSummary:
    """Totals of a scoring."""

    variants: Mapping[str, VariantSummary]  # by name; "": the pass without interventions
    sequences: int
    tokens: int
    seconds: float  # from the request to the summary
    forward_seconds: float
    queue_seconds: float


@dataclass(frozen=True)
class ScoreOptions:
    """A scoring's request, and which outputs it asks for."""

    source: Any
    request: bytes
    top_logits: bool
    hook_points: bool

    def named(self, error: HooklineError) -> HooklineError:
        """Adds the place in the source to an error about a sequence."""
        if is_server_source(self.source):
            return error
        return name_place(error, lambda index: place_in(list(source_batches(self.source)), index))


def score_options(
    source: Any, variants: Mapping[str, Sequence[Intervention]] | None, arguments: ScoreArguments
) -> ScoreOptions:
    """Makes the request from the arguments of a `score` method. TypeError and ValueError for what no server accepts."""
    unknown = sorted(arguments.keys() - ScoreArguments.__annotations__.keys())
    if unknown:
        raise TypeError(f"{unknown[0]}: score takes {', '.join(sorted(ScoreArguments.__annotations__))}")
    request = _protocol.ScoreRequest(model=string("model", arguments.get("model", "")))
    if isinstance(source, Dataset):
        fill_dataset(request.dataset, source)
    elif isinstance(source, Text):
        fill_text(request.text, source)
    elif is_server_source(source):
        raise TypeError(
            f"source: {type(source).__name__} cannot be scored; give token ids, hookline.Text or hookline.Dataset"
        )
    elif hasattr(source, "__next__"):
        raise TypeError("source: an iterator cannot be part of a request; give a list, tensor or server dataset")
    else:
        batches = source_batches(source)
        request.tokens.CopyFrom(token_batch([ids for batch in batches for ids in batch.sequences]))
    outputs = request.outputs
    for name in ("per_token_loss", "kl", "rows_only", "loss_recovered"):
        setattr(outputs, name, flag(name, arguments.get(name, False)))
    outputs.top_logits = count("top_logits", arguments.get("top_logits", 0), most=_LARGEST_COUNT)
    ids = counts("log_probability_token_ids", arguments.get("log_probability_token_ids", ()), 0, LARGEST_ID)
    outputs.log_probability_token_ids.extend(ids)
    outputs.hook_points.extend(strings("hook_points", arguments.get("hook_points", ())))
    for name, interventions in (variants or {}).items():
        variant = request.variants.add(name=name)
        for one in [interventions] if isinstance(interventions, Intervention) else interventions:
            if not isinstance(one, Intervention):
                raise TypeError(f"variants[{name!r}]: {type(one).__name__} is not a hookline.Intervention")
            one.fill(variant.interventions.add())
    return ScoreOptions(source, request.SerializeToString(), outputs.top_logits > 0, len(outputs.hook_points) > 0)


class ScoreReader:
    """Joins the messages of a score call: a score and the rows that follow become one `SequenceScore`."""

    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self._score: Any = None  # the message whose rows follow
        self._rows: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.summary: ScoreSummary | None = None

    def read(self, data: bytes) -> SequenceScore | None:
        """Returns the score that this message completes; None if there is none."""
        return self.take(_protocol.ScoreResponse.FromString(data))

    def take(self, message: Any) -> SequenceScore | None:
        """Does what `read` does, with a parsed message."""
        kind = message.WhichOneof("kind")
        if kind == "rows":
            rows = message.rows
            values = np.array(rows.values, dtype=np.float32).reshape(rows.rows, rows.width)
            self._rows.setdefault(rows.hook_point, []).append(values)
            return None
        done, self._score = self._take(), message.score if kind == "score" else None
        if kind == "summary":
            self.summary = _summary(message.summary)
        return done

    def _take(self) -> SequenceScore | None:
        message, rows = self._score, self._rows
        self._rows = {}
        if message is None:
            return None
        top = message.top_logits
        return SequenceScore(
            sequence=message.sequence,
            variant=message.variant,
            mean_loss=message.mean_loss if message.HasField("mean_loss") else None,
            token_loss=_array(message.token_loss),
            kl=_array(message.kl),
            top_logits=TopLogits(
                np.array([position.ids for position in top], dtype=np.int64),
                np.array([position.logits for position in top], dtype=np.float32),
                np.array([position.log_probabilities for position in top], dtype=np.float32),
            )
            if top
            else None,
            log_probabilities=np.array([one.values for one in message.log_probabilities], dtype=np.float32)
            if message.log_probabilities
            else None,
            rows={name: np.concatenate(parts) for name, parts in rows.items()},
            token_ids=np.array(message.token_ids, dtype=np.int64) if message.token_ids else None,
        )

    def finished(self) -> ScoreSummary:
        """Returns the summary. InternalError if the server left it out."""
        if self.summary is None:
            raise InternalError("the server ended the call without the summary")
        return self.summary


def _array(values: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    return np.array(values, dtype=np.float32) if len(values) else None


def _summary(message: Any) -> ScoreSummary:
    def optional(of: Any, name: str) -> float | None:
        return getattr(of, name) if of.HasField(name) else None

    return ScoreSummary(
        variants={
            variant.name: VariantSummary(
                mean_loss=optional(variant, "mean_loss"),
                mean_kl=optional(variant, "mean_kl"),
                tokens=variant.tokens,
                loss_recovered=optional(variant, "loss_recovered"),
                replaced=tuple(
                    ReplacedRows(
                        one.hook_point,
                        one.rows,
                        optional(one, "explained_variance"),
                        one.mean_squared_error,
                        one.cosine_similarity,
                        optional(one, "l0"),
                    )
                    for one in variant.replaced
                ),
            )
            for variant in message.variants
        },
        sequences=message.sequences,
        tokens=message.tokens,
        seconds=message.timing.total_seconds,
        forward_seconds=message.timing.forward_seconds,
        queue_seconds=message.timing.queue_seconds,
    )


class Scores(_lifetime.Running, Iterator[SequenceScore]):
    """Yields scores as they come: an iterator of `SequenceScore`, in which a sequence's clean score precedes those of
    its variants. `wait` reads the rest and returns the summary. `close`, or the end of a `with` block, ends the work on
    the server. Iterate from one thread at a time."""

    def __init__(self, call: StreamCall, options: ScoreOptions) -> None:
        self._call = call
        self._options = options
        self._reader = ScoreReader(options)
        # `started` comes at once. Waiting for it here raises an error of the server in the constructor.
        self._receive()

    def __next__(self) -> SequenceScore:
        while self._reader.summary is None:
            score = self._receive()
            if score is not None:
                return score
        raise StopIteration

    def _receive(self) -> SequenceScore | None:
        try:
            data = next(self._call, None)
        except grpc.RpcError as error:
            raise self._options.named(self._call.exception(error)) from None
        if data is None:
            self._reader.finished()
            return None
        return self._read(data)

    def _read(self, data: bytes) -> SequenceScore | None:
        return self._reader.read(data)

    def wait(self) -> ScoreSummary:
        """Reads the remaining scores and returns the totals."""
        for _ in self:
            pass
        return self._reader.finished()

    def close(self) -> None:
        """Ends the call. Idempotent."""
        self._call.cancel()

    def __enter__(self) -> Scores:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
