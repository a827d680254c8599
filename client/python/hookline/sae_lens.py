"""Rows for SAELens: its `SAETrainer` takes any iterator of `(batch, d_in)` tensors as its data provider.

For example:

    source = hookline.Dataset("pile", 256)
    provider = hookline.sae_lens.data_provider("localhost:7471", "blocks.3.hook_resid_post", source)
    trainer = SAETrainer(cfg=..., sae=..., data_provider=provider)
    trainer.fit()

A run can be killed and continued: `torch.save(provider.state_dict(), path)` beside each checkpoint, and in the new
process `provider.load_state_dict(torch.load(path))` before its first batch. With `deterministic=True` later batches
are then equal in every bit; without it rows may differ in the last ones, since they are computed beside others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hookline._counts import count, counts
from hookline._groups import Group, GroupReader, can_be_continued
from hookline._mixing import MixingBuffer
from hookline._passes import Pass
from hookline._sources import can_be_read_again
from hookline._text import escaped
from hookline.client import Client, connect
from hookline.statistics import HookPointStatistics
from hookline.types import Selection

# Sequences that are taken at once; SAELens's default of store_batch_size_prompts.
_GROUP_SEQUENCES = 32
# The running median of norms is taken of this many rows that came last: enough for an error of a percent.
_MEDIAN_ROWS = 1 << 14
_STATE_VERSION = 1
# The special tokens that every sequence may hold, whatever it is about, have these roles.
_STRUCTURAL_ROLES = ("bos", "eos", "pad")

_MLP_IN = re.compile(r"(blocks\.\d+)\.hook_mlp_in")


def hook_point(hook_name: str, *, release: str = "") -> str:
    """The hook point that a SAELens config's `hook_name` means, for `data_provider` and `Client.capture`.

    release: the name under which SAELens lists the SAE. Only `blocks.i.hook_mlp_in` needs it: in Gemma Scope 2's
        entries (`gemma-scope-2-...`) it is what the MLP reads, elsewhere TransformerLens's, the residual stream before
        the norm. ValueError without it.

    Every other name, TransformerLens's, its bridge's or that of a module in transformers, is one that servers know.
    """
    found = _MLP_IN.fullmatch(hook_name)
    if found is None:
        return hook_name
    if not release:
        raise ValueError(
            f"hook_name: {hook_name!r} means {found.group(1)}.ln2.hook_out in SAELens's entries of Gemma Scope 2 and "
            f"{found.group(1)}.hook_resid_mid in TransformerLens; name one of them, or say which release it is of"
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
    """An iterator of `(batch_size, width)` torch tensors on `device`, whose state can be kept.

    server: an address, several, or a client.
    hook_point: one name. What an SAE reads and what it should give back are the same; for transcoders use
    `Client.capture`.
    source: as for `Client.capture`. A pass covers all of it, also where the server's cap on rows (`--max-rows`) ends
        captures before.
    shuffle_buffer: rows among which the order is mixed, on `device`; the default takes 2^18 rows of memory. 0: in the
        source's order.
    mix_fraction: None: half of the buffer stays where a part leaves, and each pass empties it. A number gives the exact
        batches of SAELens's `ActivationsStore` (6.54) with `activations_mixing_fraction` of that number, after
        `torch.manual_seed(seed)`, of a pretokenized dataset with these sequences: `shuffle_buffer` is then its
        `n_batches_in_buffer` x its context size (after `seqpos_slice`), and `batch_size` its
        `train_batch_size_tokens`. As there, a pass leaves out sequences that do not fill `store_batch_size_prompts`.
        `normalize_activations` changes no batch of the store in any of its modes: the SAE, or the trainer's scaler
        (`scaling_factor`), applies it.
    store_batch_size_prompts: sequences taken at once.
    context_size: tokens of a sequence, which `seqpos_slice` needs.
    seqpos_slice: `slice(*seqpos_slice)` of each sequence's positions is kept.
    exclude_special_tokens: rows of these token ids are left out. True stands, as in SAELens, for the structural special
        tokens of the model's tokenizer: BOS, EOS and PAD, as the server knows them.
    max_norm_medians: leaves out rows whose norm is more than this many running medians, such as attention sinks; None:
        leaves out none.
    seed: of the mixing.
    repeat: starts again when the source ends, as a trainer that counts its own samples expects; a shuffled
        `hookline.Dataset` goes on with its next epochs. A source that can be read once only ends.
    drop_last: where the source ends for good, whether a last batch of fewer than `batch_size` rows is left out, as of
        torch's DataLoader. Between two passes nothing is: what is left of one comes first in the next.
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
    """The factor by which SAELens's `expected_average_only_in` multiplies rows, sqrt(d_in) / mean norm, from
    `Client.statistics` of the hook point; for `ActivationScaler(scaling_factor=...)`."""
    return float(len(statistics.mean_vector) ** 0.5 / statistics.mean_row_norm)


