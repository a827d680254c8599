"""Rows for SAELens: its `SAETrainer` takes any iterator of `(batch, d_in)` tensors as its data provider.

For example:

    source = hookline.Dataset("pile", 256)
    provider = hookline.sae_lens.data_provider("localhost:7471", "blocks.3.hook_resid_post", source)
    trainer = SAETrainer(cfg=..., sae=..., data_provider=provider)
    trainer.fit()

A run can be killed and continued: call `torch.save(provider.state_dict(), path)` beside each checkpoint, and in the new
process `provider.load_state_dict(torch.load(path))` before the first batch. With `deterministic=True` later batches are
then equal in every bit; without it rows may differ in the last bits, since they are computed beside others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hookline._connect import connect
from hookline._counts import count, counts
from hookline._groups import Group, GroupReader, can_be_continued
from hookline._mixing import MixingBuffer
from hookline._passes import Pass
from hookline._sources import can_be_read_again
from hookline._text import escaped
from hookline.client import Client
from hookline.statistics import HookPointStatistics
from hookline.types import Selection

# The sequences that are taken at once; SAELens's default of store_batch_size_prompts.
_GROUP_SEQUENCES = 32
# The number of latest rows over which the running median of norms is taken: enough for an error of a percent.
_MEDIAN_ROWS = 1 << 14
_STATE_VERSION = 1
# The roles of special tokens that any sequence may hold, whatever its text.
_STRUCTURAL_ROLES = ("bos", "eos", "pad")

_MLP_IN = re.compile(r"(blocks\.\d+)\.hook_mlp_in")


def hook_point(hook_name: str, *, release: str = "") -> str:
    """Returns the hook point that a SAELens config's `hook_name` means, for `data_provider` and `Client.capture`.

    release: the name under which SAELens lists the SAE. Only `blocks.i.hook_mlp_in` needs it: in Gemma Scope 2's
        entries (`gemma-scope-2-...`) that name means what the MLP reads, elsewhere, as in TransformerLens, the residual
        stream before the norm. ValueError without it.

    Servers know every other name, whether it is TransformerLens's, its bridge's or that of a module in transformers.
    """
    found = _MLP_IN.fullmatch(hook_name)
    if found is None:
        return hook_name
    if not release:
        raise ValueError(
            f"hook_name: {hook_name!r} means {found.group(1)}.ln2.hook_out in SAELens's entries of Gemma Scope 2 and "
            f"{found.group(1)}.hook_resid_mid in TransformerLens; give one of these names, or the release"
        )
    return (
        f"{found.group(1)}.ln2.hook_out" if release.startswith("gemma-scope-2-") else f"{found.group(1)}.hook_resid_mid"
    )


def data_provider(
    server: str | Sequence[str] | Client,
    hook_point: str,
    source: Any,
    *,
    batch_size: int = 4096,
    device: Any = "cpu",
    shuffle_buffer: int = 1 << 18,
    mix_fraction: float | None = None,
    store_batch_size_prompts: int = _GROUP_SEQUENCES,
    context_size: int | None = None,
    seqpos_slice: Sequence[int | None] = (None,),
    exclude_special_tokens: Sequence[int] | bool | None = None,
    max_norm_medians: float | None = None,
    seed: int = 0,
    repeat: bool = True,
    drop_last: bool = True,
    **options: Any,
) -> DataProvider:
    """Returns an iterator of `(batch_size, width)` torch tensors on `device`, whose state can be saved.

    server: an address, a list of addresses, or a client.
    hook_point: one name. An SAE reconstructs the rows that it reads; for transcoders use `Client.capture`.
    source: as for `Client.capture`. A pass covers all of it, even if the server's cap on rows (`--max-rows`) ends a
        capture earlier.
    shuffle_buffer: the number of rows among which the order is mixed, on `device`; the default takes the memory of 2^18
        rows. 0: rows come in the source's order.
    mix_fraction: None: half of the buffer stays when batches leave, and the end of a pass empties it. A number gives
        the exact batches of SAELens's `ActivationsStore` (6.54) with this number as `activations_mixing_fraction`,
        after `torch.manual_seed(seed)`, of a pretokenized dataset with these sequences: `shuffle_buffer` is then its
        `n_batches_in_buffer` x its context size (after `seqpos_slice`), and `batch_size` its
        `train_batch_size_tokens`. As in SAELens, a pass leaves out sequences that do not fill
        `store_batch_size_prompts`. `normalize_activations` changes no batch of the store in any of its modes: the SAE,
        or the trainer's scaler (`scaling_factor`), applies it.
    store_batch_size_prompts: the number of sequences taken at once.
    context_size: the tokens of a sequence; `seqpos_slice` needs it.
    seqpos_slice: keeps `slice(*seqpos_slice)` of each sequence's positions.
    exclude_special_tokens: leaves out rows of these token ids. True stands, as in SAELens, for the structural special
        tokens of the model's tokenizer: BOS, EOS and PAD, as the server knows them.
    max_norm_medians: leaves out rows whose norm exceeds this many running medians, such as attention sinks; None:
        leaves out none.
    seed: of the mixing.
    repeat: starts again when the source ends, as a trainer that counts its own samples expects; a shuffled
        `hookline.Dataset` continues with its next epochs. A source that can only be read once is not repeated.
    drop_last: whether a last batch of fewer than `batch_size` rows is left out when the source ends for good, as in
        torch's DataLoader. Between two passes nothing is left out: the rows left from one pass come first in the next.
    options: as for `Client.capture`.

    All batches but such a last one have exactly `batch_size` rows.
    """
    settings = _Settings(
        hook_point=hook_point,
        batch_size=count("batch_size", batch_size, 1),
        device=device,
        shuffle_buffer=count("shuffle_buffer", shuffle_buffer, 0),
        mix_fraction=mix_fraction,
        group_sequences=count("store_batch_size_prompts", store_batch_size_prompts, 1),
        max_norm_medians=max_norm_medians,
        seed=count("seed", seed, 0),
        repeat=repeat and can_be_read_again(source),
        drop_last=drop_last,
    )
    if options.get("top_k"):
        raise ValueError("top_k: an SAE reads whole rows; use Client.capture")
    client = server if isinstance(server, Client) else connect(server)
    if isinstance(exclude_special_tokens, bool):
        excluded = _structural_ids(client, options.get("model", "")) if exclude_special_tokens else ()
    else:
        excluded = () if exclude_special_tokens is None else counts("exclude_special_tokens", exclude_special_tokens, 0)
    options["selection"] = _selection(options.get("selection"), context_size, seqpos_slice, excluded)
    return DataProvider(client, source, settings, options)


def scaling_factor(statistics: HookPointStatistics) -> float:
    """Computes the factor by which SAELens's `expected_average_only_in` multiplies rows, sqrt(d_in) / mean norm, from
    `Client.statistics` of the hook point; for `ActivationScaler(scaling_factor=...)`."""
    return float(len(statistics.mean_vector) ** 0.5 / statistics.mean_row_norm)


@dataclasses.dataclass(frozen=True)
class _Settings:
    hook_point: str
    batch_size: int
    device: Any
    shuffle_buffer: int
    mix_fraction: float | None  # None: batches are not those of SAELens
    group_sequences: int
    max_norm_medians: float | None
    seed: int
    repeat: bool
    drop_last: bool

    def __post_init__(self) -> None:
        if 0 < self.shuffle_buffer < self.batch_size:
            raise ValueError(f"shuffle_buffer: {self.shuffle_buffer} is below the {self.batch_size} rows of a batch")
        if self.mix_fraction is not None and not 0 <= self.mix_fraction <= 1:
            raise ValueError(f"mix_fraction: {self.mix_fraction} is not from 0 to 1")
        if self.max_norm_medians is not None and not self.max_norm_medians > 1:
            raise ValueError(f"max_norm_medians: {self.max_norm_medians} is not above 1")

    def mixing_buffer(self) -> MixingBuffer:
        fraction = 0.5 if self.mix_fraction is None else self.mix_fraction
        if self.shuffle_buffer == 0:
            return MixingBuffer(self.batch_size, self.batch_size, 0.0, self.seed, (self.device, "cpu"))
        return MixingBuffer(self.shuffle_buffer, self.batch_size, fraction, self.seed, (self.device, "cpu"))


class DataProvider(Iterator[Any]):
    """The data provider that `data_provider` makes. Use it from one thread at a time."""

    def __init__(self, client: Client, source: Any, settings: _Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._buffer = settings.mixing_buffer()
        self._norms = _RunningMedian()
        self._groups: GroupReader | _OnePass
        options = {**options, "output": "torch"}
        if can_be_continued(source):
            whole = settings.mix_fraction is not None
            self._groups = GroupReader(client, settings.hook_point, source, settings.group_sequences, whole, **options)
        else:
            self._groups = _OnePass(client, settings.hook_point, source, options)
        self._ended = False
        self._sequences: Any = None  # of the rows of the last batch
        self._seen = 0  # the number of sequences up to the last one of which rows have come

    def __next__(self) -> Any:
        while True:
            batch = self._buffer.take()
            if batch is None and self._ended:
                batch = None if self._settings.drop_last else self._buffer.rest()
                if batch is None:
                    raise StopIteration
            if batch is not None:
                rows, self._sequences = batch
                return rows
            self._feed()

    @property
    def mixing(self) -> float:
        """Measures how well the last batch is mixed: the number of source sequences in it, divided by the
        number expected of as many rows drawn at random from the sequences seen so far. 1 is ideal; NaN before
        the first batch."""
        if self._sequences is None or self._seen == 0:
            return float("nan")
        rows = len(self._sequences)
        ideal = self._seen * (1 - (1 - 1 / self._seen) ** rows)
        return len(torch.unique(self._sequences)) / ideal

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that later batches depend on, for `torch.save`: the place in the source, the buffer with
        its rows, and its random generator. TypeError for a source that cannot be started in the middle."""
        if isinstance(self._groups, _OnePass):
            raise TypeError(
                "source: a feed, a recording or an iterator cannot be continued elsewhere; give a hookline.Dataset, or "
                "token ids in a list, array or tensor"
            )
        return {
            "version": _STATE_VERSION,
            "settings": self._identity(),
            "place": self._groups.place(),
            "names": self._groups.names,
            "ended": self._ended,
            "seen": self._seen,
            "buffer": self._buffer.state_dict(),
            "norms": self._norms.recent.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken, in any process. ValueError if the arguments differ."""
        if isinstance(self._groups, _OnePass):
            raise TypeError("source: a feed, a recording or an iterator has no state that could be loaded")
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"state: version {state.get('version')} is not {_STATE_VERSION}")
        mine = self._identity()
        for name, value in state["settings"].items():
            if mine[name] != value:
                raise ValueError(f"state: saved by a provider with {name} {value!r}, but this one has {mine[name]!r}")
        self._groups.seek(state["place"], state["names"])
        self._ended, self._seen = state["ended"], state["seen"]
        self._buffer.load_state_dict(state["buffer"])
        self._norms.recent = state["norms"].clone()
        self._sequences = None

    def close(self) -> None:
        """Ends the captures. Idempotent."""
        self._groups.close()

    def _identity(self) -> dict[str, Any]:
        """The settings on which the batches depend."""
        settings = self._settings
        names = ("hook_point", "batch_size", "shuffle_buffer", "mix_fraction", "group_sequences", "max_norm_medians")
        return {**{name: getattr(settings, name) for name in names}, "groups": self._groups.groups}

    def _feed(self) -> None:
        """Takes one more group of the source."""
        settings, groups = self._settings, self._groups
        before = groups.pass_rows
        group = groups.next()
        came = before + sum(len(piece[0]) for piece in group.pieces)  # of the pass
        if len(group.names) > 1:
            raise ValueError(
                f"hook_point: {settings.hook_point!r} matches {len(group.names)} hook points: "
                f"{escaped(', '.join(group.names))}; give one name"
            )
        if group.pieces:
            rows, sequences = (torch.cat([piece[index] for piece in group.pieces]) for index in (0, 1))
            self._seen = max(self._seen, int(sequences.max()) + 1)
            if settings.max_norm_medians is not None:
                kept = self._norms.below(rows, settings.max_norm_medians)
                rows, sequences = rows[kept], sequences[kept]
            self._buffer.push((rows, sequences))
        self._buffer.serve()
        if group.ends_pass:
            self._end_pass(came)

    def _end_pass(self, rows: int) -> None:
        settings = self._settings
        if not settings.repeat:
            self._ended = True
        elif rows < settings.batch_size:
            raise ValueError(f"source: one pass has fewer rows than a batch, which has {settings.batch_size}")
        elif isinstance(self._groups, _OnePass):
            self._groups.check_can_go_on(rows)
        if self._ended or settings.mix_fraction is None:
            self._buffer.flush(shuffled=settings.mix_fraction is None)


class _OnePass:
    """Reads a source that cannot be started in the middle, a batch of a capture at a time."""

    groups = 0

    def __init__(self, client: Client, hook_point: str, source: Any, options: dict[str, Any]) -> None:
        self._arguments = client, hook_point, source
        self._options = {**options, "provenance": True}
        self._pass: Pass | None = None
        self._ended_at_cap = False
        self.pass_rows = 0

    def next(self) -> Group:
        if self._pass is None:
            self._pass = Pass(*self._arguments, **self._options)
        batch = next(self._pass, None)
        if batch is None:
            self._ended_at_cap = self._pass.ended_at_cap
            self.close()
            self.pass_rows = 0
            return Group((), [], True)
        self.pass_rows += batch.rows
        return Group(tuple(batch), [(*batch.values(), torch.as_tensor(batch.sequence))], False)

    def check_can_go_on(self, rows: int) -> None:
        """Raises an error if there cannot be another pass."""
        if self._ended_at_cap:
            raise ValueError(
                f"source: a feed cannot be continued after the server's cap of {rows} rows (--max-rows), and would "
                "start again; give a hookline.Dataset, or repeat=False"
            )

    def close(self) -> None:
        if self._pass is not None:
            self._pass.close()
        self._pass = None


class _RunningMedian:
    """The median of the norms of the latest rows."""

    def __init__(self) -> None:
        self.recent = torch.empty(0)

    def below(self, rows: Any, medians: float) -> Any:
        """Selects the rows whose norm is at most this many medians; the median includes these rows."""
        norms = rows.float().norm(dim=1)
        self.recent = torch.cat([self.recent, norms])[-_MEDIAN_ROWS:]
        return norms <= medians * self.recent.median()


def _structural_ids(client: Client, model: str) -> tuple[int, ...]:
    """Returns the ids of SAELens's `get_special_token_ids` that the server knows, which excludes chat tokens."""
    info = client.model(model).info
    ids = sorted({token.id for token in info.special_tokens if token.role in _STRUCTURAL_ROLES})
    if not ids:
        raise ValueError(
            f"exclude_special_tokens: the server knows no BOS, EOS or PAD of {escaped(info.name)} "
            f"({escaped(info.tokenizer) or 'it has no tokenizer'}); give the ids"
        )
    return tuple(ids)


def _selection(
    selection: Selection | None,
    context_size: int | None,
    seqpos_slice: Sequence[int | None],
    excluded: tuple[int, ...],
) -> Selection | None:
    """The selection that SAELens's settings stand for."""
    is_whole = tuple(seqpos_slice) == (None,)
    if is_whole and not excluded:
        return selection
    if selection is not None:
        raise ValueError("selection: give either selection, or seqpos_slice and exclude_special_tokens")
    if is_whole:
        return Selection(exclude_token_ids=excluded)
    if context_size is None:
        raise ValueError("context_size: seqpos_slice needs it")
    kept = range(count("context_size", context_size, 1))[slice(*seqpos_slice)]
    if len(kept) == 0 or kept.step < 1:
        raise ValueError(
            f"seqpos_slice: {tuple(seqpos_slice)} keeps none of the {context_size} positions, or reverses them"
        )
    return Selection(
        skip_first=kept.start,
        position_end=kept.stop,
        position_stride=kept.step,
        exclude_token_ids=excluded,
    )
