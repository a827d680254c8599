"""Rows for SAELens: its `SAETrainer` takes any iterator of `(batch, d_in)` tensors as its data provider.

For example:

    source = hookline.Dataset("pile", 256)
    provider = hookline.sae_lens.data_provider("localhost:7471", "blocks.3.hook_resid_post", source)
    trainer = SAETrainer(cfg=..., sae=..., data_provider=provider)
    trainer.fit()
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from hookline._counts import count
from hookline._passes import Pass
from hookline._sources import can_be_read_again
from hookline._text import escaped
from hookline.client import Client, connect

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
    server: str | Client,
    hook_point: str,
    source: Any,
    *,
    batch_size: int = 4096,
    device: Any = "cpu",
    shuffle_buffer: int = 1 << 18,
    seed: int = 0,
    repeat: bool = True,
    drop_last: bool = True,
    **options: Any,
) -> Iterator[Any]:
    """An iterator of `(batch_size, width)` torch tensors on `device`.

    server: an address, or a client.
    hook_point: one name. What an SAE reads and what it should give back are the same; for transcoders use
    `Client.capture`.
    source: as for `Client.capture`. A pass covers all of it, also where the server's cap on rows (`--max-rows`) ends
        captures before.
    shuffle_buffer: rows among which the order is mixed; the default takes 2^18 rows of memory.
    seed: of the mixing; each pass over the source adds one.
    repeat: starts again when the source ends, as a trainer that counts its own samples expects. A source that can be
        read once only ends.
    drop_last: where the source ends for good, whether a last batch of fewer than `batch_size` rows is left out, as of
        torch's DataLoader. Between two passes nothing is: what is left of one comes first in the next.
    options: as for `Client.capture`.

    All batches but such a last one have exactly `batch_size` rows.
    """
    batch_size = count("batch_size", batch_size, 1)
    client = connect(server) if isinstance(server, str) else server
    ends = not repeat or not can_be_read_again(source)
    options = {**options, "output": "torch", "batch_rows": batch_size, "shuffle_buffer": shuffle_buffer}
    target = torch.device(device)

    def passes() -> Iterator[Any]:
        for number in itertools.count():
            rows = 0
            with Pass(client, hook_point, source, seed=seed + number, **options) as batches:
                for batch in batches:
                    if len(batch) != 1:
                        raise ValueError(
                            f"hook_point: {hook_point!r} means {len(batch)}: {escaped(', '.join(batch))}; name one"
                        )
                    rows += batch.rows
                    yield next(iter(batch.values()))
            if ends:
                return
            if rows < batch_size:
                raise ValueError(f"source: a pass over it brings fewer than the {batch_size} rows of a batch")
            if batches.ended_at_cap:
                raise ValueError(
                    f"source: a feed cannot be continued after the server's cap of {rows} rows (--max-rows), and would "
                    "begin again; give a hookline.Dataset, or repeat=False"
                )

    def batches() -> Iterator[Any]:
        for rows in equal_batches(passes(), batch_size, drop_last):
            yield rows.to(target, non_blocking=True)

    return batches()


def equal_batches(parts: Iterable[Any], batch_size: int, drop_last: bool) -> Iterator[Any]:
    """The rows of tensors in tensors of `batch_size` rows; one that has so many already is given on as it is."""
    held: list[Any] = []
    rows = 0
    for part in parts:
        held.append(part)
        rows += len(part)
        while rows >= batch_size:
            whole = held[0] if len(held) == 1 else torch.cat(held)
            yield whole[:batch_size] if rows > batch_size else whole
            rows -= batch_size
            held = [whole[batch_size:]] if rows else []
    if rows and not drop_last:
        yield held[0] if len(held) == 1 else torch.cat(held)