@dataclasses.dataclass(frozen=True)
class _Settings:
    hook_point: str
    batch_size: int
    device: Any
    shuffle_buffer: int
    mix_fraction: float | None  # None: not SAELens's passes
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
        self._seen = 0  # sequences from which rows have come at most

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
        """The mixing of the last batch: the source sequences that it holds, over the number that as many rows
        drawn at random from the sequences seen so far would hold on average. 1 is ideal; NaN before the first batch."""
        if self._sequences is None or self._seen == 0:
            return float("nan")
        rows = len(self._sequences)
        ideal = self._seen * (1 - (1 - 1 / self._seen) ** rows)
        return len(torch.unique(self._sequences)) / ideal

    def state_dict(self) -> dict[str, Any]:
        """All that later batches depend on, for `torch.save`: the place in the source, the buffer with its rows, its
        random generator. TypeError for a source that cannot be begun in the middle."""
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
        """Goes on where `state_dict` was taken, in any process, with the same arguments. ValueError for others."""
        if isinstance(self._groups, _OnePass):
            raise TypeError("source: this one has no state that could be loaded")
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"state: version {state.get('version')} is not {_STATE_VERSION}")
        mine = self._identity()
        for name, value in state["settings"].items():
            if mine[name] != value:
                raise ValueError(f"state: it is of a provider with {name} {value!r}, this one has {mine[name]!r}")
        self._groups.seek(state["place"], state["names"])
        self._ended, self._seen = state["ended"], state["seen"]
        self._buffer.load_state_dict(state["buffer"])
        self._norms.recent = state["norms"].clone()
        self._sequences = None

    def close(self) -> None:
        """Ends the captures. Idempotent."""
        self._groups.close()

    def _identity(self) -> dict[str, Any]:
        """The settings that decide what the batches are."""
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
                f"hook_point: {settings.hook_point!r} means {len(group.names)}: {escaped(', '.join(group.names))}; "
                "name one"
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
            raise ValueError(f"source: a pass over it brings fewer than the {settings.batch_size} rows of a batch")
        elif isinstance(self._groups, _OnePass):
            self._groups.check_can_go_on(rows)
        if self._ended or settings.mix_fraction is None:
            self._buffer.flush(shuffled=settings.mix_fraction is None)


class _OnePass:
    """The rows of a source that cannot be begun in the middle, a batch of a capture at a time."""

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
        """Before another pass."""
        if self._ended_at_cap:
            raise ValueError(
                f"source: a feed cannot be continued after the server's cap of {rows} rows (--max-rows), and would "
                "begin again; give a hookline.Dataset, or repeat=False"
            )

    def close(self) -> None:
        if self._pass is not None:
            self._pass.close()
        self._pass = None


class _RunningMedian:
    """The median of the norms of the rows that came last."""

    def __init__(self) -> None:
        self.recent = torch.empty(0)

    def below(self, rows: Any, medians: float) -> Any:
        """Selects rows with a norm of at most this many medians, these rows counted among those that came."""
        norms = rows.float().norm(dim=1)
        self.recent = torch.cat([self.recent, norms])[-_MEDIAN_ROWS:]
        return norms <= medians * self.recent.median()


def _structural_ids(client: Client, model: str) -> tuple[int, ...]:
    """The ids that SAELens's `get_special_token_ids` gives, as far as a server tells them: not those of chat."""
    info = client.model(model).info
    ids = sorted({token.id for token in info.special_tokens if token.role in _STRUCTURAL_ROLES})
    if not ids:
        raise ValueError(
            f"exclude_special_tokens: the server tells no BOS, EOS or PAD of {escaped(info.name)} "
            f"({escaped(info.tokenizer) or 'it has no tokenizer'}); give their ids"
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
        raise ValueError("selection: give it, or seqpos_slice and exclude_special_tokens, not both")
    if is_whole:
        return Selection(exclude_token_ids=excluded)
    if context_size is None:
        raise ValueError("context_size: seqpos_slice needs it")
    kept = range(count("context_size", context_size, 1))[slice(*seqpos_slice)]
    if len(kept) == 0 or kept.step < 1:
        raise ValueError(
            f"seqpos_slice: {tuple(seqpos_slice)} keeps no position of {context_size}, or turns them round"
        )
    return Selection(
        skip_first=kept.start,
        position_end=kept.stop,
        position_stride=kept.step,
        exclude_token_ids=excluded,
    )
