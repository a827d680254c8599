"""Rows for SAELens: its `SAETrainer` takes any iterator of `(batch, d_in)` tensors as its data provider.

For example:

    source = hookline.Dataset("pile", 256)
    provider = hookline.sae_lens.data_provider("localhost:7471", "blocks.3.hook_resid_post", source)
    trainer = SAETrainer(cfg=..., sae=..., data_provider=provider)
    trainer.fit()
"""

from __future__ import annotations

from typing import Any, Iterator, Union

from hookline._text import escaped
from hookline.client import Client, connect


def data_provider(
    server: Union[str, Client],
    hook_point: str,
    source: Any,
    *,
    batch_size: int = 4096,
    device: Any = "cpu",
    shuffle_buffer: int = 1 << 18,
    seed: int = 0,
    repeat: bool = True,
    **options: Any,
) -> Iterator[Any]:
    """An iterator of `(batch_size, width)` torch tensors on `device`.

    server: an address, or a client.
    hook_point: one name. What an SAE reads and what it should give back are the same; for transcoders use
    `Client.capture`.
    source: as for `Client.capture`.
    shuffle_buffer: rows among which the order is mixed; the default takes 2^18 rows of memory.
    seed: of the mixing; each pass over the source adds one.
    repeat: starts again when the source ends, as a trainer that counts its own samples expects. A source that can be
        read once only ends.
    options: as for `Client.capture`.

    All batches have exactly `batch_size` rows: the short one at the end of the last pass is left out.
    """
    import torch

    client = connect(server) if isinstance(server, str) else server
    readable_once = hasattr(source, "__next__")
    options = {**options, "output": "torch", "batch_rows": batch_size, "shuffle_buffer": shuffle_buffer}
    target = torch.device(device)

    def batches() -> Iterator[Any]:
        passes = 0
        while True:
            rows = 0
            with client.capture(hook_point, source, seed=seed + passes, **options) as capture:
                names = [point.name for point in capture.started.hook_points]
                if len(names) != 1:
                    raise ValueError(f"hook_point: {hook_point!r} means {len(names)}: {escaped(', '.join(names))}; name one")
                for batch in capture:
                    if batch.rows == batch_size:
                        rows += batch_size
                        yield batch[names[0]].to(target, non_blocking=True)
            passes += 1
            if not repeat or readable_once:
                return
            if rows == 0:
                raise ValueError(f"source: a pass over it brings fewer than the {batch_size} rows of a batch")

    return batches()
